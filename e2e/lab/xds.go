//go:build e2e

package lab

import (
	"cmp"
	"context"
	"net"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
)

// XDSPort is an xDS port that fake Envoys connect to.
type XDSPort struct {
	From    *Host
	Network string                           // "tcp" when empty
	Address string                           // Usher's default when empty
	TLS     credentials.TransportCredentials // nil for plain text
}

// Dial makes a new connection, which opens with its first stream.
func (p XDSPort) Dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	p.Network, p.Address = cmp.Or(p.Network, "tcp"), cmp.Or(p.Address, "127.0.0.1:18000")
	if p.TLS == nil {
		p.TLS = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient("passthrough:///"+p.Address,
		grpc.WithTransportCredentials(p.TLS),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return p.From.Dial(ctx, p.Network, address)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// The names of the resources with the gateway's private keys: towards the mesh, and for clients.
const (
	LeafSecret    = "usher/leaf"
	ServingSecret = "usher/serving"
)

// ConnectFakeEnvoy opens a stream as the instance that StartGateway registers, with
// a token or none.
func ConnectFakeEnvoy(t *testing.T, conn grpc.ClientConnInterface, p fakeenvoy.Protocol, token string) *fakeenvoy.Envoy {
	t.Helper()
	return fakeenvoy.Connect(t, conn, p, fakeenvoy.Options{
		Node:  &corev3.Node{Id: "ingress-gateway", Cluster: "ingress-gateway"},
		Token: token,
	})
}

// SubscribeToAll subscribes to all resources of a gateway, the private key included.
func SubscribeToAll(e *fakeenvoy.Envoy) {
	for _, typeURL := range []string{
		resource.ClusterType, resource.ListenerType, resource.EndpointType, resource.RouteType,
	} {
		e.Subscribe(typeURL)
	}
	e.Subscribe(resource.SecretType, LeafSecret)
}

// FetchPrivateKey subscribes to the gateway's certificate alone, and returns its
// private key.
func FetchPrivateKey(t *testing.T, e *fakeenvoy.Envoy) string {
	t.Helper()
	return FetchKeyOf(t, e, LeafSecret)
}

// FetchKeyOf subscribes to a secret with a certificate, and returns its private key.
func FetchKeyOf(t *testing.T, e *fakeenvoy.Envoy, name string) string {
	t.Helper()
	e.Subscribe(resource.SecretType, name)
	var secret tlsv3.Secret
	if err := proto.Unmarshal(e.ExpectAck(resource.SecretType, name).Bodies[0], &secret); err != nil {
		t.Fatal(err)
	}
	key := secret.GetTlsCertificate().GetPrivateKey().GetInlineString()
	if key == "" {
		t.Fatal("the certificate came without a key")
	}
	return key
}
