package consul

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// bubbleConsul is a Consul in a synctest bubble. It answers blocking queries as a real
// one does. It filters the answer by the rights that the token had when the query
// came. A restored snapshot ends the queries of the state store with the old index and
// content. It does not end those of the streaming backend (of health).
type bubbleConsul struct {
	mu      sync.Mutex
	state   map[string]content // by path
	changed chan struct{}      // closed at the next change
	frozen  chan struct{}      // nil while it answers; closed when it answers again
	dead    bool               // the connections that are open never answer
	queries map[string]int     // queries by path
}

// held is the content of a path: an index, and the text for a token that may read
// all of it.
type content struct {
	index    uint64
	text     string
	hidden   string // the text for Usher's token; empty if nothing is hidden
	restored int    // how many times the state was replaced
}

func newBubbleConsul(paths map[string]content) *bubbleConsul {
	return &bubbleConsul{state: paths, changed: make(chan struct{}), queries: map[string]int{}}
}

// client returns a client all of whose connections lead to it.
func (c *bubbleConsul) client(t *testing.T, address string, metrics *Metrics) *Client {
	t.Helper()
	client := newTestClient(t, Config{HTTPAddr: address, Logger: slog.New(slog.DiscardHandler), Metrics: metrics})
	client.watchHTTP.Transport, client.watchdogHTTP.Transport, client.aclHTTP.Transport = c, c, withoutACLs{}
	return client
}

// withoutACLs is a Consul whose ACLs are off, for questions about them.
type withoutACLs struct{}

// RoundTrip implements http.RoundTripper.
func (withoutACLs) RoundTrip(r *http.Request) (*http.Response, error) {
	body := io.NopCloser(strings.NewReader("ACL support disabled"))
	return &http.Response{StatusCode: http.StatusUnauthorized, Body: body, Request: r}, nil
}

// set changes the content of a path. With restore, it replaces the state.
func (c *bubbleConsul) set(restore bool, change map[string]content) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, h := range c.state {
		if n, ok := change[path]; ok {
			n.restored = h.restored
			h = n
		}
		if restore {
			h.restored++
		}
		c.state[path] = h
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// freeze stops all answers. With dead, the open connections never answer again.
func (c *bubbleConsul) freeze(dead bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frozen, c.dead = make(chan struct{}), dead
}

func (c *bubbleConsul) thaw() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.frozen)
	c.frozen = nil
}

func (c *bubbleConsul) get(path string) (content, <-chan struct{}, <-chan struct{}, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state[path], c.changed, c.frozen, c.dead
}

// RoundTrip implements http.RoundTripper.
func (c *bubbleConsul) RoundTrip(r *http.Request) (*http.Response, error) {
	path := r.URL.Path
	c.mu.Lock()
	c.queries[path]++
	c.mu.Unlock()
	now, streamed, err := c.block(r, path)
	if err != nil {
		return nil, err
	}
	header := http.Header{}
	header.Set("X-Consul-Index", strconv.FormatUint(now.index, 10))
	text := now.text
	if now.hidden != "" {
		text = now.hidden
	}
	if streamed {
		header.Set("X-Consul-Query-Backend", "streaming")
	} else {
		header.Set("X-Consul-Results-Filtered-By-Acls", strconv.FormatBool(now.hidden != ""))
	}
	return &http.Response{StatusCode: http.StatusOK, Header: header, Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
}

func (c *bubbleConsul) block(r *http.Request, path string) (now content, streamed bool, err error) {
	known, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	streamed = known > 0 && strings.HasPrefix(path, "/v1/health/")
	begun, _, _, _ := c.get(path)
	over := time.NewTimer(wait)
	defer over.Stop()
	for waiting := known > 0; ; {
		now, changed, frozen, dead := c.get(path)
		switch {
		case dead && (frozen == nil) && waiting:
			changed = nil // its connection is from before
		case frozen != nil:
			changed = frozen
		case known == 0, now.index > known, !waiting:
			now.hidden = c.rights(begun, now)
			return now, streamed, nil
		case now.restored > begun.restored && !streamed:
			return content{index: known, text: begun.text, hidden: begun.hidden}, streamed, nil
		}
		expired := over.C
		if frozen != nil || dead && waiting && changed == nil {
			expired = nil
		}
		select {
		case <-r.Context().Done():
			return content{}, false, r.Context().Err()
		case <-changed:
		case <-expired:
			waiting = false
		}
	}
}

// rights returns the filtered text for a query that came in an older state.
func (c *bubbleConsul) rights(begun, now content) string {
	if begun.hidden != "" && begun.text == now.text {
		return begun.hidden
	}
	return now.hidden
}

// subscribeTo runs the watcher and subscribes to the queries until the test ends.
func subscribeTo(ctx context.Context, t *testing.T, w *Watcher, queries ...query) *subscription {
	t.Helper()
	run := make(chan error, 1)
	go func() { run <- w.Run(ctx) }()
	l := w.manager.subscribe()
	subscribeAlso(l, queries...)
	t.Cleanup(func() {
		l.close()
		if err := <-run; err != nil {
			t.Error(err)
		}
	})
	return l
}

// timeUntil returns how long it took until f.
func timeUntil(t *testing.T, f func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !f() {
		if time.Since(begin) > time.Hour {
			t.Fatal("not within an hour")
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
	}
	return time.Since(begin)
}

func (c *bubbleConsul) count(path string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queries[path]
}

func (c *bubbleConsul) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	total := 0
	for _, n := range c.queries {
		total += n
	}
	return total
}

// subscribeAlso adds queries to a subscription.
func subscribeAlso(s *subscription, queries ...query) {
	all := map[query]bool{}
	for q := range s.watches {
		all[q] = true
	}
	for _, q := range queries {
		all[q] = true
	}
	s.set(all, slices.Collect(maps.Keys(all)))
}

// resultOf returns the current result of a query of the subscription.
func resultOf(s *subscription, q query) queryResult { return s.manager.resultOf(s.watches[q]) }

func mustEndpoints(f queryResult) []gateway.Endpoint { return f.value.(*gateway.Endpoints).Endpoints }
