//go:build e2e

package main

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// response is a DeltaDiscoveryResponse whose resources are left encoded.
type response struct {
	typeURL, nonce string
	resources      []item
	removed        []string
	size           int
}

// item is a resource in a response. Its slices are parts of the response.
type item struct {
	name, version, body []byte // body is the value of the Any
}

// lean is a gRPC codec that reads responses without decoding their resources:
// hundreds of fake Envoys on one machine must cost less than what they measure.
type lean struct{}

// Name implements encoding.CodecV2.
func (lean) Name() string { return "proto" }

// Marshal implements encoding.CodecV2.
func (lean) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is not a message", v)
	}
	encoded, err := proto.Marshal(m)
	return mem.BufferSlice{mem.SliceBuffer(encoded)}, err
}

// Unmarshal implements encoding.CodecV2.
func (lean) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*response)
	if !ok {
		return fmt.Errorf("%T is not a response", v)
	}
	*r = response{size: data.Len()}
	// The fields' numbers are those of envoy.service.discovery.v3.
	return fields(data.Materialize(), func(n protowire.Number, value []byte) error {
		switch n {
		case 2:
			i, err := readItem(value)
			r.resources = append(r.resources, i)
			return err
		case 4:
			r.typeURL = string(value)
		case 5:
			r.nonce = string(value)
		case 6:
			r.removed = append(r.removed, string(value))
		}
		return nil
	})
}

// readItem reads an envoy.service.discovery.v3.Resource.
func readItem(data []byte) (item, error) {
	var i item
	err := fields(data, func(n protowire.Number, value []byte) error {
		switch n {
		case 1:
			i.version = value
		case 2:
			return fields(value, func(n protowire.Number, value []byte) error {
				if n == 2 {
					i.body = value
				}
				return nil
			})
		case 3:
			i.name = value
		}
		return nil
	})
	return i, err
}

var errDamaged = errors.New("the encoding is damaged")

// fields visits the fields of a message that have bytes as their value, in
// their order.
func fields(data []byte, visit func(protowire.Number, []byte) error) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return errDamaged
		}
		data = data[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, data); n < 0 {
				return errDamaged
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return errDamaged
		}
		data = data[n:]
		if err := visit(number, value); err != nil {
			return err
		}
	}
	return nil
}
