package main

import (
	"bufio"
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/xds"
)

// startAdmin serves the admin port until the test ends.
func startAdmin(t *testing.T, log io.Writer, c readinessChecker) string {
	t.Helper()
	a, err := newAdmin(t.Context(), "127.0.0.1:0", slog.New(slog.NewTextHandler(log, nil)), prometheus.NewRegistry(), c)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- a.run() }()
	t.Cleanup(func() {
		a.stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return a.listener.Addr().String()
}

func dialAdmin(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

// ask makes a request on an open connection, and returns the answer's status and
// headers.
func ask(conn net.Conn, path string) (int, http.Header, error) {
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: usher\r\n\r\n"); err != nil {
		return 0, nil, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	_, err = io.ReadAll(response.Body)
	return response.StatusCode, response.Header, err
}

// TestIdleConnectionsAreClosedAtTheAdminPort opens many connections without a
// request, and some that were used once.
func TestIdleConnectionsAreClosedAtTheAdminPort(t *testing.T) {
	addr := startAdmin(t, io.Discard, &fakeChecker{})
	used := dialAdmin(t, addr)
	if _, _, err := ask(used, "/healthz"); err != nil {
		t.Fatal(err)
	}
	first := dialAdmin(t, addr)
	for range 5 * maxHTTPConnections {
		dialAdmin(t, addr)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		code, header, err := ask(dialAdmin(t, addr), path)
		if err != nil || code != http.StatusOK {
			t.Fatalf("%s: %v %v", path, code, err)
		}
		if got := header.Get("X-Content-Type-Options"); got != "nosniff" {
			t.Errorf("%s: X-Content-Type-Options is %q", path, got)
		}
	}
	for name, conn := range map[string]net.Conn{"the one that was used": used, "the one that said nothing": first} {
		if _, err := conn.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: %v, want it closed", name, err)
		}
	}
}

// The connection that has been idle for longest makes room. If none is idle, the
// oldest one does.
func TestIdleConnectionIsClosedFirst(t *testing.T) {
	c := &connLimiter{limit: 3}
	conns := map[string]net.Conn{}
	closed := func(name string) bool {
		err := conns[name].SetDeadline(time.Time{})
		return err != nil
	}
	note := func(name string, state http.ConnState) {
		if conns[name] == nil {
			conns[name], _ = net.Pipe()
		}
		c.track(conns[name], state)
	}
	want := func(names string) {
		t.Helper()
		var got string
		for _, name := range []string{"a", "b", "c", "d", "e", "f", "g"} {
			if conns[name] != nil && !closed(name) {
				got += name
			}
		}
		if got != names {
			t.Errorf("open are %s, want %s", got, names)
		}
	}
	note("a", http.StateNew)
	note("a", http.StateActive)
	note("b", http.StateNew)
	note("c", http.StateNew)
	want("abc")
	note("d", http.StateNew)
	want("acd")
	note("b", http.StateClosed)
	note("c", http.StateActive)
	note("c", http.StateIdle)
	note("e", http.StateNew)
	want("ace")
	note("c", http.StateActive)
	note("e", http.StateActive)
	note("f", http.StateNew)
	want("cef")
	note("c", http.StateClosed)
	note("g", http.StateNew)
	want("cefg") // c was closed by its server, not here
}

func TestErrorsOfTheAdminServerAreLogged(t *testing.T) {
	var log syncBuffer
	a, err := newAdmin(t.Context(), "127.0.0.1:0", slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry(), &fakeChecker{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	if log.String() != "" {
		t.Errorf("on loopback it says %s", log.String())
	}
	a.server.ErrorLog.Print("http: Accept error")
	if got := log.String(); !strings.Contains(got, `level=WARN msg="http: Accept error" part=admin`) {
		t.Errorf("logged %q", got)
	}
}

func TestAdminPortBeyondLoopbackIsLogged(t *testing.T) {
	var log syncBuffer
	a, err := newAdmin(t.Context(), "0.0.0.0:0", slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry(), &fakeChecker{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	if got := log.String(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, "reachable beyond loopback") || strings.Count(got, "\n") != 1 {
		t.Errorf("logged %q, want one line", got)
	}
}

func TestAdminPortListsTheConnectedEnvoys(t *testing.T) {
	a, err := newAdmin(t.Context(), "127.0.0.1:0", slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &fakeChecker{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	var nodes []xds.Node
	a.addEnvoys(func() []xds.Node { return nodes })
	list := func() string {
		var answer httptest.ResponseRecorder
		answer.Body = new(bytes.Buffer)
		a.server.Handler.ServeHTTP(&answer, httptest.NewRequest(http.MethodGet, envoysPath, nil))
		return answer.Body.String()
	}
	if got := list(); got != "[]\n" {
		t.Errorf("without Envoys: %s", got)
	}
	nodes = []xds.Node{
		{ID: "edge-2", Cluster: "edge", Peer: netip.MustParseAddr("10.0.0.2"), Major: 1, Minor: 36, Patch: 2},
		{ID: "edge-1", Cluster: "edge", Metadata: map[string]string{"namespace": "team"}}, // over a unix socket
	}
	want := `[{"gateway":"default/team/edge","service_id":"edge-1","address":"","version":"0.0.0"},` +
		`{"gateway":"edge","service_id":"edge-2","address":"10.0.0.2","version":"1.36.2"}]` + "\n"
	if got := list(); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}
