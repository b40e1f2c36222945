package dataplane

import (
	"errors"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/usherproxy/usher/internal/wire"
)

// errAmbiguous means that Consul could read another node in a request than Usher does.
var errAmbiguous = errors.New("its node has a field twice; check that the caller is an Envoy")

// The numbers of fields in a DeltaDiscoveryRequest, in its envoy.config.core.v3.Node, and in the google.protobuf.Struct of
// the node's metadata.
const (
	requestNode  = 1
	nodeID       = 1
	nodeCluster  = 2
	nodeMetadata = 3
	structFields = 1
	mapKey       = 1
	mapValue     = 2
)

// checkUnambiguous returns an error unless each field of the request's node that decides who answers is there once at most,
// and with one value. An encoded message may repeat fields, and may change the type of a value. Decoders differ in what
// they make of it.
func checkUnambiguous(request []byte, keys []string) error {
	node, err := single(request, requestNode)
	if err != nil {
		return err
	}
	for _, number := range []protowire.Number{nodeID, nodeCluster} {
		if _, err := single(node, number); err != nil {
			return err
		}
	}
	metadata, err := single(node, nodeMetadata)
	if err != nil {
		return err
	}
	var seen []string
	return wire.Fields(metadata, func(number protowire.Number, item []byte) error {
		if number != structFields {
			return nil
		}
		name, err := single(item, mapKey)
		if err != nil || !slices.Contains(keys, string(name)) {
			return err
		}
		if slices.Contains(seen, string(name)) {
			return errAmbiguous
		}
		seen = append(seen, string(name))
		return checkOneValue(item)
	})
}

// checkOneValue returns an error unless an item of a map has one value of one type.
func checkOneValue(item []byte) error {
	value, err := single(item, mapValue)
	if err != nil || len(value) == 0 {
		return err
	}
	number, kind, n := protowire.ConsumeTag(value)
	if n < 0 || protowire.ConsumeFieldValue(number, kind, value[n:]) != len(value)-n {
		return errAmbiguous
	}
	return nil
}

// single returns the value of the field with a number, nil if there is none, and an error if there are several.
func single(message []byte, wanted protowire.Number) (only []byte, err error) {
	found := 0
	err = wire.Fields(message, func(number protowire.Number, value []byte) error {
		if number == wanted {
			only, found = value, found+1
		}
		if found > 1 {
			return errAmbiguous
		}
		return nil
	})
	return only, err
}
