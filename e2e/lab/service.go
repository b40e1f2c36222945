//go:build e2e

package lab

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

// ServiceOptions describe one instance of a mesh service.
type ServiceOptions struct {
	Name   string
	ID     string // Name when empty
	Port   int    // where the service listens on its host's loopback
	Consul *Consul
	Host   *Host
	Envoy  string // the sidecar's version
	// SidecarPort is where the mesh reaches the instance; 21000 when 0. The
	// sidecar's admin port is 1000 above it.
	SidecarPort int
	Token       string
}

// RegisterService registers an instance with its sidecar at an agent and starts
// the sidecar. The checks begin as passing, and run every second.
func RegisterService(t *testing.T, o ServiceOptions) *Envoy {
	t.Helper()
	o.ID, o.SidecarPort = cmp.Or(o.ID, o.Name), cmp.Or(o.SidecarPort, 21000)
	if err := o.Register(); err != nil {
		t.Fatalf("register %s: %v", o.ID, err)
	}
	sidecar := StartEnvoy(t, EnvoyOptions{
		Name: "sidecar of " + o.ID, Host: o.Host, Consul: o.Consul, Envoy: o.Envoy, Token: o.Token,
		AdminPort: o.SidecarPort + 1000,
		Args:      []string{"-sidecar-for", o.ID},
	})
	sidecar.WaitListener(t, o.SidecarPort)
	return sidecar
}

// Register registers the instance, whose sidecar may run already.
func (o ServiceOptions) Register() error {
	return o.Consul.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: o.ID, Name: o.Name, Address: o.Host.IP.String(), Port: o.Port,
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{
			Address: o.Host.IP.String(),
			Port:    o.SidecarPort,
			Checks: api.AgentServiceChecks{{
				Name: "sidecar listens", TCP: o.Host.Addr(o.SidecarPort), Interval: "1s", Status: api.HealthPassing,
			}},
		}},
	})
}

// ReceivedRequest is a request as a service got it.
type ReceivedRequest struct {
	Method, Host, Path string
	Header             http.Header
}

// EchoService answers every HTTP request with "hello world" and remembers it.
type EchoService struct {
	mu    sync.Mutex
	seen  map[string]ReceivedRequest // by path
	reply http.Header                // of every answer
}

// StartEcho serves on a port of a host's loopback and of its address.
func StartEcho(t *testing.T, h *Host, port int) *EchoService {
	t.Helper()
	s := &EchoService{seen: make(map[string]ReceivedRequest)}
	ServeHTTP(t, h, port, s)
	return s
}

// ServeHTTP serves on a port of a host's loopback and of its address until the
// test ends.
func ServeHTTP(t *testing.T, h *Host, port int, handler http.Handler) {
	t.Helper()
	server := &http.Server{Handler: handler}
	listener := h.Listen(t, fmt.Sprintf(":%d", port))
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

// Paths that an EchoService answers otherwise.
const (
	ClientPath  = "/client"  // with the X-Forwarded-For that it got
	RefusedPath = "/refused" // with 400
)

// ServeHTTP answers "hello world". A path that begins with /load/ is not
// remembered.
func (s *EchoService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	if !strings.HasPrefix(r.URL.Path, LoadPrefix) {
		s.mu.Lock()
		s.seen[r.URL.Path] = ReceivedRequest{Method: r.Method, Host: r.Host, Path: r.URL.Path, Header: r.Header.Clone()}
		maps.Copy(w.Header(), s.reply)
		s.mu.Unlock()
	}
	switch r.URL.Path {
	case ClientPath:
		fmt.Fprintln(w, r.Header.Get("X-Forwarded-For"))
	case RefusedPath:
		http.Error(w, "refused", http.StatusBadRequest)
	default:
		fmt.Fprintln(w, "hello world")
	}
}

// SetReply gives every answer headers from now on.
func (s *EchoService) SetReply(header http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reply = header
}

// Received is the latest request for the path that the service got.
func (s *EchoService) Received(t *testing.T, path string) ReceivedRequest {
	t.Helper()
	seen, ok := s.Lookup(path)
	if !ok {
		t.Fatalf("the service has seen no request for %s", path)
	}
	return seen
}

// Lookup is Received for a request that may be missing.
func (s *EchoService) Lookup(path string) (ReceivedRequest, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen, ok := s.seen[path]
	return seen, ok
}

// StartTCPEcho serves, on a port of a host, connections that get back "hello
// world" and then what they send, byte for byte: the test sees what reached the
// service.
func StartTCPEcho(t *testing.T, h *Host, port int) {
	t.Helper()
	ServeTCP(t, h.Listen(t, fmt.Sprintf(":%d", port)), func(conn net.Conn) {
		if _, err := io.WriteString(conn, "hello world\n"); err != nil {
			return
		}
		_, _ = io.Copy(conn, conn) // ends with the connection
	})
}

// ServeTCP calls f for every connection, and closes it after; at the test's end it
// closes them all and waits for f.
func ServeTCP(t *testing.T, listener net.Listener, f func(net.Conn)) {
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

// ServeNamed runs a service that sends its name.
func ServeNamed(t *testing.T, h *Host, port int, name string) {
	t.Helper()
	ServeHTTP(t, h, port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(ServedBy, name)
		w.Header().Set(SeenMark, r.Header.Get(SeenMark))
		w.Header().Set(SeenPath, r.URL.Path)
		fmt.Fprintln(w, "hello world")
	}))
}

// ServedBy is the header in which ServeNamed sends its name.
const ServedBy = "Served-By"

// HasReceived reports whether the service has got a request for the path.
func (s *EchoService) HasReceived(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.seen[path]
	return ok
}

// The headers in which ServeNamed reports the request.
const (
	SeenMark = "X-Seen-Mark"
	SeenPath = "X-Seen-Path"
)
