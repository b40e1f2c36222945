package fakeenvoy

import (
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/wire"
)

// LeanResponse is a DeltaDiscoveryResponse whose resources are left encoded.
type LeanResponse struct {
	TypeURL, Nonce string
	Resources      []LeanResource
	Removed        []string
	Size           int // in bytes
}

// LeanResource is a resource in a response. It shares the memory of the response.
type LeanResource struct {
	Name, Version, Body []byte // Body is the value of the Any
}

// Lean is a gRPC codec that decodes a LeanResponse without its resources. Hundreds of fake Envoys on one machine must
// take less time than the server that they measure.
type Lean struct{}

// Name implements encoding.CodecV2.
func (Lean) Name() string { return "proto" }

// Marshal implements encoding.CodecV2.
func (Lean) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is not a message", v)
	}
	encoded, err := proto.Marshal(m)
	return mem.BufferSlice{mem.SliceBuffer(encoded)}, err
}

// Unmarshal implements encoding.CodecV2.
func (Lean) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*LeanResponse)
	if !ok {
		return fmt.Errorf("%T is not a response", v)
	}
	*r = LeanResponse{Size: data.Len()}
	// The numbers of the fields are those of envoy.service.discovery.v3.
	return wire.Fields(data.Materialize(), func(n protowire.Number, value []byte) error {
		switch n {
		case 2:
			i, err := readItem(value)
			r.Resources = append(r.Resources, i)
			return err
		case 4:
			r.TypeURL = string(value)
		case 5:
			r.Nonce = string(value)
		case 6:
			r.Removed = append(r.Removed, string(value))
		}
		return nil
	})
}

// readItem decodes an envoy.service.discovery.v3.Resource.
func readItem(data []byte) (LeanResource, error) {
	var i LeanResource
	err := wire.Fields(data, func(n protowire.Number, value []byte) error {
		switch n {
		case 1:
			i.Version = value
		case 2:
			body, err := wire.Field(value, 2)
			i.Body = body
			return err
		case 3:
			i.Name = value
		}
		return nil
	})
	return i, err
}
