package consul

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"
)

// relay passes TCP connections on to a server. cut makes those that are open half-open: nothing of the client or the server
// arrives any more, not even at the kernel, as if packets were dropped. Connections that are opened later work.
type relay struct {
	listener net.Listener
	server   string
	work     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	open   map[net.Conn]bool
}

func startRelay(t *testing.T, server string) *relay {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: listener, server: server, open: map[net.Conn]bool{}}
	r.work.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			r.work.Go(func() { r.pass(conn) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		r.mu.Lock()
		r.closed = true
		for conn := range r.open {
			conn.Close()
		}
		r.mu.Unlock()
		r.work.Wait()
	})
	return r
}

func (r *relay) pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", r.server)
	if err != nil {
		return
	}
	defer server.Close()
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	r.open[client], r.open[server] = true, true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.open, client)
		delete(r.open, server)
	}()
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(server, client); server.Close() })
	both.Go(func() { _, _ = io.Copy(client, server); client.Close() })
	both.Wait()
}

// dropAll is a filter that drops every packet.
var dropAll = unix.SockFprog{Len: 1, Filter: &unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}}

// cut makes the open connections half-open. It returns how many there are.
func (r *relay) cut(t *testing.T) (n int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for conn := range r.open {
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if failed := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &dropAll)
		}); failed != nil || err != nil {
			t.Fatal(errors.Join(failed, err))
		}
		n++
	}
	return n
}

// startConsulServer starts a fake Consul over HTTP, or over HTTPS and HTTP/2, that ends an answer at a timeout; 0: at none.
func startConsulServer(t *testing.T, secure bool, timeout time.Duration) (*fakeConsul, *httptest.Server) {
	t.Helper()
	c := &fakeConsul{replies: map[string]reply{}, sent: map[string]bool{}, handled: map[string]bool{}, changed: make(chan struct{})}
	server := httptest.NewUnstartedServer(c)
	server.EnableHTTP2 = true
	server.Config.WriteTimeout = timeout
	if secure {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return c, server
}

// TestAnAgentThatEndsLongQueriesDoesNotFail has an agent that ends each answer after a while, as http_config.write_timeout
// of Consul does: over HTTP/2 at once, and else when the answer is there. Nothing fails, and changes arrive.
func TestAnAgentThatEndsLongQueriesDoesNotFail(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) {
			t.Parallel()
			const timeout = 50 * time.Millisecond
			c, server := startConsulServer(t, secure, timeout)
			c.set(servicesPath, servicesAnswer("web"))
			log := &logRecorder{}
			client := newTestClient(t, Config{HTTPAddr: server.URL, Logger: slog.New(log), Getenv: vars{"CONSUL_HTTP_SSL_VERIFY": "false"}.get})
			m := newWatchManager(client, 10*time.Minute)
			s := m.subscribe()
			defer s.close()
			subscribeAlso(s, servicesQuery)
			for i := range 5 {
				until(t, func() bool { return c.waits(servicesPath) })
				<-time.After(2 * timeout) // the server's clock, and not an event
				names := []string{"web", "api", "shop", "db", "cart", "mail"}[:i+2]
				c.set(servicesPath, servicesAnswer(names...))
				until(t, func() bool {
					v, _ := resultOf(s, servicesQuery).value.(*gatewayServices)
					return v != nil && len(v.services) == len(names)
				})
			}
			if failed := testutil.ToFloat64(client.metrics.queries.WithLabelValues("gateway-services", string(outcomeUnreachable))); failed != 0 || log.has("WARN") {
				t.Errorf("%v queries have failed, and the log has %q", failed, log.take())
			}
		})
	}
}

// noticedWithin is how long a half-open connection may stay unnoticed, on a machine that is busy.
const noticedWithin = 25 * time.Second

// TestHalfOpenConnectionsAreNoticed makes connections half-open in the middle of a blocking query, and before a request. The
// query is sent again on a new connection in seconds, and what changed meanwhile arrives, without a failure.
func TestHalfOpenConnectionsAreNoticed(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) {
			t.Parallel()
			c, server := startConsulServer(t, secure, 0)
			u, _ := url.Parse(server.URL)
			relay := startRelay(t, u.Host)
			c.set(servicesPath, servicesAnswer("web"))
			log := &logRecorder{}
			client := newTestClient(t, Config{
				HTTPAddr: u.Scheme + "://" + relay.listener.Addr().String(), Logger: slog.New(log),
				Getenv: vars{"CONSUL_HTTP_SSL_VERIFY": "false"}.get,
			})
			t.Cleanup(client.aclHTTP.CloseIdleConnections)
			m := newWatchManager(client, 10*time.Minute)
			s := m.subscribe()
			defer s.close()
			subscribeAlso(s, servicesQuery)
			until(t, func() bool { return c.waits(servicesPath) })

			if _, err := client.queryWith(t.Context(), client.aclHTTP); err != nil { // its connection stays idle
				t.Fatal(err)
			}

			if relay.cut(t) == 0 {
				t.Fatal("there is no connection")
			}
			began := time.Now()
			request := make(chan error, 1)
			go func() {
				_, err := client.queryWith(t.Context(), client.aclHTTP)
				request <- err
			}()
			c.set(servicesPath, servicesAnswer("web", "api"))
			untilWithin(t, noticedWithin, func() bool {
				v, _ := resultOf(s, servicesQuery).value.(*gatewayServices)
				return v != nil && len(v.services) == 2
			})
			t.Logf("half-open in the middle of a blocking query: the change arrived after %v", time.Since(began).Round(100*time.Millisecond))
			if resultOf(s, servicesQuery).err != nil || log.has("WARN") {
				t.Errorf("the query fails: %v, %q", resultOf(s, servicesQuery).err, log.take())
			}
			select {
			case err := <-request:
				t.Logf("half-open before a request: it ended after %v (%v)", time.Since(began).Round(100*time.Millisecond), err)
			case <-time.After(noticedWithin):
				t.Errorf("a request on a half-open connection has not ended after %v", noticedWithin)
			}
			if _, err := client.queryWith(t.Context(), client.aclHTTP); err != nil {
				t.Errorf("the next request fails: %v", err)
			}
		})
	}
}

// queryWith sends a query that does not block, without a timeout, with one of the client's HTTP clients.
func (c *Client) queryWith(ctx context.Context, client *http.Client) (response, error) {
	return c.send(ctx, client, servicesQuery, 0, 0)
}

// waits reports whether a query for the path waits for a change.
func (c *fakeConsul) waits(path string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.handled[path]
}

// untilWithin is until with another deadline.
func untilWithin(t *testing.T, deadline time.Duration, f func() bool) {
	t.Helper()
	end := time.After(deadline)
	for !f() {
		select {
		case <-end:
			t.Fatalf("not within %v", deadline)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// TestAHalfOpenConnectionToTheSignerIsNoticed makes the connection half-open over which certificates are signed.
func TestAHalfOpenConnectionToTheSignerIsNoticed(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	files := newTLSDir(t)
	files.write(t, i)
	addr, stop := secureConnectCA(t, "127.0.0.1:0", i.serverOf(t))
	defer stop()
	relay := startRelay(t, addr)
	s := &signer{client: newTestClient(t, Config{GRPCAddr: "https://" + relay.listener.Addr().String(), Getenv: files.env(true).get})}
	s.acquire()
	defer s.release()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := newCSR(certRequest{uri: "spiffe://x"}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.sign(t.Context(), agent{}, csr); err != nil {
		t.Fatal(err)
	}
	if relay.cut(t) == 0 {
		t.Fatal("there is no connection")
	}
	began := time.Now()
	failed := 0
	untilWithin(t, noticedWithin, func() bool {
		_, err := s.sign(t.Context(), agent{}, csr)
		if err != nil && !strings.Contains(err.Error(), "gRPC port") {
			t.Error(err)
		}
		if err != nil {
			failed++
		}
		return err == nil
	})
	t.Logf("a certificate is signed %v after the connection was half-open, at the attempt %d", time.Since(began).Round(100*time.Millisecond), failed+1)
}
