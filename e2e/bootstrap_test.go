//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestBootstrap registers a gateway in Consul and starts Envoys with the output
// of `usher bootstrap`: every way to reach Usher, both protocols, both Envoys.
func TestBootstrap(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	l.SetMode(t, "strict")
	l.HAProxy.SetHeader(t, lab.SendV2)
	registerDefinition(t, l.Consul, gatewayDefinition(l.Gateway))
	ushers := map[string]*lab.Usher{
		"tcp": lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul}),
		"unix socket": lab.StartUsher(t, lab.UsherOptions{
			Host: l.Control, Consul: l.Consul, XDSAddr: "unix://" + filepath.Join(testprocess.NewDir(t), "xds.sock"),
		}),
	}
	for way, usher := range ushers {
		for protocol, args := range map[string][]string{"delta": nil, "sotw": {"--state-of-the-world"}} {
			for _, version := range []string{lab.EnvoyNew, lab.EnvoyOld} {
				t.Run(fmt.Sprintf("%s, %s, envoy %s", way, protocol, version), func(t *testing.T) {
					gateway := lab.StartBootstrapped(t, lab.BootstrapOptions{
						Host: l.Gateway, Envoy: version, XDSAddr: usher.GRPCAddr,
						Args: append(args, "--ready-addr", l.Gateway.Addr(8443)),
					})
					l.WantClientAddress(t, gateway)
					wantOneStream(t, usher, protocol)
					wantUsherReady(t, l.Network)
					gateway.Stop(t)
				})
			}
		}
	}
}

// wantOneStream wants that the one Envoy has a stream of the protocol.
func wantOneStream(t *testing.T, u *lab.Usher, protocol string) {
	t.Helper()
	metrics := u.Metrics(t)
	for _, p := range []string{"delta", "sotw"} {
		want := fmt.Sprintf("usher_xds_streams{protocol=%q} 0\n", p)
		if p == protocol {
			want = fmt.Sprintf("usher_xds_streams{protocol=%q} 1\n", p)
		}
		if !strings.Contains(metrics, want) {
			t.Errorf("usher's metrics do not have %s", want)
		}
	}
	envoys, err := u.Admin("/envoys")
	if err != nil || strings.Count(envoys, `"gateway":"ingress-gateway","service_id":"ingress-gateway"`) != 1 {
		t.Errorf("usher's /envoys is %s (%v), want the one Envoy", envoys, err)
	}
}

// wantUsherReady wants the ready listener to answer /ready, and nothing else of the
// admin interface that is behind it.
func wantUsherReady(t *testing.T, l *lab.Network) {
	t.Helper()
	ready := lab.Request{From: l.Balancer, To: l.Gateway.Addr(8443), Path: "/ready"}
	if got := ready.MustDo(t); got.Status != http.StatusOK || got.Body != "LIVE\n" {
		t.Errorf("/ready is answered %d %q, want 200 \"LIVE\"", got.Status, got.Body)
	}
	ready.Path = "/config_dump"
	if got := ready.MustDo(t); got.Status != http.StatusNotFound {
		t.Errorf("/config_dump is answered %d on the ready listener, want 404", got.Status)
	}
}

// TestBootstrapWithATokenAndTLS does so in a datacenter that denies by default,
// with the token in the places where Consul's own commands look for it, and with
// Usher on TLS.
func TestBootstrapWithATokenAndTLS(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, true)
	l.SetMode(t, "strict")
	l.HAProxy.SetHeader(t, lab.SendV2)
	registerDefinition(t, l.Consul, gatewayDefinition(l.Gateway))
	dir := testprocess.NewDir(t)
	ca := lab.NewCertificateAuthority(t, "Usher's CA")
	cert, key := ca.Issue(t, dir, "usher.example.com", l.Control.IP)
	usher := lab.StartUsher(t, lab.UsherOptions{
		Host: l.Control, Consul: l.Consul, XDSAddr: l.Control.Addr(18000),
		Token: l.Consul.NewToken(t, "usher", testprocess.ReadFile(t, "../docs/usher-policy.hcl")),
		Args:  []string{"--tls-cert", cert, "--tls-key", key},
	})
	token := l.Consul.NewToken(t, "ingress-gateway", gatewayRules)
	own := lab.BootstrapOptions{
		Host: l.Gateway, Envoy: lab.EnvoyNew, XDSAddr: "https://" + l.Control.Addr(18000),
		Args: []string{"--ca-file", lab.WriteFile(t, dir, "ca.pem", ca.PEM())},
	}
	for name, env := range map[string]string{
		"CONSUL_HTTP_TOKEN":      token,
		"CONSUL_HTTP_TOKEN_FILE": lab.WriteFile(t, dir, "token", token+"\n"),
	} {
		t.Run(name, func(t *testing.T) {
			own.Env = []string{name + "=" + env}
			gateway := lab.StartBootstrapped(t, own)
			l.WantClientAddress(t, gateway)
			gateway.Stop(t)
		})
	}
	own.Env = nil
	unauthorized := lab.StartBootstrapped(t, own)
	unauthorized.WaitOutput(t, "the stream came without x-consul-token; send a token with service:write on the gateway")
	wantClosedPort(t, l, unauthorized)
	if out := usher.Output(t) + unauthorized.Output(t); strings.Contains(out, token) {
		t.Error("the token is in a log")
	}
}

// TestOneUsherServesTwoGateways has two gateways with a listener each, in
// different modes. A change of one does not affect the other.
func TestOneUsherServesTwoGateways(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	second := l.AddHost(t, "gateway2", lab.Gateway2IP)
	l.Consul.WriteEntry(t, replaceOnce(t, testprocess.ReadFile(t, "testdata/lab/ingress-gateway.hcl"), `"ingress-gateway"
Name = "ingress-gateway"`, `"ingress-gateway"
Name = "second-gateway"`))
	registerDefinition(t, l.Consul, gatewayDefinition(l.Gateway, `usher { proxy_protocol { mode = "strict" } }`))
	definition := strings.Replace(gatewayDefinition(second), `name    = "ingress-gateway"`, `name    = "second-gateway"`, 1)
	registerDefinition(t, l.Consul, definition)
	usher := lab.StartUsher(t, lab.UsherOptions{
		Host: l.Control, Consul: l.Consul, XDSAddr: l.Control.Addr(18000), Args: []string{"--insecure-plaintext"},
	})
	one := lab.StartBootstrapped(t, lab.BootstrapOptions{Host: l.Gateway, Envoy: lab.EnvoyNew, XDSAddr: usher.GRPCAddr})
	lab.StartBootstrapped(t, lab.BootstrapOptions{Host: second, Envoy: lab.EnvoyNew, XDSAddr: usher.GRPCAddr, Gateway: "second-gateway"})
	l.WaitMode(t, l.Gateway, "strict")
	l.WaitMode(t, second, "off")

	before := listenerChanges(t, one)
	registerDefinition(t, l.Consul, strings.Replace(definition, "config {", `config { usher { proxy_protocol { mode = "permissive" } }`, 1))
	l.WaitMode(t, second, "permissive")
	l.WaitMode(t, l.Gateway, "strict")
	if after := listenerChanges(t, one); before == 0 || after != before {
		t.Errorf("a change of the second gateway changes the first: %d listener changes before, %d after", before, after)
	}
}

// listenerChanges counts how often a thread of Envoy's was given a listener.
func listenerChanges(t *testing.T, e *lab.Envoy) int {
	t.Helper()
	return e.Stat(t, "listener_manager.listener_create_success")
}
