package consul

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/orderedcmp"
)

// snapshots compares snapshots and what is in them.
var snapshots = cmp.Options{cmp.AllowUnexported(settings.Layer{}), orderedcmp.Entries[*gateway.Endpoints]()}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeConsul answers every path with the reply that was set, and blocks as Consul does
// until an answer has changed. For other paths it answers 404. A
// question to a datacenter or a peer is of the path "/path?dc=dc2".
type fakeConsul struct {
	report func(source string, problems []problem.Problem) // of the Ushers that start; may be nil

	url    string
	server *httptest.Server

	mu      sync.Mutex
	replies map[string]reply
	sent    map[string]bool // the path's latest reply has been sent
	handled map[string]bool // and the question has come again
	index   uint64
	changed chan struct{} // closed at the next change
}

// reply is an answer of Consul; its status is 200 when 0.
type reply struct {
	status int
	body   string
	hidden bool // Consul's ACLs left something out
	silent bool // there is no answer
	// leaderless says that the server knows no leader.
	leaderless bool
}

func newFakeConsul(t *testing.T) *fakeConsul {
	t.Helper()
	c := &fakeConsul{replies: map[string]reply{"/v1/agent/self": {body: `{"Config": {}}`}}, sent: map[string]bool{}, handled: map[string]bool{}, changed: make(chan struct{})}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.url, c.server = server.URL, server
	return c
}

// watcher returns a watcher of it.
func (c *fakeConsul) watcher(t *testing.T) *Watcher {
	t.Helper()
	return NewWatcher(c.client(t, slog.DiscardHandler), WatcherOptions{})
}

// watcherWithShortTimeouts returns a watcher of it with a short patience.
func (c *fakeConsul) watcherWithShortTimeouts(t *testing.T) *Watcher {
	t.Helper()
	return NewWatcher(c.client(t, slog.DiscardHandler), WatcherOptions{HealthTimeout: 50 * time.Millisecond, AnswerTimeout: 50 * time.Millisecond})
}

// client returns a client of it.
func (c *fakeConsul) client(t *testing.T, log slog.Handler) *Client {
	t.Helper()
	return newTestClient(t, Config{HTTPAddr: c.url, Logger: slog.New(log)})
}

// newTestClient returns a client in an environment that is empty unless the
// config has one.
func newTestClient(t *testing.T, config Config) *Client {
	t.Helper()
	if config.Getenv == nil {
		config.Getenv = func(string) string { return "" }
	}
	client, err := NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.watchHTTP.CloseIdleConnections)
	return client
}

// run runs f until the test ends, and waits for it.
func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (c *fakeConsul) set(path string, r reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replies[path], c.sent[path], c.handled[path] = r, false, false
	c.index++
	close(c.changed)
	c.changed = make(chan struct{})
}

// waitHandled waits until Usher has handled the latest replies of the paths.
func (c *fakeConsul) waitHandled(t *testing.T, paths ...string) {
	t.Helper()
	until(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, path := range paths {
			if !c.handled[path] {
				return false
			}
		}
		return true
	})
}

// until polls f, for at most 10 s.
func until(t *testing.T, f func() bool) {
	t.Helper()
	end := time.After(10 * time.Second)
	for !f() {
		select {
		case <-end:
			t.Fatal("not within 10 s")
		case <-time.After(time.Millisecond):
		}
	}
}

// ServeHTTP implements http.Handler.
func (c *fakeConsul) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	known, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64) // 0: it does not block
	path := pathOf(r.URL)
	c.record(path)
	answer, index, changed := c.get(path, known)
	for index == known || answer.silent {
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
		answer, index, changed = c.get(path, known)
	}
	w.Header().Set("X-Consul-Index", strconv.FormatUint(index, 10))
	w.Header().Set("X-Consul-Results-Filtered-By-Acls", strconv.FormatBool(answer.hidden))
	w.Header().Set("X-Consul-Knownleader", strconv.FormatBool(!answer.leaderless))
	w.WriteHeader(answer.status)
	_, _ = w.Write([]byte(answer.body)) // the client may have gone
}

// pathOf returns the path, with the datacenter, peer and filter where the
// question has them.
func pathOf(u *url.URL) string {
	path, next := u.Path, "?"
	for _, key := range []string{"dc", "peer", "filter"} {
		if v := u.Query().Get(key); v != "" {
			path += next + key + "=" + v
			next = "&"
		}
	}
	return path
}

func (c *fakeConsul) get(path string, known uint64) (reply, uint64, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer, ok := c.replies[path]
	switch {
	case !ok:
		answer.status = http.StatusNotFound
	case answer.status == 0:
		answer.status = http.StatusOK
	}
	c.sent[path] = c.sent[path] || c.index > known
	return answer, c.index, c.changed
}

// wasAsked reports whether a query got the latest reply of the path.
func (c *fakeConsul) wasAsked(path string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent[path]
}

func (c *fakeConsul) record(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handled[path] = c.sent[path]
}
