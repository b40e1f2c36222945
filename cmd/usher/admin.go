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
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/xds"
)

// admin serves /healthz, /readyz, /metrics, /debug/pprof and, after addPages, what that adds.
type admin struct {
	listener    net.Listener
	mux         *http.ServeMux
	server      *http.Server
	grpc        *grpc.Server // nil before addGRPC
	remoteDebug bool
}

// adminOptions are the flags for the admin port.
type adminOptions struct {
	addr        string
	remoteDebug bool // callers that are not on this machine get what is below /debug, too
}

// readinessChecker says what /readyz answers.
type readinessChecker interface {
	Ready() error // why Usher is not ready; nil if it is
	warner
}

// warner has warnings, whether Usher is ready or not.
type warner interface {
	Warning() string // what an administrator can correct or has to wait for; "" if there is nothing
}

// newAdmin binds the port.
func newAdmin(
	ctx context.Context, o adminOptions, log *slog.Logger, metrics prometheus.Gatherer, r readinessChecker,
) (*admin, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", o.addr)
	if err != nil {
		return nil, fmt.Errorf("--admin-addr %s: %w", o.addr, err)
	}
	if !isLocal(o.addr) {
		log.Warn("admin port is reachable beyond loopback", "admin", o.addr,
			"hint", "/metrics, /envoys and /status contain the names of gateways; let only probes and Prometheus reach the port")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		answer, code := "ready", http.StatusOK
		if err := r.Ready(); err != nil {
			answer, code = "not ready: "+err.Error(), http.StatusServiceUnavailable
		}
		if warning := r.Warning(); warning != "" {
			answer += "\n" + warning
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(code)
		fmt.Fprintln(w, answer)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	a := &admin{listener: l, mux: mux, remoteDebug: o.remoteDebug, server: newHTTPServer("admin", notRebound(mux), log)}
	// gRPC needs HTTP/2, here without TLS.
	a.server.Protocols = new(http.Protocols)
	a.server.Protocols.SetHTTP1(true)
	a.server.Protocols.SetUnencryptedHTTP2(true)
	a.server.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: maxHTTP2Streams}
	for _, p := range pprofPages {
		a.handleDebug("GET "+p.path, p.handler)
	}
	return a, nil
}

// handleDebug adds a handler that only callers on this machine get, unless remoteDebug is set.
func (a *admin) handleDebug(pattern string, h http.Handler) {
	local := localOnly(h)
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(maxDebugTime)) // a recorder of a test has none
		if a.remoteDebug {
			h.ServeHTTP(w, r)
			return
		}
		local.ServeHTTP(w, r)
	})
}

// localOnly answers only callers on this machine, which have to name it by an address or as localhost, so that a web page
// cannot ask for another name that leads here. Everybody who reaches the port can read what it does not protect.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLocal(r.RemoteAddr) || !isLocal(net.JoinHostPort(hostOf(r.Host), "0")) {
			http.Error(w, "only callers on loopback get this: use kubectl port-forward, ssh -L or kubectl exec, and 127.0.0.1 as the host; "+
				"or start Usher with --admin-remote-debug", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// notRebound refuses requests from this machine that name it by anything but an address or localhost: a web page that a browser
// here shows could otherwise read everything, if the name of its site leads here (DNS rebinding). Those that ask from another
// machine may use any name.
func notRebound(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostOf(r.Host)
		_, err := netip.ParseAddr(host)
		if isLocal(r.RemoteAddr) && host != "" && host != "localhost" && err != nil {
			http.Error(w, fmt.Sprintf("a request from this machine cannot name it as the host %q, because a web page could do so, too; "+
				"use 127.0.0.1 or localhost", host), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hostOf returns a Host header without the port.
func hostOf(header string) string {
	if host, _, err := net.SplitHostPort(header); err == nil {
		return host
	}
	return strings.Trim(header, "[]")
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
			e := connectedEnvoy{Gateway: id.String(), ServiceID: n.ID, Version: n.Release()}
			if n.Peer.IsValid() {
				e.Address = n.Peer.String()
			}
			envoys = append(envoys, e)
		}
		slices.SortFunc(envoys, func(x, y connectedEnvoy) int {
			return cmp.Or(cmp.Compare(x.Gateway, y.Gateway), cmp.Compare(x.ServiceID, y.ServiceID), cmp.Compare(x.Address, y.Address))
		})
		writeJSON(w, envoys)
	})
}

// writeJSON answers with JSON.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
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
func (a *admin) stop() {
	_ = a.server.Close()
	if a.grpc != nil {
		a.grpc.Stop()
	}
}

// address returns where it listens.
func (a *admin) address() string { return a.listener.Addr().String() }

// maxHTTPConnections is how many connections the admin port keeps, and the port of the webhook. Probes, Prometheus and API
// servers need a few.
const maxHTTPConnections = 100

// maxHTTP2Streams is how many requests a connection to the admin port may have at the same time.
const maxHTTP2Streams = 10

// connLimiter limits the connections of a server. At one too many, it closes the one that has been idle for the longest
// time; or the oldest one that is busy, if those are more than three quarters, so that a new connection has the time to ask.
// So neither idle connections nor busy ones keep a probe out or use up the files of the process.
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
		evicted := l.leastNeeded()
		l.conns[evicted].Close()
		l.conns = slices.Delete(l.conns, evicted, evicted+1) // the server reports its end later
	}
	l.conns = append(l.conns, limitedConn{Conn: conn, busy: state == http.StateActive})
}

// leastNeeded returns the index of the connection that makes room for another one. There are some.
func (l *connLimiter) leastNeeded() int {
	idle := 0
	for _, c := range l.conns {
		if !c.busy {
			idle++
		}
	}
	takeBusy := idle <= l.limit/4
	return slices.IndexFunc(l.conns, func(c limitedConn) bool { return c.busy == takeBusy })
}
