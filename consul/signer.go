package consul

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/proto-public/pbconnectca"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
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
	target  *target // that conn was opened for
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
	ctx = withToken(ctx, token)
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
	of := s.client.targets.current()
	if s.conn != nil && s.target == of && s.address == at {
		return s.conn, nil
	}
	s.close()
	target, err := of.grpc, error(nil)
	if target.name == "" {
		target, err = s.client.grpcAt(at)
	}
	if err != nil {
		return nil, err
	}
	s.target, s.address = of, at
	s.conn, err = target.dial(grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxSignedSize)), grpc.WithDisableServiceConfig())
	return s.conn, err
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
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled: // Canceled: another call has closed the connection
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
