//go:build e2e

package e2e

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/consul/proto-public/pbconnectca"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/e2e/lab"
)

// signerFault is a way in which Consul's certificate authority does not sign.
type signerFault struct {
	name string
	sign func(ctx context.Context) (certificate string, err error)
}

var signerFaults = []signerFault{
	{"hang", func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() }},
	failing(codes.Unavailable), failing(codes.Internal), failing(codes.ResourceExhausted), failing(codes.PermissionDenied),
	failing(codes.Unauthenticated), failing(codes.Unimplemented),
	{"empty certificate", func(context.Context) (string, error) { return "", nil }},
	{"garbage", func(context.Context) (string, error) { return "<html>It works!</html>", nil }},
}

func failing(code codes.Code) signerFault {
	return signerFault{code.String(), func(context.Context) (string, error) { return "", status.Error(code, "something broke") }}
}

// signerProxy stands in front of Consul's certificate authority.
type signerProxy struct {
	pbconnectca.UnimplementedConnectCAServiceServer

	URL    string // for CONSUL_GRPC_ADDR
	consul pbconnectca.ConnectCAServiceClient

	mu    sync.Mutex
	fault *signerFault
	over  context.Context // of the fault
	end   context.CancelFunc
	hits  int // by the fault
	good  int // signatures since it was cleared
}

// startSignerProxy serves on a host's loopback until the test ends.
func startSignerProxy(t *testing.T, h *lab.Host, a *lab.Consul) *signerProxy {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(a.GRPCAddr, "http://"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return a.Host.Dial(ctx, "tcp", address)
		}))
	if err != nil {
		t.Fatal(err)
	}
	listener := h.Listen(t, "127.0.0.1:0")
	p := &signerProxy{URL: "http://" + listener.Addr().String(), consul: pbconnectca.NewConnectCAServiceClient(conn)}
	server := grpc.NewServer()
	pbconnectca.RegisterConnectCAServiceServer(server, p)
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(listener) }) // ends with the test
	t.Cleanup(func() {
		p.clear()
		server.Stop()
		work.Wait()
		conn.Close()
	})
	return p
}

// Sign implements pbconnectca.ConnectCAServiceServer.
func (p *signerProxy) Sign(ctx context.Context, r *pbconnectca.SignRequest) (*pbconnectca.SignResponse, error) {
	p.mu.Lock()
	fault, over := p.fault, p.over
	if fault != nil {
		p.hits++
	}
	p.mu.Unlock()
	if fault != nil {
		ctx, cancel := lab.MergeContexts(over, ctx)
		defer cancel()
		certificate, err := fault.sign(ctx)
		return &pbconnectca.SignResponse{CertPem: certificate}, err
	}
	from, _ := metadata.FromIncomingContext(ctx)
	answer, err := p.consul.Sign(metadata.NewOutgoingContext(ctx, metadata.MD{"x-consul-token": from.Get("x-consul-token")}), r)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.good++
	}
	return answer, err
}

// inject begins a fault, clear ends it.
func (p *signerProxy) inject(f signerFault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.hits = &f, 0
	p.over, p.end = context.WithCancel(context.Background())
}

func (p *signerProxy) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault != nil {
		p.fault, p.good = nil, 0
		p.end()
	}
}

// counts returns how many requests the fault has hit, and how many signatures
// there were since it was cleared.
func (p *signerProxy) counts() (hits, good int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hits, p.good
}

var errNotYet = errors.New("not yet")
