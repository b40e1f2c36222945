package xds

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// Node is an Envoy as it describes itself in the first request of its stream.
type Node struct {
	// ID and Cluster are --service-node and --service-cluster.
	ID, Cluster string
	// Metadata holds those fields of the node's metadata that are strings:
	// node_name, namespace and partition in Consul's bootstraps.
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
	// TLS is nil for a plaintext connection.
	TLS *tls.ConnectionState
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

// callerOf reads the caller from a stream's context.
func callerOf(ctx context.Context) Caller {
	var c Caller
	if tokens := metadata.ValueFromIncomingContext(ctx, "x-consul-token"); len(tokens) > 0 {
		c.Token = Token(tokens[0])
	}
	if p, ok := peer.FromContext(ctx); ok {
		c.Peer = p.Addr
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			c.TLS = &info.State
		}
	}
	return c
}

// nodeOf reads a node from the first request of a stream.
func nodeOf(n *corev3.Node, from net.Addr) Node {
	version := n.GetUserAgentBuildVersion().GetVersion()
	node := Node{
		ID:        n.GetId(),
		Cluster:   n.GetCluster(),
		Metadata:  map[string]string{},
		UserAgent: n.GetUserAgentName(),
		Major:     version.GetMajorNumber(),
		Minor:     version.GetMinorNumber(),
		Patch:     version.GetPatch(),
	}
	for key, value := range n.GetMetadata().GetFields() {
		if text := value.GetStringValue(); text != "" {
			node.Metadata[key] = text
		}
	}
	if tcp, ok := from.(*net.TCPAddr); ok {
		node.Peer = tcp.AddrPort().Addr().Unmap()
	}
	return node
}
