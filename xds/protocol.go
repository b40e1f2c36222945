package xds

import (
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// protocol is a variant of the discovery protocol: how its requests and
// responses are written. What they mean is the conversation's affair.
type protocol struct {
	name    string
	sotw    bool
	receive func(grpc.ServerStream) (request, error)
	encode  func(*response) message
}

var (
	delta           = protocol{name: "delta", receive: receiveDelta, encode: encodeDelta}
	stateOfTheWorld = protocol{name: "sotw", sotw: true, receive: receiveState, encode: encodeState}
)

func receiveDelta(stream grpc.ServerStream) (request, error) {
	var m discoveryv3.DeltaDiscoveryRequest
	err := stream.RecvMsg(&m)
	return request{
		typeURL: m.GetTypeUrl(), node: m.GetNode(), nonce: m.GetResponseNonce(), problem: m.GetErrorDetail(),
		names: m.GetResourceNamesSubscribe(), unwanted: m.GetResourceNamesUnsubscribe(), versions: m.GetInitialResourceVersions(),
	}, err
}

func receiveState(stream grpc.ServerStream) (request, error) {
	var m discoveryv3.DiscoveryRequest
	err := stream.RecvMsg(&m)
	return request{
		typeURL: m.GetTypeUrl(), node: m.GetNode(), nonce: m.GetResponseNonce(), problem: m.GetErrorDetail(),
		names: m.GetResourceNames(), claims: m.GetVersionInfo(),
	}, err
}

// message is a response as it goes over the wire. Its parts are shared: a
// resource is encoded once, and every Envoy that gets it gets the same memory.
type message mem.BufferSlice

// The numbers of fields in envoy.service.discovery.v3. The resources have the
// same one in both responses.
const (
	resourceVersion = 1 // Resource
	resourceBody    = 2
	resourceName    = 3

	stateVersion     = 1 // DiscoveryResponse
	responseItem     = 2
	responseType     = 4
	responseNonce    = 5
	responseRemovals = 6 // DeltaDiscoveryResponse

	resourceURL = "type.googleapis.com/envoy.service.discovery.v3.Resource"

	anyType  = 1 // google.protobuf.Any
	anyValue = 2
)

func encodeDelta(r *response) message {
	m := make(message, 0, len(r.resources)+1)
	for _, c := range r.resources {
		m = append(m, c.item)
	}
	rest := appendString(nil, responseType, r.typ.URL())
	rest = appendString(rest, responseNonce, r.nonce)
	for _, name := range r.removals {
		rest = appendString(rest, responseRemovals, name)
	}
	return append(m, mem.SliceBuffer(rest))
}

func encodeState(r *response) message {
	m := make(message, 0, len(r.resources)+1)
	for _, c := range r.resources {
		m = append(m, c.body)
	}
	rest := appendString(nil, stateVersion, r.version())
	rest = appendString(rest, responseType, r.typ.URL())
	rest = appendString(rest, responseNonce, r.nonce)
	return append(m, mem.SliceBuffer(rest))
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

//nolint:unparam // All fields that it is used for have the number 2 by chance.
func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

// codec sends a message as it is, and everything else as protobuf.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(message); ok {
		return mem.BufferSlice(m), nil
	}
	return c.CodecV2.Marshal(v)
}
