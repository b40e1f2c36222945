package xds

import (
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// protocol is a variant of the discovery protocol. streamState handles its requests and responses.
type protocol struct {
	name   string
	sotw   bool
	fields requestFields
}

// requestFields are the numbers of a request's fields in envoy.service.discovery.v3. A field that the request does
// not have is 0.
type requestFields struct {
	node, typeURL, nonce, errorDetail protowire.Number
	subscribe, unsubscribe            protowire.Number // repeated
	initialVersions                   protowire.Number // a map
	versionInfo                       protowire.Number
}

var (
	delta = protocol{name: "delta", fields: requestFields{ // of a DeltaDiscoveryRequest
		node: 1, typeURL: 2, subscribe: 3, unsubscribe: 4, initialVersions: 5, nonce: 6, errorDetail: 7,
	}}
	stateOfTheWorld = protocol{name: "sotw", sotw: true, fields: requestFields{ // of a DiscoveryRequest
		versionInfo: 1, node: 2, subscribe: 3, typeURL: 4, nonce: 5, errorDetail: 6,
	}}
)

// message is an encoded response: encoded messages with some of its fields each, one after the other. A resource's
// part is shared by all Envoys that get the resource.
type message mem.BufferSlice

func (p protocol) encode(r *response) message {
	m := make(message, 0, len(r.resources)+1)
	var rest proto.Message
	if p.sotw {
		for _, c := range r.resources {
			m = append(m, c.sotwItem)
		}
		rest = &discoveryv3.DiscoveryResponse{TypeUrl: r.typ.URL(), Nonce: r.nonce, VersionInfo: versionOf(r.resources)}
	} else {
		for _, c := range r.resources {
			m = append(m, c.deltaItem)
		}
		rest = &discoveryv3.DeltaDiscoveryResponse{TypeUrl: r.typ.URL(), Nonce: r.nonce, RemovedResources: r.removals}
	}
	encoded, err := proto.Marshal(rest)
	if err != nil {
		panic(err) // a string is not UTF-8; requests with such names are refused
	}
	return append(m, mem.SliceBuffer(encoded))
}

// rawRequest is an encoded request. It is decoded field by field, when its caller is known: a decoded message can be
// forty times as large.
type rawRequest []byte

// codec passes messages and raw requests as they are.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) { return mem.BufferSlice(v.(message)), nil }

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*rawRequest) = data.Materialize()
	return nil
}
