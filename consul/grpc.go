package consul

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	experimental "google.golang.org/grpc/experimental/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/retry"
)

// The default gRPC ports of an agent (https://developer.hashicorp.com/consul/docs/reference/architecture/ports).
const (
	defaultGRPCPort    = 8502
	defaultGRPCTLSPort = 8503
)

// DialGRPC returns a connection to Consul's gRPC port, which opens with its first call. The port is where the client's
// settings say. If they do not, it is on the host of the HTTP API that is in use, with the number that the agent reports: then Consul has
// to answer. The connection carries no token.
func (c *Client) DialGRPC(ctx context.Context, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	target := c.targets.current().grpc
	if target.name == "" {
		a, err := c.agent(ctx)
		if err == nil {
			target, err = c.grpcAt(c.grpcAddress(*a))
		}
		if err != nil {
			return nil, fmt.Errorf("consul at %s does not say which gRPC port it has: %w", c.Address(), err)
		}
	}
	return target.dial(options...)
}

// WithToken returns a context for calls on such a connection with Usher's own token.
func (c *Client) WithToken(ctx context.Context) (context.Context, error) {
	token, err := c.tokens.current(ctx)
	return withToken(ctx, token), err
}

// withToken adds a token to the calls with a context; "" is none.
func withToken(ctx context.Context, token gateway.Secret) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "x-consul-token", string(token))
}

// agent reads the agent's configuration; the zero value if the agent refuses to return it.
func (c *Client) agent(ctx context.Context) (*agent, error) {
	q := query{queryType: agentType}
	r, err := c.query(ctx, q, 0, 0)
	switch outcomeOf(err) {
	case outcomeOK:
	case outcomeDenied, outcomeMissing:
		r = response{body: []byte("{}"), refused: true}
	default:
		return nil, err
	}
	return valueOf[agent](q, r)
}

// dial returns a connection, which opens with its first call.
func (t grpcTarget) dial(options ...grpc.DialOption) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if t.tls != nil {
		creds = reloadingTLS{experimental.NewTLSWithALPNDisabled(t.tls()), t.tls}
	}
	pauses := backoff.Config{BaseDelay: retry.FirstPause, Multiplier: 2, Jitter: 0.5, MaxDelay: retry.LongestPause}
	return grpc.NewClient(t.name, append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithUserAgent("usher"),
		grpc.WithMaxHeaderListSize(maxHeader),
		// A connection on which Consul does not answer ends within five seconds. Consul's server refuses shorter times than 15 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pauses, MinConnectTimeout: signTimeout}),
	}, options...)...)
}

// reloadingTLS are credentials that read the current TLS settings for each connection. They do not require ALPN, as
// gRPC's usual ones do: Consul 1.15 does not announce HTTP/2 by ALPN.
type reloadingTLS struct {
	credentials.TransportCredentials
	config func() *tls.Config
}

// ClientHandshake implements credentials.TransportCredentials.
func (l reloadingTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return experimental.NewTLSWithALPNDisabled(l.config()).ClientHandshake(ctx, authority, conn)
}

// Clone implements credentials.TransportCredentials.
func (l reloadingTLS) Clone() credentials.TransportCredentials {
	return reloadingTLS{l.TransportCredentials.Clone(), l.config}
}

// grpcAddress returns the address of the agent's gRPC port if the settings have none: on the host of the HTTP API, with
// TLS if that has TLS or if the agent has no other.
func (c *Client) grpcAddress(a agent) address {
	plain, secure := a.grpcPort, a.grpcTLSPort
	if plain == 0 && secure == 0 {
		plain, secure = defaultGRPCPort, defaultGRPCTLSPort
	}
	at, port := address{scheme: "http"}, plain
	api := c.targets.current().http
	if secure != 0 && (plain == 0 || api.scheme == "https") {
		at, port = address{scheme: "https"}, secure
	}
	host := "localhost"
	if api.scheme != "unix" {
		host = (&url.URL{Host: api.host}).Hostname()
	}
	at.host = net.JoinHostPort(host, strconv.Itoa(port))
	return at
}
