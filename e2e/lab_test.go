//go:build e2e

package e2e

import (
	"net/http"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// gatewayRules is what an ingress gateway's own token needs, with Usher as with
// Consul: to register, and to be its gateway.
const gatewayRules = `
service "ingress-gateway" { policy = "write" }
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
`

// TestLab is the lab on Usher: with PROXY protocol v2 at the balancer, Consul's
// own settings still answer 400, and one more setting makes it 200, with the
// client's address in the access log and at the service.
func TestLab(t *testing.T) {
	t.Parallel()
	for _, version := range []struct {
		consul string
		envoys []string
		secure bool
	}{
		{lab.ConsulNew, lab.Envoys, false},
		{lab.ConsulOld, []string{lab.EnvoyNew, lab.EnvoyOld}, false},
		{lab.ConsulNew, []string{lab.EnvoyNew}, true},
		{lab.ConsulBetween, []string{lab.EnvoyNew}, true},
		{lab.ConsulOld, []string{lab.EnvoyNew}, true},
	} {
		name := "consul " + version.consul
		if version.secure {
			name += " with ACLs, TLS and gossip encryption"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := lab.Start(t, version.consul, lab.EnvoyNew, version.secure)
			usher := lab.StartUsher(t, lab.UsherOptions{
				Host: l.Gateway, Consul: l.Consul,
				Token: l.Consul.NewTokenIfSecure(t, "usher", testprocess.ReadFile(t, "../docs/usher-policy.hcl")),
			})
			token := l.Consul.NewTokenIfSecure(t, "ingress-gateway", gatewayRules)
			for _, envoy := range version.envoys {
				t.Run("envoy "+envoy, func(t *testing.T) {
					runLabStory(t, l, lab.StartGateway(t, lab.GatewayOptions{
						Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr, Token: token,
					}))
				})
			}
		})
	}
}

// runLabStory runs the story with one Envoy.
func runLabStory(t *testing.T, l *lab.Lab, gateway *lab.Envoy) {
	l.SetMode(t, "off")
	l.HAProxy.SetHeader(t, lab.SendV2)
	l.WantBadRequest(t)
	l.HAProxy.SetHeader(t, lab.SendNone)
	l.WantBalancerAddress(t, gateway)
	l.HAProxy.SetHeader(t, lab.SendV2)

	l.SetMode(t, "strict")
	l.WantClientAddress(t, gateway)

	l.HAProxy.SetHeader(t, lab.SendV1)
	l.WantClientAddress(t, gateway)

	wantForgedAddressUnused(t, l, gateway)
	wantLocalAccepted(t, l, gateway)
	l.HAProxy.SetHeader(t, lab.SendNone)
	l.WantPlainRefused(t)

	l.SetMode(t, "permissive")
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	l.HAProxy.SetHeader(t, lab.SendV2)
	l.WantClientAddress(t, gateway)
}

// wantForgedAddressUnused sends an X-Forwarded-For of the client's own.
func wantForgedAddressUnused(t *testing.T, l *lab.Lab, gateway *lab.Envoy) {
	t.Helper()
	request := l.Request(lab.NewPath())
	request.Header = http.Header{"X-Forwarded-For": {"6.6.6.6"}}
	request.MustDo(t).WantHello(t)
	if got := gateway.Log.WaitRequest(t, request.Path).IP(t, "downstream_remote_address"); got != lab.ClientIP {
		t.Errorf("access log has %s for the client, want %s", got, lab.ClientIP)
	}
	if got, want := l.ForwardedFor(t, request.Path), "6.6.6.6,"+lab.ClientIP; got != want {
		t.Errorf("the service got X-Forwarded-For %q, want %q", got, want)
	}
}

// wantLocalAccepted sends what a balancer's health check sends: a header with
// the LOCAL command. The address stays the connection's own.
func wantLocalAccepted(t *testing.T, l *lab.Lab, gateway *lab.Envoy) {
	t.Helper()
	check := lab.Request{
		From: l.Balancer, To: l.Gateway.Addr(8080), Path: lab.NewPath(),
		Proxy: &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL},
	}
	check.MustDo(t).WantHello(t)
	if got := gateway.Log.WaitRequest(t, check.Path).IP(t, "downstream_remote_address"); got != lab.BalancerIP {
		t.Errorf("access log has %s for the health check, want %s", got, lab.BalancerIP)
	}
}
