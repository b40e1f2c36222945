package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/wire"
)

// Node is how an Envoy describes itself in the first request of its stream.
type Node struct {
	ID, Cluster         string            // --service-node and --service-cluster
	Metadata            map[string]string // the strings for Options.MetadataKeys
	UserAgent           string            // "envoy" for an Envoy
	Major, Minor, Patch uint32            // Envoy's release; all zero if unknown
	Peer                netip.Addr        // the caller's Address
	Stream              uint64            // the number of its stream, once that is authorized; each has another one
	Forwarded           bool              // its stream comes from another server of this process (Server.ServeDecrypted)
}

// Release returns Envoy's release, such as "1.36.2", or "unknown".
func (n Node) Release() string {
	if n.Major == 0 && n.Minor == 0 && n.Patch == 0 {
		return "unknown"
	}
	return fmt.Sprintf("%d.%d.%d", n.Major, n.Minor, n.Patch)
}

// The most that a stream may have before it is authorized.
const (
	maxHeaders = 16 << 10 // bytes, decoded
	maxToken   = 4 << 10  // bytes; Consul's tokens are UUIDs, a service account's has 1 KiB and more
	// maxNodeText bounds the node's id and cluster, and each string of its metadata that is kept, in bytes. A
	// Kubernetes pod's name, with which Consul's service IDs begin, can have 253.
	maxNodeText = 512
)

// The numbers of fields in envoy.config.core.v3.Node, and in the messages in it.
const (
	nodeID           = 1
	nodeCluster      = 2
	nodeMetadata     = 3
	nodeUserAgent    = 6
	nodeBuildVersion = 8

	buildVersionVersion = 1
	structFields        = 1
	mapKey              = 1
	mapValue            = 2
	valueString         = 3
)

// errAmbiguous means that another decoder may read another node in a request: an encoded message may repeat a field, and may
// change the type of a value.
var errAmbiguous = errors.New("its node has a field twice; check that the caller is an Envoy")

// NodeOf decodes the node of an encoded DeltaDiscoveryRequest as every decoder does; the zero Node if it has none. It keeps
// the metadata of the given keys only. Its errors may be sent to the caller.
func NodeOf(request []byte, keys []string) (Node, error) {
	return delta.node(request, keys, netip.Addr{})
}

// node decodes the node of a request; the zero Node if it has none. It keeps the metadata of the given keys only.
// Its errors may be sent to the caller: they do not repeat what they refuse.
func (p protocol) node(raw rawRequest, keys []string, caller netip.Addr) (Node, error) {
	encoded, err := onlyField(raw, p.fields.node)
	if err != nil {
		return Node{}, err
	}
	n := Node{Metadata: map[string]string{}, Peer: caller}
	decoded := []protowire.Number{nodeID, nodeCluster, nodeUserAgent, nodeMetadata, nodeBuildVersion}
	err = distinctFields(encoded, decoded, func(number protowire.Number, value []byte) (err error) {
		switch number {
		case nodeID:
			n.ID, err = nodeText("id", value)
		case nodeCluster:
			n.Cluster, err = nodeText("cluster", value)
		case nodeUserAgent:
			n.UserAgent, err = nodeText("user_agent_name", value)
		case nodeMetadata:
			err = n.decodeMetadata(value, keys)
		case nodeBuildVersion:
			err = n.decodeBuildVersion(value)
		}
		return err
	})
	return n, err
}

// distinctFields calls visit with the fields of a message that have one of the numbers. It returns errAmbiguous if one is
// there twice.
func distinctFields(data []byte, numbers []protowire.Number, visit func(number protowire.Number, value []byte) error) error {
	var seen uint64 // has a bit for each of the numbers
	return wire.Fields(data, func(number protowire.Number, value []byte) error {
		i := slices.Index(numbers, number)
		switch {
		case i < 0:
			return nil
		case seen&(1<<i) != 0:
			return errAmbiguous
		}
		seen |= 1 << i
		return visit(number, value)
	})
}

// onlyField returns the value of the field with a number, or nil. It returns errAmbiguous if there are several.
func onlyField(data []byte, number protowire.Number) (only []byte, err error) {
	err = distinctFields(data, []protowire.Number{number}, func(_ protowire.Number, value []byte) error {
		only = value
		return nil
	})
	return only, err
}

// decodeMetadata decodes the strings in a google.protobuf.Struct.
func (n *Node) decodeMetadata(encoded []byte, keys []string) error {
	seen := make([]bool, len(keys))
	return wire.Fields(encoded, func(number protowire.Number, item []byte) error {
		if number != structFields {
			return nil
		}
		name, err := onlyField(item, mapKey)
		i := slices.Index(keys, string(name))
		if err != nil || i < 0 {
			return err
		}
		if seen[i] {
			return errAmbiguous
		}
		seen[i] = true
		value, err := onlyField(item, mapValue)
		if err != nil {
			return err
		}
		text, err := stringOf(value)
		if err != nil || len(text) == 0 {
			return err
		}
		n.Metadata[keys[i]], err = nodeText("metadata "+keys[i], text)
		return err
	})
}

// stringOf returns the string in an encoded google.protobuf.Value; nil for another type. It returns errAmbiguous unless the
// Value has one field.
func stringOf(value []byte) ([]byte, error) {
	if len(value) == 0 {
		return nil, nil
	}
	number, typ, n := protowire.ConsumeTag(value)
	if n < 0 {
		return nil, wire.ErrInvalid
	}
	value = value[n:]
	switch n := protowire.ConsumeFieldValue(number, typ, value); {
	case n < 0:
		return nil, wire.ErrInvalid
	case n < len(value):
		return nil, errAmbiguous
	case number != valueString || typ != protowire.BytesType:
		return nil, nil
	}
	text, _ := protowire.ConsumeBytes(value)
	return text, nil
}

// decodeBuildVersion decodes an envoy.config.core.v3.BuildVersion.
func (n *Node) decodeBuildVersion(encoded []byte) error {
	encoded, err := wire.Field(encoded, buildVersionVersion)
	if err != nil {
		return err
	}
	var v typev3.SemanticVersion
	if (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(encoded, &v) != nil {
		return wire.ErrInvalid
	}
	n.Major, n.Minor, n.Patch = v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch()
	return nil
}

// nodeText decodes a text that goes into logs and questions to the Authorizer.
func nodeText(field string, value []byte) (string, error) {
	if len(value) > maxNodeText {
		return "", fmt.Errorf("its node.%s has more than %d bytes", field, maxNodeText)
	}
	text := string(value)
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", fmt.Errorf("its node.%s has characters that cannot be printed", field)
	}
	return text, nil
}
