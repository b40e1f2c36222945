package consul

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestReadySaysThatConsulDoesNotKnowTheToken(t *testing.T) {
	var known atomic.Bool
	w := runWatcher(t, func(path string) (int, string) {
		switch {
		case path == "/v1/connect/ca/roots":
			return http.StatusOK, `{"TrustDomain": "x.consul", "Roots": [{"RootCert": "pem"}]}`
		case known.Load():
			return http.StatusOK, `[]`
		}
		return http.StatusForbidden, "ACL not found"
	})
	until(t, func() bool {
		err := w.Ready()
		return err != nil && strings.Contains(err.Error(), "ACL not found")
	})
	known.Store(true)
	until(t, func() bool { return w.Ready() == nil })
}

// runWatcher runs a watcher in front of a Consul that answers as told.
func runWatcher(t *testing.T, consul func(path string) (status int, body string)) *Watcher {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, body := consul(r.URL.Path)
		if status == http.StatusOK && r.URL.Query().Has("index") {
			<-r.Context().Done()
			return
		}
		w.Header().Set("X-Consul-Index", "1")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body)) // the client may have gone
	}))
	t.Cleanup(server.Close)
	client, err := NewClient(Config{HTTPAddr: server.URL, Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	w := NewWatcher(client, WatcherOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w
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
