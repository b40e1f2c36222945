package xds

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// protocol is a variant of the discovery protocol: how its requests and
// responses are written. What they mean is the conversation's affair.
type protocol struct {
	name   string
	sotw   bool
	fields requestFields
	encode func(*response) message
}

// requestFields are the numbers of a request's fields in
// envoy.service.discovery.v3; 0 where the request has no such field.
type requestFields struct {
	node, typeURL, nonce, errorDetail protowire.Number
	subscribe, unsubscribe            protowire.Number // repeated
	initialVersions                   protowire.Number // entries of a map
	versionInfo                       protowire.Number
}

var (
	delta = protocol{ // DeltaDiscoveryRequest
		name: "delta", encode: encodeDelta,
		fields: requestFields{node: 1, typeURL: 2, subscribe: 3, unsubscribe: 4, initialVersions: 5, nonce: 6, errorDetail: 7},
	}
	stateOfTheWorld = protocol{ // DiscoveryRequest
		name: "sotw", sotw: true, encode: encodeState,
		fields: requestFields{versionInfo: 1, node: 2, subscribe: 3, typeURL: 4, nonce: 5, errorDetail: 6},
	}
)

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
		m = append(m, c.deltaItem)
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
		m = append(m, c.sotwItem)
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

// frame is a request as it came over the wire. It is decoded by parts, when its
// sender is known: a whole message can take forty times its encoded size.
type frame []byte

// codec sends a message and receives a frame as they are, and treats everything
// else as protobuf.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(message); ok {
		return mem.BufferSlice(m), nil
	}
	return c.CodecV2.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		*f = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}
