package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/xds"
)

// admin serves /healthz, /readyz, /metrics and, after addEnvoys, envoysPath.
type admin struct {
	listener net.Listener
	mux      *http.ServeMux
	server   *http.Server
}

// readinessChecker says what /readyz answers.
type readinessChecker interface {
	Ready() error // why Usher is not ready; nil if it is
	warner
}

// warner has warnings although Usher is ready.
type warner interface {
	Warning() string // what an administrator can correct or has to wait for; "" if there is nothing
}

// newAdmin binds addr.
func newAdmin(ctx context.Context, addr string, log *slog.Logger, metrics prometheus.Gatherer, r readinessChecker) (*admin, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--admin-addr %s: %w", addr, err)
	}
	if !isLocal(addr) {
		log.Warn("admin port is reachable beyond loopback", "admin", addr,
			"hint", "/metrics and /envoys contain the names of gateways; let only probes and Prometheus reach the port")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := r.Ready(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
		if warning := r.Warning(); warning != "" {
			fmt.Fprintln(w, warning)
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return &admin{listener: l, mux: mux, server: newHTTPServer("admin", mux, log)}, nil
}

// newHTTPServer returns a server with limits for its callers. Its port is for few of them.
func newHTTPServer(part string, h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           noSniff(h),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       15 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.With("part", part).Handler(), slog.LevelWarn),
		ConnState:         (&connLimiter{limit: maxHTTPConnections}).track,
	}
}

// envoysPath lists the Envoys that have an open and authorized stream, as JSON.
const envoysPath = "/envoys"

// connectedEnvoy is an item of the list at envoysPath.
type connectedEnvoy struct {
	Gateway   string `json:"gateway"`
	ServiceID string `json:"service_id"`
	Address   string `json:"address"` // empty for a unix socket
	Version   string `json:"version"` // of Envoy
}

// addEnvoys adds envoysPath. Call it before run.
func (a *admin) addEnvoys(nodes func() []xds.Node) {
	a.mux.HandleFunc("GET "+envoysPath, func(w http.ResponseWriter, _ *http.Request) {
		envoys := []connectedEnvoy{}
		for _, n := range nodes() {
			id, _ := controlplane.GatewayOf(n) // the authorizer has refused a node without a name
			e := connectedEnvoy{Gateway: id.String(), ServiceID: n.ID, Version: fmt.Sprintf("%d.%d.%d", n.Major, n.Minor, n.Patch)}
			if n.Peer.IsValid() {
				e.Address = n.Peer.String()
			}
			envoys = append(envoys, e)
		}
		slices.SortFunc(envoys, func(x, y connectedEnvoy) int {
			return cmp.Or(cmp.Compare(x.Gateway, y.Gateway), cmp.Compare(x.ServiceID, y.ServiceID), cmp.Compare(x.Address, y.Address))
		})
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(envoys)
	})
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

// maxHTTPConnections is how many connections the admin port keeps, and the port of the webhook. Probes, Prometheus and API
// servers need a few.
const maxHTTPConnections = 100

// connLimiter limits the connections of a server. At one too many, it closes the one that has been idle for the longest
// time, or else the oldest one. So idle connections neither keep a probe out nor use up the files of the process.
type connLimiter struct {
	limit int

	mu    sync.Mutex
	conns []limitedConn // the one that changed last is at the end
}

type limitedConn struct {
	net.Conn
	busy bool // it has an open request
}

// track records the new state of a connection. Use it as http.Server.ConnState.
func (l *connLimiter) track(conn net.Conn, state http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = slices.DeleteFunc(l.conns, func(c limitedConn) bool { return c.Conn == conn })
	if state == http.StateClosed || state == http.StateHijacked {
		return
	}
	if len(l.conns) >= l.limit {
		evicted := max(0, slices.IndexFunc(l.conns, func(c limitedConn) bool { return !c.busy }))
		l.conns[evicted].Close()
		l.conns = slices.Delete(l.conns, evicted, evicted+1) // the server reports its end later
	}
	l.conns = append(l.conns, limitedConn{Conn: conn, busy: state == http.StateActive})
}
