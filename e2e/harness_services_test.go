//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/consul/api"
)

// serviceOptions describe one instance of a mesh service.
type serviceOptions struct {
	Name   string
	ID     string // Name when empty
	Port   int    // where the service listens on its host's loopback
	Consul *consulAgent
	Host   *host
	Envoy  string // the sidecar's version
	// SidecarPort is where the mesh reaches the instance; 21000 when 0. The
	// sidecar's admin port is 1000 above it.
	SidecarPort int
	Token       string
}

// registerService registers an instance with its sidecar at an agent and starts
// the sidecar. The checks begin as passing, and Consul asks every second.
func registerService(t *testing.T, o serviceOptions) *envoy {
	t.Helper()
	o.ID, o.SidecarPort = cmp.Or(o.ID, o.Name), cmp.Or(o.SidecarPort, 21000)
	if err := o.register(); err != nil {
		t.Fatalf("register %s: %v", o.ID, err)
	}
	sidecar := startEnvoy(t, envoyOptions{
		Name: "sidecar of " + o.ID, Host: o.Host, Consul: o.Consul, Envoy: o.Envoy, Token: o.Token,
		AdminPort: o.SidecarPort + 1000,
		Args:      []string{"-sidecar-for", o.ID},
	})
	sidecar.waitListener(t, o.SidecarPort)
	return sidecar
}

// register registers the instance, whose sidecar may run already.
func (o serviceOptions) register() error {
	return o.Consul.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: o.ID, Name: o.Name, Address: o.Host.IP.String(), Port: o.Port,
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{
			Address: o.Host.IP.String(),
			Port:    o.SidecarPort,
			Checks: api.AgentServiceChecks{{
				Name: "sidecar listens", TCP: o.Host.addr(o.SidecarPort), Interval: "1s", Status: api.HealthPassing,
			}},
		}},
	})
}

// seenRequest is a request as a service got it.
type seenRequest struct {
	Method, Host, Path string
	Header             http.Header
}

// echoService answers every HTTP request with "hello world" and remembers it.
type echoService struct {
	mu    sync.Mutex
	seen  map[string]seenRequest // by path
	reply http.Header            // of every answer
}

// startEcho serves on a port of a host's loopback and of its address.
func startEcho(t *testing.T, h *host, port int) *echoService {
	t.Helper()
	s := &echoService{seen: make(map[string]seenRequest)}
	serveHTTP(t, h, port, s)
	return s
}

// serveHTTP serves on a port of a host's loopback and of its address until the
// test ends.
func serveHTTP(t *testing.T, h *host, port int, handler http.Handler) {
	t.Helper()
	server := &http.Server{Handler: handler}
	listener := h.listen(t, fmt.Sprintf(":%d", port))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // ends with the test
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
}

// ServeHTTP answers "hello world". A path that begins with /load/ is not
// remembered.
func (s *echoService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	if !strings.HasPrefix(r.URL.Path, loadPrefix) {
		s.mu.Lock()
		s.seen[r.URL.Path] = seenRequest{Method: r.Method, Host: r.Host, Path: r.URL.Path, Header: r.Header.Clone()}
		maps.Copy(w.Header(), s.reply)
		s.mu.Unlock()
	}
	fmt.Fprintln(w, "hello world")
}

// setReply gives every answer headers from now on.
func (s *echoService) setReply(header http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reply = header
}

// request is the latest request for the path that the service got.
func (s *echoService) request(t *testing.T, path string) seenRequest {
	t.Helper()
	seen, ok := s.lookup(path)
	if !ok {
		t.Fatalf("the service has seen no request for %s", path)
	}
	return seen
}

// lookup is request where there may be none.
func (s *echoService) lookup(path string) (seenRequest, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen, ok := s.seen[path]
	return seen, ok
}

// startTCPEcho serves, on a port of a host, connections that get back "hello
// world" and then what they send, byte for byte: the test sees what reached the
// service.
func startTCPEcho(t *testing.T, h *host, port int) {
	t.Helper()
	serve(t, h.listen(t, fmt.Sprintf(":%d", port)), func(conn net.Conn) {
		if _, err := io.WriteString(conn, "hello world\n"); err != nil {
			return
		}
		_, _ = io.Copy(conn, conn) // ends with the connection
	})
}

// serve calls f for every connection, and closes it after; at the test's end it
// closes them all and waits for f.
func serve(t *testing.T, listener net.Listener, f func(net.Conn)) {
	t.Helper()
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	work.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				f(conn)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		listener.Close()
		work.Wait()
	})
}
