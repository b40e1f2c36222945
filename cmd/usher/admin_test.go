package main

import (
	"bufio"
	"bytes"
	"context"
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

	"github.com/usherproxy/usher/internal/testing/logbuffer"
	"github.com/usherproxy/usher/xds"
)

// startAdmin serves the admin port until the test ends.
func startAdmin(t *testing.T, log io.Writer, c readinessChecker) string {
	t.Helper()
	a, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0"}, slog.New(slog.NewTextHandler(log, nil)), prometheus.NewRegistry(), c)
	if err != nil {
		t.Fatal(err)
	}
	runAdmin(t, a)
	return a.listener.Addr().String()
}

// runAdmin serves the port until the test ends.
func runAdmin(t *testing.T, a *admin) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- a.run() }()
	t.Cleanup(func() {
		a.stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
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
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"); err != nil {
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

// Those that keep their connections busy do not keep a new one from asking.
func TestANewConnectionMayAskAmongBusyOnes(t *testing.T) {
	const limit, fresh = 8, 2
	c := &connLimiter{limit: limit}
	open := func(state http.ConnState) net.Conn {
		conn, _ := net.Pipe()
		c.track(conn, http.StateNew)
		c.track(conn, state)
		return conn
	}
	for range limit {
		open(http.StateActive)
	}
	probe := open(http.StateNew)
	for range fresh {
		if err := probe.SetDeadline(time.Time{}); err != nil {
			t.Fatal("the new connection is closed, and the busy ones stay")
		}
		open(http.StateNew)
	}
	for range 3 * limit {
		open(http.StateNew)
	}
	if probe.SetDeadline(time.Time{}) == nil {
		t.Error("a connection without a request stays")
	}
	busy := 0
	for _, conn := range c.conns {
		if conn.busy {
			busy++
		}
	}
	if busy != limit-fresh-1 {
		t.Errorf("%d busy connections stay, want %d", busy, limit-fresh-1)
	}
}

func TestErrorsOfTheAdminServerAreLogged(t *testing.T) {
	var log logbuffer.Buffer
	a, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0"}, slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry(), &fakeChecker{})
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
	var log logbuffer.Buffer
	a, err := newAdmin(t.Context(), adminOptions{addr: "0.0.0.0:0"}, slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry(), &fakeChecker{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	if got := log.String(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, "reachable beyond loopback") || strings.Count(got, "\n") != 1 {
		t.Errorf("logged %q, want one line", got)
	}
}

func TestAdminPortListsTheConnectedEnvoys(t *testing.T) {
	a, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &fakeChecker{})
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
	want := `[{"gateway":"default/team/edge","service_id":"edge-1","address":"","version":"unknown"},` +
		`{"gateway":"edge","service_id":"edge-2","address":"10.0.0.2","version":"1.36.2"}]` + "\n"
	if got := list(); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

func TestLocalOnly(t *testing.T) {
	for _, c := range []struct {
		remote, host string
		want         int
	}{
		{"127.0.0.1:40000", "127.0.0.1:18001", http.StatusOK},
		{"[::1]:40000", "[::1]:18001", http.StatusOK},
		{"[::1]:40000", "[::1]", http.StatusOK},
		{"127.0.0.1:40000", "localhost", http.StatusOK},
		{"127.0.0.1:40000", "", http.StatusForbidden},
		{"127.0.0.1:40000", "rebound.example.com:18001", http.StatusForbidden},
		{"198.51.100.7:40000", "127.0.0.1:18001", http.StatusForbidden},
		{"", "127.0.0.1:18001", http.StatusForbidden},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr, r.Host = c.remote, c.host
		answer := httptest.NewRecorder()
		localOnly(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(answer, r)
		if answer.Code != c.want {
			t.Errorf("from %q, host %q: %d, want %d", c.remote, c.host, answer.Code, c.want)
		}
	}
}

// A web page whose name leads to this machine gets nothing. Those that ask from elsewhere may use any name.
func TestRebound(t *testing.T) {
	a, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0", remoteDebug: true}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &fakeChecker{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	sources, _ := newAdminSources()
	a.addPages(sources)
	const here, elsewhere = "127.0.0.1:40000", "198.51.100.7:40000"
	for _, path := range []string{"/", "/status", "/status/events", "/envoys", "/metrics", "/readyz", "/debug/pprof/cmdline"} {
		for _, c := range []struct {
			remote, host string
			refused      bool
		}{
			{here, "rebound.example.com:18001", true},
			{"[::1]:40000", "rebound.example.com", true},
			{here, "10.0.0.2.example.com", true},
			{here, "127.0.0.1:18001", false},
			{here, "[::1]:18001", false},
			{here, "localhost:18001", false},
			{here, "10.0.0.2:18001", false}, // of a probe on the same machine
			{here, "", false},               // HTTP/1.0, which no browser speaks
			{elsewhere, "usher.example.com:18001", false},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			r := httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil)
			r.RemoteAddr, r.Host = c.remote, c.host
			cancel() // a stream ends
			answer := httptest.NewRecorder()
			a.server.Handler.ServeHTTP(answer, r)
			if refused := answer.Code == http.StatusForbidden; refused != c.refused {
				t.Errorf("%s from %q, host %q: %d", path, c.remote, c.host, answer.Code)
			}
			if c.refused && !strings.Contains(answer.Body.String(), "use 127.0.0.1 or localhost") {
				t.Errorf("it says %q", answer.Body)
			}
		}
	}
}

func TestDebugOfAnotherHost(t *testing.T) {
	a, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &fakeChecker{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	for remote, want := range map[bool]int{false: http.StatusForbidden, true: http.StatusOK} {
		a.remoteDebug = remote
		answer := httptest.NewRecorder()
		a.mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/debug/pprof/", nil)) // from 192.0.2.1
		if answer.Code != want {
			t.Errorf("remoteDebug %v: %d, want %d", remote, answer.Code, want)
		}
	}
}
