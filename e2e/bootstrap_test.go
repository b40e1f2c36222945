//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestBootstrap has a gateway that is registered in Consul, and starts Envoys
// with what `usher bootstrap` prints: every way to reach Usher, both forms of
// the protocol, both Envoys.
func TestBootstrap(t *testing.T) {
	t.Parallel()
	l := startMeshLab(t, consulNew, envoyNew, false)
	l.setMode(t, "strict")
	l.HAProxy.setHeader(t, v2Header)
	l.Consul.register(t, gatewayDefinition(l.Gateway))
	ushers := map[string]*usher{
		"tcp": startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul}),
		"unix socket": startUsher(t, usherOptions{
			Host: l.Control, Consul: l.Consul, XDSAddr: "unix://" + filepath.Join(newDir(t), "xds.sock"),
		}),
	}
	for way, usher := range ushers {
		for protocol, args := range map[string][]string{"delta": nil, "sotw": {"--state-of-the-world"}} {
			for _, version := range []string{envoyNew, envoyOld} {
				t.Run(fmt.Sprintf("%s, %s, envoy %s", way, protocol, version), func(t *testing.T) {
					gateway := startOwn(t, ownOptions{
						Host: l.Gateway, Envoy: version, XDSAddr: usher.GRPCAddr,
						Args: append(args, "--ready-addr", l.Gateway.addr(8443)),
					})
					l.wantClientsAddress(t, gateway)
					usher.wantStream(t, protocol)
					l.wantReady(t)
					gateway.Stop(t)
				})
			}
		}
	}
}

// wantStream wants that the one Envoy has a stream of the protocol.
func (u *usher) wantStream(t *testing.T, protocol string) {
	t.Helper()
	metrics := u.metrics(t)
	for _, p := range []string{"delta", "sotw"} {
		want := fmt.Sprintf("usher_xds_streams{protocol=%q} 0\n", p)
		if p == protocol {
			want = fmt.Sprintf("usher_xds_streams{protocol=%q} 1\n", p)
		}
		if !strings.Contains(metrics, want) {
			t.Errorf("usher's metrics do not have %s", want)
		}
	}
}

// wantReady wants the ready listener to answer /ready, and nothing else of the
// admin interface that is behind it.
func (l *lab) wantReady(t *testing.T) {
	t.Helper()
	ready := call{From: l.Balancer, To: l.Gateway.addr(8443), Path: "/ready"}
	if got := ready.must(t); got.Status != http.StatusOK || got.Body != "LIVE\n" {
		t.Errorf("/ready is answered %d %q, want 200 \"LIVE\"", got.Status, got.Body)
	}
	ready.Path = "/config_dump"
	if got := ready.must(t); got.Status != http.StatusNotFound {
		t.Errorf("/config_dump is answered %d on the ready listener, want 404", got.Status)
	}
}

// TestBootstrapWithATokenAndTLS does it in a datacenter that denies by default,
// with the token where Consul's own commands look for it, and Usher on TLS.
func TestBootstrapWithATokenAndTLS(t *testing.T) {
	t.Parallel()
	l := startMeshLab(t, consulNew, envoyNew, true)
	l.setMode(t, "strict")
	l.HAProxy.setHeader(t, v2Header)
	l.Consul.register(t, gatewayDefinition(l.Gateway))
	dir := newDir(t)
	ca := newAuthority(t, "Usher's CA")
	cert, key := ca.issue(t, dir, "usher.example.com", l.Control.IP)
	usher := startUsher(t, usherOptions{
		Host: l.Control, Consul: l.Consul, XDSAddr: l.Control.addr(18000),
		Token: l.Consul.newToken(t, "usher", readFile(t, "../docs/usher-policy.hcl")),
		Args:  []string{"--tls-cert", cert, "--tls-key", key},
	})
	token := l.Consul.newToken(t, "ingress-gateway", gatewayRules)
	own := ownOptions{
		Host: l.Gateway, Envoy: envoyNew, XDSAddr: "https://" + l.Control.addr(18000),
		Args: []string{"--ca-file", writeFile(t, dir, "ca.pem", ca.pem())},
	}
	for name, env := range map[string]string{
		"CONSUL_HTTP_TOKEN":      token,
		"CONSUL_HTTP_TOKEN_FILE": writeFile(t, dir, "token", token+"\n"),
	} {
		t.Run(name, func(t *testing.T) {
			own.Env = []string{name + "=" + env}
			gateway := startOwn(t, own)
			l.wantClientsAddress(t, gateway)
			gateway.Stop(t)
		})
	}
	own.Env = nil
	nobody := startOwn(t, own)
	nobody.WaitOutput(t, "needs service:write on the gateway")
	l.wantClosedPort(t, nobody)
	if out := usher.Output(t) + nobody.Output(t); strings.Contains(out, token) {
		t.Error("the token is in a log")
	}
}

// TestOneUsherServesTwoGateways has two gateways with a listener of their own
// each, in different modes. A change of one does not touch the other.
func TestOneUsherServesTwoGateways(t *testing.T) {
	t.Parallel()
	l := startMeshLab(t, consulNew, envoyNew, false)
	second := l.addHost(t, "gateway2", gateway2IP)
	l.Consul.writeEntry(t, replaceOnce(t, readFile(t, "testdata/lab/ingress-gateway.hcl"), `"ingress-gateway"
Name = "ingress-gateway"`, `"ingress-gateway"
Name = "second-gateway"`))
	l.Consul.register(t, gatewayDefinition(l.Gateway, `usher { proxy_protocol { mode = "strict" } }`))
	definition := strings.Replace(gatewayDefinition(second), `name    = "ingress-gateway"`, `name    = "second-gateway"`, 1)
	l.Consul.register(t, definition)
	usher := startUsher(t, usherOptions{
		Host: l.Control, Consul: l.Consul, XDSAddr: l.Control.addr(18000), Args: []string{"--insecure-plaintext"},
	})
	one := startOwn(t, ownOptions{Host: l.Gateway, Envoy: envoyNew, XDSAddr: usher.GRPCAddr})
	startOwn(t, ownOptions{Host: second, Envoy: envoyNew, XDSAddr: usher.GRPCAddr, Gateway: "second-gateway"})
	l.waitMode(t, l.Gateway, "strict")
	l.waitMode(t, second, "off")

	before := one.listenerChanges(t)
	l.Consul.register(t, strings.Replace(definition, "config {", `config { usher { proxy_protocol { mode = "permissive" } }`, 1))
	l.waitMode(t, second, "permissive")
	l.waitMode(t, l.Gateway, "strict")
	if after := one.listenerChanges(t); before == 0 || after != before {
		t.Errorf("a change of the second gateway changes the first: %d listener changes before, %d after", before, after)
	}
}

// listenerChanges counts how often a thread of Envoy's was given a listener.
func (e *envoy) listenerChanges(t *testing.T) int {
	t.Helper()
	return e.stat(t, "listener_manager.listener_create_success")
}
