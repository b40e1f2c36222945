package xds

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// Before the caller is authorized, a request takes little memory, whatever is in it. Decoding it takes a few times its
// size.
func TestARequestCostsAFewTimesItsSize(t *testing.T) {
	const size = 3 << 20
	many := func(element []byte) []byte { return bytes.Repeat(element, size/len(element)) }
	for name, c := range map[string]struct {
		protocol protocol
		raw      rawRequest
	}{
		"empty values in the node's metadata": {delta, nested(many([]byte("\x32\x00")), 1, 3, 1, 2, 6)}, // node, metadata, fields, value, list
		"empty fields of the metadata":        {delta, nested(many([]byte("\x0a\x00")), 1, 3)},
		"empty extensions of the node":        {delta, nested(many([]byte("\x4a\x00")), 1)},
		"empty names":                         {delta, many([]byte("\x1a\x00"))},
		"empty names unsubscribed":            {delta, many([]byte("\x22\x00"))},
		"empty versions":                      {delta, many([]byte("\x2a\x00"))},
		"empty details of an error":           {delta, nested(many([]byte("\x1a\x00")), 7)},
		"empty locators":                      {delta, many([]byte("\x42\x00"))},
		"empty names, state of the world":     {stateOfTheWorld, many([]byte("\x1a\x00"))},
		"empty locators, state of the world":  {stateOfTheWorld, many([]byte("\x3a\x00"))},
		"unknown fields":                      {stateOfTheWorld, many([]byte("\xf8\x7f\x01"))},
		"a long name":                         {stateOfTheWorld, nested(make([]byte, size), 3)},
	} {
		t.Run(name, func(t *testing.T) {
			before := allocated(func() {
				_, _ = c.protocol.node(c.raw, []string{"namespace"}, netip.Addr{})
			})
			if before > size/100 {
				t.Errorf("%d bytes are allocated before the caller is authorized, for a request of %d", before, size)
			}
			after := allocated(func() { _, _ = c.protocol.decode(c.raw) })
			if after > 3*size {
				t.Errorf("%d bytes are allocated afterwards, for a request of %d", after, size)
			}
		})
	}
}

// nested puts bytes into messages within messages, by the numbers of their
// fields from outside to inside.
func nested(inner []byte, numbers ...int) []byte {
	for _, number := range slices.Backward(numbers) {
		outer := []byte{byte(number<<3 | 2)}
		for n := len(inner); ; n >>= 7 {
			if n < 0x80 {
				outer = append(outer, byte(n))
				break
			}
			outer = append(outer, byte(n)|0x80)
		}
		inner = append(outer, inner...)
	}
	return inner
}

func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// decode and node return what the message has.
func TestRequestsAreDecodedCompletely(t *testing.T) {
	problem := &statuspb.Status{Code: 3, Message: "no", Details: []*anypb.Any{{TypeUrl: "x"}}}
	node := &corev3.Node{Id: "a", Cluster: "b", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"namespace": structpb.NewStringValue("n")}}}
	versions := map[string]string{"x": "1", "y": "2", "": "3"}
	for name, c := range map[string]struct {
		protocol protocol
		message  proto.Message
		want     request
	}{
		"delta": {
			delta,
			&discoveryv3.DeltaDiscoveryRequest{
				Node: node, TypeUrl: "t", ResourceNamesSubscribe: []string{"a", "", "b"}, ResourceNamesUnsubscribe: []string{"c"},
				InitialResourceVersions: versions, ResponseNonce: "n", ErrorDetail: problem,
			},
			request{typeURL: "t", subscribe: []string{"a", "", "b"}, unsubscribe: []string{"c"}, initialVersions: versions, nonce: "n"},
		},
		"state of the world": {
			stateOfTheWorld,
			&discoveryv3.DiscoveryRequest{VersionInfo: "v", Node: node, ResourceNames: []string{"a"}, TypeUrl: "t", ResponseNonce: "n", ErrorDetail: problem},
			request{typeURL: "t", subscribe: []string{"a"}, versionInfo: "v", nonce: "n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			encoded, err := proto.Marshal(c.message)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.protocol.decode(encoded)
			if err != nil {
				t.Fatal(err)
			}
			c.want.errorDetail = &statuspb.Status{Message: "no"}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(request{}), protocmp.Transform()); diff != "" {
				t.Errorf("wanted -, read +:\n%s", diff)
			}
			n, err := c.protocol.node(encoded, []string{"namespace"}, netip.Addr{})
			if want := (Node{ID: "a", Cluster: "b", Metadata: map[string]string{"namespace": "n"}}); err != nil || fmt.Sprint(n) != fmt.Sprint(want) {
				t.Errorf("read the node %v, %v; want %v", n, err, want)
			}
		})
	}
}

// All bytes are decoded or refused.
func FuzzRequest(f *testing.F) {
	for _, m := range []proto.Message{
		&discoveryv3.DeltaDiscoveryRequest{TypeUrl: "t", ResourceNamesSubscribe: []string{"a"}, InitialResourceVersions: map[string]string{"a": "1"}, ErrorDetail: &statuspb.Status{Message: "no"}},
		&discoveryv3.DiscoveryRequest{TypeUrl: "t", ResourceNames: []string{"a"}, VersionInfo: "1"},
		&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "a", UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{}}}},
	} {
		encoded, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encoded)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, p := range []protocol{delta, stateOfTheWorld} {
			var message proto.Message = &discoveryv3.DeltaDiscoveryRequest{}
			if p.sotw {
				message = &discoveryv3.DiscoveryRequest{}
			}
			r, err := p.decode(data)
			if proto.Unmarshal(data, message) == nil && len(data) < maxName && err != nil {
				t.Errorf("%s: a request is refused that protobuf reads: %v", p.name, err)
			}
			if err == nil {
				c := newStreamState(p.sotw)
				c.handleRequest(Cluster, r)
				c.push()
			}
			_, _ = p.node(data, []string{"namespace"}, netip.Addr{})
		}
	})
}
