package xds

import (
	"errors"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/internal/wire"
)

// Consul merges a node that an encoded request has twice, and of a field it takes the last value.
func TestANodeWithAFieldTwiceIsRefused(t *testing.T) {
	encode := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	text := structpb.NewStringValue
	request := func(n *corev3.Node) []byte { return encode(&discoveryv3.DeltaDiscoveryRequest{Node: n}) }
	// field returns a message in a field of another one.
	field := func(number byte, message []byte) []byte {
		return append([]byte{number<<3 | 2, byte(len(message))}, message...)
	}
	metadata := func(fields map[string]*structpb.Value) []byte {
		return encode(&corev3.Node{Metadata: &structpb.Struct{Fields: fields}})
	}
	name := metadata(map[string]*structpb.Value{"node_name": text("n1")})
	agent := encode(&corev3.Node{UserAgentName: "envoy"})
	id, cluster := encode(&corev3.Node{Id: "a"}), encode(&corev3.Node{Cluster: "b"})
	join := func(parts ...[]byte) (all []byte) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	item := func(value []byte) []byte {
		return field(1, field(nodeMetadata, field(structFields, join(field(mapKey, []byte("node_name")), value))))
	}
	for what, c := range map[string]struct {
		request []byte
		want    error
	}{
		"a whole node": {request(&corev3.Node{Id: "a", Cluster: "b", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"node_name": text("n1"), "namespace": text(""), "partition": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"a": text("b")}}),
			"other": structpb.NewNumberValue(1),
		}}}), nil},
		"no node":            {nil, nil},
		"lists":              {request(&corev3.Node{Extensions: []*corev3.Extension{{}, {}}, ClientFeatures: []string{"a", "b"}}), nil},
		"a null":             {item(field(mapValue, []byte{8, 0})), nil},
		"two nodes":          {join(field(1, id), field(1, cluster)), errAmbiguous},
		"two ids":            {field(1, join(id, id)), errAmbiguous},
		"two clusters":       {field(1, join(cluster, cluster)), errAmbiguous},
		"two agents":         {field(1, join(agent, agent)), errAmbiguous},
		"two metadata":       {field(1, join(name, name)), errAmbiguous},
		"two values":         {item(join(field(mapValue, encode(text("a"))), field(mapValue, encode(text("b"))))), errAmbiguous},
		"a value of 2 types": {item(field(mapValue, join(encode(text("a")), encode(structpb.NewBoolValue(true))))), errAmbiguous},
		"a key twice": {field(1, field(nodeMetadata, join(
			field(structFields, join(field(mapKey, []byte("node_name")), field(mapValue, encode(text("a"))))),
			field(structFields, join(field(mapKey, []byte("node_name")), field(mapValue, encode(text("b"))))),
		))), errAmbiguous},
		"two keys":                   {item(join(field(mapKey, []byte("other")), field(mapValue, encode(text("a"))))), errAmbiguous},
		"a value that is no message": {item(field(mapValue, []byte{0x80})), wire.ErrInvalid},
		"a value that is cut off":    {item(field(mapValue, []byte{0x1a, 5, 'a'})), wire.ErrInvalid},
		"no message":                 {[]byte{0xff}, wire.ErrInvalid},
	} {
		if _, err := NodeOf(c.request, []string{"node_name", "namespace", "partition"}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
}
