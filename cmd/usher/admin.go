package main

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// admin serves /healthz, /readyz and /metrics.
type admin struct {
	listener net.Listener
	server   *http.Server
}

// readinessChecker says what /readyz answers.
type readinessChecker interface {
	// Ready returns why Usher is not ready; nil if it is.
	Ready() error
	warner
}

// warner has warnings although Usher is ready.
type warner interface {
	// Warning returns what an operator can correct or has to wait for, in one line; ""
	// if there is nothing.
	Warning() string
}

// withWarnings is a readinessChecker with the warnings of another part, which may be
// nil.
type withWarnings struct {
	readinessChecker
	other warner
}

// Warning implements readinessChecker, with a line for each part.
func (r withWarnings) Warning() string {
	if r.other == nil {
		return r.readinessChecker.Warning()
	}
	return strings.Trim(r.readinessChecker.Warning()+"\n"+r.other.Warning(), "\n")
}

// newAdmin binds addr.
func newAdmin(
	ctx context.Context, addr string, log *slog.Logger, metrics prometheus.Gatherer, c readinessChecker,
) (*admin, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--admin-addr %s: %w", addr, err)
	}
	if !isLocal(addr) {
		log.Warn("admin port is reachable beyond loopback", "admin", addr,
			"hint", "/metrics contains the names of gateways; let only probes and Prometheus reach the port")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := c.Ready(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
		if warning := c.Warning(); warning != "" {
			fmt.Fprintln(w, warning)
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return &admin{listener: l, server: &http.Server{
		Handler:           noSniff(mux),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       15 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.With("part", "admin").Handler(), slog.LevelWarn),
		ConnState:         newConnLimiter(maxAdminConnections).track,
	}}, nil
}

// noSniff stops browsers from interpreting an answer as anything but text.
func noSniff(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}

// run serves until stop is called.
func (a *admin) run() error {
	if err := a.server.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin server: %w", err)
	}
	return nil
}

// stop ends run and cuts off open requests.
func (a *admin) stop() { _ = a.server.Close() }

// maxAdminConnections is how many connections the admin port keeps. Probes and
// Prometheus need a few.
const maxAdminConnections = 100

// connLimiter limits the connections of a server. At one too many, it closes the one
// that has had no request for the longest time. So idle connections neither keep a probe
// out nor use up the files of the process. Use newConnLimiter.
type connLimiter struct {
	limit int

	mu       sync.Mutex
	order    *list.List // of *limitedConn; the one that changed last is at the end
	elements map[net.Conn]*list.Element
}

type limitedConn struct {
	conn net.Conn
	busy bool // it has an open request
}

func newConnLimiter(limit int) *connLimiter {
	return &connLimiter{limit: limit, order: list.New(), elements: map[net.Conn]*list.Element{}}
}

// track records the new state of a connection. Use it as http.Server.ConnState.
func (c *connLimiter) track(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.elements[conn]; old != nil {
		c.order.Remove(old)
		delete(c.elements, conn)
	}
	if state == http.StateClosed || state == http.StateHijacked {
		return
	}
	if c.order.Len() >= c.limit {
		c.evict()
	}
	c.elements[conn] = c.order.PushBack(&limitedConn{conn: conn, busy: state == http.StateActive})
}

// evict closes the connection that has been idle for the longest time, or else the
// oldest one. The server reports its end later, so evict already removes it.
func (c *connLimiter) evict() {
	oldest := c.order.Front()
	for e := oldest; e != nil; e = e.Next() {
		if !e.Value.(*limitedConn).busy {
			oldest = e
			break
		}
	}
	conn := c.order.Remove(oldest).(*limitedConn).conn
	delete(c.elements, conn)
	conn.Close()
}
