package xds

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/wire"
)

// Node is an Envoy as it describes itself in the first request of its stream.
type Node struct {
	// ID and Cluster are --service-node and --service-cluster.
	ID, Cluster string
	// Metadata holds those strings of the node's metadata whose keys
	// Options.MetadataKeys names.
	Metadata map[string]string
	// UserAgent is "envoy" for an Envoy.
	UserAgent string
	// Major, Minor and Patch are Envoy's release; all zero when it did not say.
	Major, Minor, Patch uint32
	// Peer is the address the stream comes from; zero for a unix socket.
	Peer netip.Addr
}

// Caller is who has opened a stream.
type Caller struct {
	// Token is the x-consul-token of the stream; empty when it has none.
	Token Token
	// Peer is the other end of the connection.
	Peer net.Addr
	// Network is the peer as Limits count it.
	Network netip.Prefix
	// TLS is nil for a plaintext connection.
	TLS *tls.ConnectionState
	// Again is true when the stream was authorised before.
	Again bool
}

// Token is a Consul ACL token. It formats as whether there is one; convert it
// to a string to use it.
type Token string

// String never gives the token.
func (t Token) String() string {
	if t == "" {
		return "no token"
	}
	return "a token"
}

// GoString never gives the token.
func (t Token) GoString() string { return t.String() }

// LogValue never gives the token.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText never gives the token.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// The most that a stream may show before it is authorised.
const (
	maxHeaders = 16 << 10 // bytes, decoded
	maxToken   = 4 << 10  // bytes; Consul's tokens are UUIDs, those of login may be longer
	// maxNodeText bounds the node's id and cluster, and each string of its
	// metadata that is kept, in bytes. A Kubernetes pod's name, which Consul's
	// service IDs begin with, can have 253.
	maxNodeText = 512
)

// callerOf reads the caller from a stream's context. An error is a status.
func callerOf(ctx context.Context) (Caller, *connection, error) {
	var c Caller
	p, ok := peer.FromContext(ctx)
	if !ok {
		return c, nil, status.Error(codes.Internal, "the stream has no peer")
	}
	auth, ok := p.AuthInfo.(authInfo)
	if !ok {
		return c, nil, status.Error(codes.Internal, "the gRPC server was not made with ServerOptions")
	}
	c.Peer, c.Network = p.Addr, networkOf(clientAddr(p.Addr))
	if info, ok := auth.AuthInfo.(credentials.TLSInfo); ok {
		c.TLS = &info.State
	}
	tokens := metadata.ValueFromIncomingContext(ctx, "x-consul-token")
	if len(tokens) > 0 {
		c.Token = Token(tokens[0])
	}
	if len(c.Token) > maxToken {
		return c, auth.conn, status.Errorf(codes.Unauthenticated, "the stream's x-consul-token is longer than %d bytes", maxToken)
	}
	return c, auth.conn, nil
}

// peerAddr returns the IP address of the other end; the zero Addr for a unix
// socket.
func clientAddr(from net.Addr) netip.Addr {
	if tcp, ok := from.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// The numbers of the fields of envoy.config.core.v3.Node that are read, and of
// the messages in them.
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

// nodeOf reads an encoded node and keeps of its metadata the strings of the given
// keys. Its errors are fit for a status; they do not repeat what they refuse.
func nodeOf(encoded []byte, keys []string, from net.Addr) (Node, error) {
	n := Node{Metadata: map[string]string{}, Peer: clientAddr(from)}
	err := wire.Fields(encoded, func(number protowire.Number, value []byte) error {
		var err error
		switch number {
		case nodeID:
			n.ID, err = nodeText("id", value)
		case nodeCluster:
			n.Cluster, err = nodeText("cluster", value)
		case nodeUserAgent:
			n.UserAgent, err = nodeText("user_agent_name", value)
		case nodeMetadata:
			err = n.readMetadata(value, keys)
		case nodeBuildVersion:
			err = n.readBuildVersion(value)
		}
		return err
	})
	return n, err
}

// readMetadata reads a google.protobuf.Struct.
func (n *Node) readMetadata(encoded []byte, keys []string) error {
	return wire.Fields(encoded, func(number protowire.Number, entry []byte) error {
		if number != structFields {
			return nil
		}
		var key string
		var value []byte
		err := wire.Fields(entry, func(number protowire.Number, part []byte) error {
			switch number {
			case mapKey:
				if i := slices.Index(keys, string(part)); i >= 0 {
					key = keys[i]
				}
			case mapValue:
				value = part
			}
			return nil
		})
		if err != nil || key == "" {
			return err
		}
		return wire.Fields(value, func(number protowire.Number, text []byte) error {
			if number != valueString || len(text) == 0 {
				return nil
			}
			n.Metadata[key], err = nodeText("metadata "+key, text)
			return err
		})
	})
}

// readBuildVersion reads an envoy.config.core.v3.BuildVersion.
func (n *Node) readBuildVersion(encoded []byte) error {
	return wire.Fields(encoded, func(number protowire.Number, value []byte) error {
		if number != buildVersionVersion {
			return nil
		}
		var v typev3.SemanticVersion
		if (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(value, &v) != nil {
			return wire.ErrDamaged
		}
		n.Major, n.Minor, n.Patch = v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch()
		return nil
	})
}

// nodeText reads what goes into logs and questions to Consul.
func nodeText(what string, value []byte) (string, error) {
	if len(value) > maxNodeText {
		return "", fmt.Errorf("the node's %s has more than %d bytes", what, maxNodeText)
	}
	text := string(value)
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", fmt.Errorf("the node's %s has characters that cannot be printed", what)
	}
	return text, nil
}
