package xds

import (
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

// NodeOf decodes the node of an encoded DeltaDiscoveryRequest; the zero Node if it has none. It keeps the metadata of the
// given keys only. Its errors may be sent to the caller.
func NodeOf(request []byte, keys []string) (Node, error) {
	return delta.node(request, keys, netip.Addr{})
}

// node decodes the node of a request; the zero Node if it has none. It keeps the metadata of the given keys only.
// Its errors may be sent to the caller: they do not repeat what they refuse.
func (p protocol) node(raw rawRequest, keys []string, caller netip.Addr) (Node, error) {
	encoded, err := wire.Field(raw, p.fields.node)
	if err != nil {
		return Node{}, err
	}
	n := Node{Metadata: map[string]string{}, Peer: caller}
	err = wire.Fields(encoded, func(number protowire.Number, value []byte) (err error) {
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

// decodeMetadata decodes the strings in a google.protobuf.Struct.
func (n *Node) decodeMetadata(encoded []byte, keys []string) error {
	return wire.Fields(encoded, func(number protowire.Number, item []byte) error {
		if number != structFields {
			return nil
		}
		name, err := wire.Field(item, mapKey)
		i := slices.Index(keys, string(name))
		if err != nil || i < 0 {
			return err
		}
		text, err := wire.Field(item, mapValue, valueString)
		if err != nil || len(text) == 0 {
			return err
		}
		n.Metadata[keys[i]], err = nodeText("metadata "+keys[i], text)
		return err
	})
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
