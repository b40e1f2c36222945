package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// admin serves /healthz, /readyz and /metrics.
type admin struct {
	listener net.Listener
	server   *http.Server
}

// condition is what /readyz tells.
type readinessChecker interface {
	// Ready gives nil, or why Usher is not ready.
	Ready() error
	warner
}

// remarker has something to say although Usher is ready.
type warner interface {
	// Warning gives what an operator can mend or may wait for, in one line; "" if
	// there is nothing.
	Warning() string
}

// combined is a condition with the remarks of somebody else, who may be nil.
type withWarnings struct {
	readinessChecker
	other warner
}

// Warning implements condition, with a line for each.
func (r withWarnings) Warning() string {
	if r.other == nil {
		return r.readinessChecker.Warning()
	}
	return strings.Trim(r.readinessChecker.Warning()+"\n"+r.other.Warning(), "\n")
}

// newAdmin binds addr.
func newAdmin(ctx context.Context, addr string, log *slog.Logger, metrics prometheus.Gatherer, c readinessChecker) (*admin, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--admin-addr %s: %w", addr, err)
	}
	if !isLocal(addr) {
		log.Warn("the admin port is reachable beyond loopback: it shows no secrets, but every host that reaches it can read the names of gateways in /metrics; let only probes and Prometheus reach it", "admin", addr)
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

// stop ends run; requests under way are cut off.
func (a *admin) stop() { _ = a.server.Close() }
