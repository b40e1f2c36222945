package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// greeting is what the lab's service answers to everything.
const greeting = "hello world"

// echo is the lab's service. It tells which headers each request came with.
type echo struct {
	// seen gets the headers of a request before it is answered. It holds
	// those of one request; the next one waits until they were taken.
	seen chan http.Header
}

func newEcho() *echo { return &echo{seen: make(chan http.Header, 1)} }

// Run serves on ln until ctx ends. It closes ln.
func (e *echo) Run(ctx context.Context, ln net.Listener) error {
	s := &http.Server{Handler: e, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("service on %s: %w", ln.Addr(), err)
	}
	return nil
}

// ServeHTTP answers the greeting.
func (e *echo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case e.seen <- r.Header.Clone():
		_, _ = io.WriteString(w, greeting) // a client that is gone sees nothing
	case <-r.Context().Done():
	}
}
