//go:build e2e

package e2e

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"syscall"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/browser"
)

// TestStatusPage watches changes in Consul on the page: the mode of a listener, and an Envoy that stops.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	server := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
	gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: server.GRPCAddr})
	gateway.WaitListener(t, 8080)
	tab := browser.Start(t).Open(t, forwardAdmin(t, l.Gateway), browser.View{Width: 1280, Height: 900})
	// waitFor waits for a text in a part of the page, and returns how long.
	waitFor := func(selector, text string) time.Duration {
		t.Helper()
		begin := time.Now()
		tab.WaitFor(t, fmt.Sprintf(`document.querySelector(%q)?.textContent.includes(%q)`, selector, text))
		return time.Since(begin)
	}
	const mode, change, envoy = `#gateway [data-label=Mode]`, "#changes li", "#gateway .envoys tbody"
	waitFor("#gateway h2", "ingress-gateway")
	waitFor(mode, "off")
	waitFor("#gateway .services", "static-server")
	waitFor("#summary", "1 synced")

	l.SetMode(t, "permissive")
	took := waitFor(mode, "permissive")
	t.Logf("a mode that was written into Consul was on the page after %v", took.Round(time.Millisecond))
	if took > time.Second {
		t.Errorf("a mode that was written into Consul was on the page after %v, want a second", took)
	}
	waitFor(change, "until the Envoy had it")
	waitFor(change, "http:"+lab.GatewayIP+":8080")
	waitFor("#gateway table[data-key=settings]", `proxy-defaults "global": usher.proxy_protocol.mode`)

	gateway.Signal(t, syscall.SIGSTOP)
	l.SetMode(t, "strict")
	waitFor(change, "1 waiting")
	waitFor(envoy, "stale")
	gateway.Signal(t, syscall.SIGCONT)
	waitFor(change, "until the Envoy had it")
	waitFor("#summary", "1 synced")

	l.SetMode(t, "srtict")
	waitFor("#problems", `did you mean "strict"?`)
	tab.Screenshot(t, "real")
	server.Stop(t)
	tab.Expect("net::ERR_")
	waitFor("#live", "not connected")
}

// forwardAdmin serves Usher's admin port, which is on a host's loopback, to browsers outside of the lab.
func forwardAdmin(t *testing.T, h *lab.Host) string {
	t.Helper()
	admin := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "127.0.0.1:18001"}) },
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(slog.DiscardHandler, 0), // of streams that end with Usher
		Transport:     &http.Transport{DialContext: h.Dial},
	}
	forwarder := httptest.NewServer(admin)
	t.Cleanup(func() {
		forwarder.CloseClientConnections()
		forwarder.Close()
	})
	return forwarder.URL + "/"
}
