package consul

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/proto-public/pbconnectca"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	experimental "google.golang.org/grpc/experimental/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// The default gRPC ports of an agent (https://developer.hashicorp.com/consul/docs/reference/architecture/ports).
	defaultGRPCPort    = 8502
	defaultGRPCTLSPort = 8503

	signTimeout   = 10 * time.Second // of one signature
	maxSignedSize = 1 << 20          // of the response with the certificate, which usually has a few KiB
)

// signer has Consul sign certificates (hashicorp.consul.connectca.ConnectCAService, in
// https://github.com/hashicorp/consul/tree/main/proto-public/pbconnectca), for all gateways over one connection. It
// closes the connection after the last release.
type signer struct {
	client *Client

	mu      sync.Mutex
	users   int
	address address // of the agent that conn was opened for; conn leads there unless the client's settings say where
	conn    *grpc.ClientConn
}

// acquire keeps the connection open until release.
func (s *signer) acquire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users++
}

func (s *signer) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 {
		s.close()
	}
}

// close closes the connection. The caller holds mu.
func (s *signer) close() {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

// sign returns the certificate for a request in PEM, with the intermediate ones. a is the agent that signs, if the
// client's settings have no address.
func (s *signer) sign(ctx context.Context, a agent, csr string) (string, error) {
	conn, err := s.connection(s.client.grpcAddress(a))
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	token, err := s.client.tokens.current(ctx)
	if err != nil {
		return "", err
	}
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-consul-token", string(token))
	}
	res, err := pbconnectca.NewConnectCAServiceClient(conn).Sign(ctx, &pbconnectca.SignRequest{Csr: csr})
	if status.Code(err) == codes.Unauthenticated {
		s.client.tokens.reportUnknown(token)
	}
	if err != nil {
		return "", signError(err, conn.Target(), string(token))
	}
	return res.CertPem, nil
}

// connection returns the connection. The first call opens it.
func (s *signer) connection(at address) (*grpc.ClientConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && s.address == at {
		return s.conn, nil
	}
	s.close()
	target, err := s.client.grpc, error(nil)
	if target.name == "" {
		target, err = s.client.grpcAt(at)
	}
	if err != nil {
		return nil, err
	}
	creds := insecure.NewCredentials()
	if target.tls != nil {
		creds = reloadingTLS{experimental.NewTLSWithALPNDisabled(target.tls()), target.tls}
	}
	pauses := backoff.Config{BaseDelay: firstPause, Multiplier: 2, Jitter: 0.5, MaxDelay: longestPause}
	s.address = at
	s.conn, err = grpc.NewClient(target.name,
		grpc.WithTransportCredentials(creds),
		grpc.WithUserAgent("usher"),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxSignedSize)),
		grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pauses, MinConnectTimeout: signTimeout}),
	)
	return s.conn, err
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

// permanentError is an error that does not end by itself: an administrator has to correct its cause.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

// errBusy means that the certificate authority signs no more at the moment.
var errBusy = errors.New("consul's certificate authority has signed too many certificates (csr_max_per_second); Usher tries again; raise the limit if this lasts")

// signError returns what is wrong and what to do.
func signError(err error, target, token string) error {
	target = strings.TrimPrefix(target, "dns:///")
	code, text := status.Code(err), quote(status.Convert(err).Message(), token)
	elsewhere := fmt.Sprintf("consul's gRPC port at %s: %s; if the port has another address, set --consul-grpc-addr or %s", target, text, api.GRPCAddrEnvName)
	switch code {
	case codes.ResourceExhausted:
		return fmt.Errorf("%w (%s)", errBusy, text)
	case codes.Unavailable, codes.DeadlineExceeded:
		return errors.New(elsewhere)
	case codes.Unimplemented:
		return permanentError{errors.New(elsewhere)}
	case codes.PermissionDenied:
		return permanentError{fmt.Errorf("consul does not sign with Usher's token (%s); give it service:write on the gateway", text)}
	case codes.Unauthenticated:
		return permanentError{fmt.Errorf("consul does not know Usher's token (%s); give Usher a token with service:write on the gateway", text)}
	}
	return permanentError{fmt.Errorf("consul answered %s: %s; see the log of Consul's servers", code, text)}
}

// grpcAddress returns the address of the agent's gRPC port if the settings have none: on the host of the HTTP API, with
// TLS if that has TLS or if the agent has no other.
func (c *Client) grpcAddress(a agent) address {
	plain, secure := a.grpcPort, a.grpcTLSPort
	if plain == 0 && secure == 0 {
		plain, secure = defaultGRPCPort, defaultGRPCTLSPort
	}
	at, port := address{scheme: "http"}, plain
	if secure != 0 && (plain == 0 || c.address.scheme == "https") {
		at, port = address{scheme: "https"}, secure
	}
	host := "localhost"
	if c.address.scheme != "unix" {
		host = (&url.URL{Host: c.address.host}).Hostname()
	}
	at.host = net.JoinHostPort(host, strconv.Itoa(port))
	return at
}
