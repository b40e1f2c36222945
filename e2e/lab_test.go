//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
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
	for _, version := range []struct {
		consul string
		envoys []string
		secure bool
	}{
		{consulNew, []string{envoyNew, envoyOld}, false},
		{consulOld, []string{envoyNew, envoyOld}, false},
		{consulNew, []string{envoyNew}, true},
		{consulOld, []string{envoyNew}, true},
	} {
		name := "consul " + version.consul
		if version.secure {
			name += " with ACLs, TLS and gossip encryption"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startMeshLab(t, version.consul, envoyNew, version.secure)
			usher := startUsher(t, usherOptions{
				Host: l.Gateway, Consul: l.Consul,
				Token: l.Consul.tokenWhereSecure(t, "usher", readFile(t, "../docs/usher-policy.hcl")),
			})
			token := l.Consul.tokenWhereSecure(t, "ingress-gateway", gatewayRules)
			for _, envoy := range version.envoys {
				t.Run("envoy "+envoy, func(t *testing.T) {
					l.tell(t, startGateway(t, gatewayOptions{
						Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr, Token: token,
					}))
				})
			}
		})
	}
}

// tell tells the story with one Envoy.
func (l *meshLab) tell(t *testing.T, gateway *envoy) {
	l.setMode(t, "off")
	l.HAProxy.setHeader(t, v2Header)
	l.wantBadRequest(t)
	l.HAProxy.setHeader(t, noHeader)
	l.wantBalancersAddress(t, gateway)
	l.HAProxy.setHeader(t, v2Header)

	l.setMode(t, "strict")
	l.wantClientsAddress(t, gateway)

	l.HAProxy.setHeader(t, v1Header)
	l.wantClientsAddress(t, gateway)

	l.wantForgedAddressUnused(t, gateway)
	l.wantLocalAccepted(t, gateway)
	l.HAProxy.setHeader(t, noHeader)
	l.wantRefused(t)

	l.setMode(t, "permissive")
	waitStatus(t, l.call("/"), http.StatusOK)
	l.HAProxy.setHeader(t, v2Header)
	l.wantClientsAddress(t, gateway)
}

// setMode writes proxy-defaults with a mode of PROXY protocol.
func (l *meshLab) setMode(t *testing.T, mode string) {
	t.Helper()
	l.Consul.writeEntry(t, readFile(t, "testdata/lab/proxy-defaults.hcl")+fmt.Sprintf(`
Config {
  usher {
    proxy_protocol { mode = %q }
  }
}
`, mode))
}

// wantClientsAddress waits until requests are answered, and wants the client's
// own address in the access log and at the service, and the balancer's beside
// it in the log.
func (l *meshLab) wantClientsAddress(t *testing.T, gateway *envoy) {
	t.Helper()
	waitStatus(t, l.call("/"), http.StatusOK)
	path := newPath()
	l.call(path).must(t).wantHello(t)
	entry := gateway.Log.request(t, path)
	if got := entry.ip(t, "downstream_remote_address"); got != clientIP {
		t.Errorf("access log has %s for the client, want %s", got, clientIP)
	}
	if got := entry.ip(t, "downstream_direct_remote_address"); got != balancerIP {
		t.Errorf("access log has %s for the balancer, want %s", got, balancerIP)
	}
	if got := l.forwardedFor(t, path); got != clientIP {
		t.Errorf("the service got X-Forwarded-For %q, want %q", got, clientIP)
	}
}

// wantForgedAddressUnused sends an X-Forwarded-For of the client's own.
func (l *meshLab) wantForgedAddressUnused(t *testing.T, gateway *envoy) {
	t.Helper()
	request := l.call(newPath())
	request.Header = http.Header{"X-Forwarded-For": {"6.6.6.6"}}
	request.must(t).wantHello(t)
	if got := gateway.Log.request(t, request.Path).ip(t, "downstream_remote_address"); got != clientIP {
		t.Errorf("access log has %s for the client, want %s", got, clientIP)
	}
	if got, want := l.forwardedFor(t, request.Path), "6.6.6.6,"+clientIP; got != want {
		t.Errorf("the service got X-Forwarded-For %q, want %q", got, want)
	}
}

// wantLocalAccepted sends what a balancer's health check sends: a header with
// the LOCAL command. The address stays the connection's own.
func (l *meshLab) wantLocalAccepted(t *testing.T, gateway *envoy) {
	t.Helper()
	check := call{
		From: l.Balancer, To: l.Gateway.addr(8080), Path: newPath(),
		Proxy: &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL},
	}
	check.must(t).wantHello(t)
	if got := gateway.Log.request(t, check.Path).ip(t, "downstream_remote_address"); got != balancerIP {
		t.Errorf("access log has %s for the health check, want %s", got, balancerIP)
	}
}

// wantRefused wants plain connections closed without an answer.
func (l *meshLab) wantRefused(t *testing.T) {
	t.Helper()
	if got, err := l.call(newPath()).do(t.Context()); err == nil {
		t.Errorf("a connection without a PROXY header got %d %q, want it closed", got.Status, got.Body)
	}
}

// forwardedFor is the X-Forwarded-For that the service got.
func (l *meshLab) forwardedFor(t *testing.T, path string) string {
	t.Helper()
	return strings.Join(l.Echo.request(t, path).Header.Values("X-Forwarded-For"), ",")
}
