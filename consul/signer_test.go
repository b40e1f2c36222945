package consul

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/proto-public/pbconnectca"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/gateway"
)

// fakeConnectCA serves the signing of a fakeCA as Consul does.
type fakeConnectCA struct {
	pbconnectca.UnimplementedConnectCAServiceServer
	ca     *fakeCA
	tokens chan []string // of each question
}

func (s *fakeConnectCA) Sign(ctx context.Context, in *pbconnectca.SignRequest) (*pbconnectca.SignResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.tokens <- md.Get("x-consul-token")
	if block, _ := pem.Decode([]byte(in.Csr)); block == nil {
		return nil, status.Error(codes.InvalidArgument, "CSR is required") // whatever the token is
	}
	cert, err := s.ca.sign(ctx, agent{}, in.Csr)
	if err != nil {
		return nil, err
	}
	return &pbconnectca.SignResponse{CertPem: cert}, nil
}

// startConnectCA serves until the test ends, and returns the address.
func startConnectCA(t *testing.T, ca *fakeCA) (*fakeConnectCA, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &fakeConnectCA{ca: ca, tokens: make(chan []string, 100)}
	server := grpc.NewServer()
	pbconnectca.RegisterConnectCAServiceServer(server, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, l.Addr().String()
}

const tlsEntry = `[{"Kind": "ingress-gateway", "Name": "gateway", "TLS": {"Enabled": true},
	"Listeners": [{"Port": 8080, "Protocol": "http", "Services": [{"Name": "web"}]}]}]`

// TestSnapshotHasTheCertificateForClients takes a gateway through switching TLS
// on, while Consul refuses at first, and off again.
func TestSnapshotHasTheCertificateForClients(t *testing.T) {
	s, addr := startConnectCA(t, newFakeCA(t))
	s.ca.fail(status.Error(codes.PermissionDenied, "no"))
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newFakeGatewayWithInstances(t, "web")
	client := newTestClient(t, Config{HTTPAddr: c.url, GRPCAddr: addr, Getenv: func(name string) string {
		if name == "CONSUL_HTTP_TOKEN_FILE" {
			return token
		}
		return ""
	}})
	g := start(t, NewWatcher(client, WatcherOptions{}), "gateway")
	plain := g.next(t, anyOne)
	if plain.DownstreamLeaf != nil || len(s.tokens) != 0 {
		t.Errorf("without TLS there is a certificate, or %d questions for one", len(s.tokens))
	}

	c.set("/v1/config/ingress-gateway", reply{body: tlsEntry})
	refused := g.next(t, func(s *gateway.Snapshot) bool { return s.Entry.TLS.Enabled && len(s.Problems) > 0 })
	if refused.DownstreamLeaf != nil || refused.Leaf != plain.Leaf {
		t.Errorf("a refused certificate is there")
	}
	if got := refused.Problems[0].What; !strings.Contains(got, "give it service:write on the gateway") {
		t.Errorf("the problem is %q", got)
	}
	if diff := cmp.Diff([]string{"first"}, <-s.tokens); diff != "" {
		t.Errorf("token (-want +got):\n%s", diff)
	}

	if err := os.WriteFile(token, []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.ca.fail(nil)
	served := g.next(t, func(s *gateway.Snapshot) bool { return s.DownstreamLeaf != nil })
	if served.Leaf != served.DownstreamLeaf || len(served.Problems) > 0 {
		t.Errorf("the mesh is shown another certificate than clients, or there are problems: %v", served.Problems)
	}
	want := []string{"*.ingress.consul", "*.ingress.consul.", "*.ingress.dc1.consul", "*.ingress.dc1.consul."}
	if diff := cmp.Diff(want, served.DownstreamLeaf.Names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if _, err := tls.X509KeyPair([]byte(served.DownstreamLeaf.CertPEM), []byte(served.DownstreamLeaf.KeyPEM)); err != nil {
		t.Error(err)
	}
	var last []string
	for len(s.tokens) > 0 {
		last = <-s.tokens
	}
	if diff := cmp.Diff([]string{"second"}, last); diff != "" {
		t.Errorf("token (-want +got):\n%s", diff)
	}

	c.set("/v1/config/ingress-gateway", reply{body: strings.Replace(tlsEntry, "true", "false", 1)})
	if off := g.next(t, func(s *gateway.Snapshot) bool { return !s.Entry.TLS.Enabled }); off.DownstreamLeaf != nil || off.Leaf != plain.Leaf {
		t.Error("the certificate outlives TLS")
	}
}

func TestSignError(t *testing.T) {
	for code, want := range map[codes.Code]string{
		codes.ResourceExhausted: "csr_max_per_second",
		codes.Unavailable:       "consul's gRPC port at 10.0.0.1:8502: text; if the port has another address, set --consul-grpc-addr or CONSUL_GRPC_ADDR",
		codes.Canceled:          "consul's gRPC port at 10.0.0.1:8502: text",
		codes.Unimplemented:     "if the port has another address",
		codes.PermissionDenied:  "give it service:write on the gateway",
		codes.Unauthenticated:   "consul does not know Usher's token",
		codes.Internal:          "consul answered Internal: text",
	} {
		err := signError(status.Error(code, "text"), "dns:///10.0.0.1:8502", "token")
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", code, err, want)
		}
		passes := code == codes.ResourceExhausted || code == codes.Unavailable || code == codes.Canceled
		if errors.As(err, new(permanentError)) == passes {
			t.Errorf("%v: it lasts: %v", code, passes)
		}
		if err := signError(status.Error(code, "it says token"), "x", "token"); strings.Contains(err.Error(), "says token") {
			t.Errorf("%v shows the token: %v", code, err)
		}
	}
}

func TestGRPCAddressOfTheAgent(t *testing.T) {
	for _, tc := range []struct {
		http  string
		agent agent
		want  string
	}{
		{"10.0.0.1:8500", agent{}, "http://10.0.0.1:8502"},
		{"https://consul.example:8501", agent{}, "https://consul.example:8503"},
		{"10.0.0.1:8500", agent{grpcPort: 1, grpcTLSPort: 2}, "http://10.0.0.1:1"},
		{"https://10.0.0.1:8501", agent{grpcPort: 1, grpcTLSPort: 2}, "https://10.0.0.1:2"},
		{"https://10.0.0.1:8501", agent{grpcPort: 1}, "http://10.0.0.1:1"},
		{"10.0.0.1:8500", agent{grpcTLSPort: 2}, "https://10.0.0.1:2"},
		{"[::1]:8500", agent{}, "http://[::1]:8502"},
		{"unix:///run/consul.sock", agent{}, "http://localhost:8502"},
	} {
		if got := newTestClient(t, Config{HTTPAddr: tc.http}).grpcAddress(tc.agent).String(); got != tc.want {
			t.Errorf("%s, %+v: %s, want %s", tc.http, tc.agent, got, tc.want)
		}
	}
}

// TestSigningIsTriedAtTheStart has what Consul answers to a request for no service: it looks at the token first.
func TestSigningIsTriedAtTheStart(t *testing.T) {
	s, addr := startConnectCA(t, newFakeCA(t))
	client := newTestClient(t, Config{HTTPAddr: "http://consul:8500", GRPCAddr: addr, Getenv: vars{"CONSUL_HTTP_TOKEN": "usher's"}.get})
	for code, want := range map[codes.Code]string{
		codes.InvalidArgument:    "",
		codes.PermissionDenied:   "give it service:write on the gateway",
		codes.Unauthenticated:    "consul does not know Usher's token",
		codes.FailedPrecondition: "see the log of Consul's servers",
		codes.Unimplemented:      "if the port has another address, set --consul-grpc-addr",
	} {
		s.ca.fail(status.Error(code, "no"))
		target, err := client.TrySigning(t.Context())
		if want == "" && (err != nil || !strings.HasSuffix(target, addr)) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v: %q, %v, want %q", code, target, err, want)
		}
		if got := <-s.tokens; len(got) != 1 || got[0] != "usher's" {
			t.Errorf("%v: the tokens are %q", code, got)
		}
	}
}
