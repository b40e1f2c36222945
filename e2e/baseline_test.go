//go:build e2e

package e2e

import (
	"net/http"
	"testing"
)

// TestConsulsOwnGateway pins what users have without Usher, so that the day
// Consul changes is noticed: the balancer's address in the access log, and 400
// for every request once the balancer sends PROXY protocol v2.
func TestConsulsOwnGateway(t *testing.T) {
	for _, version := range []struct {
		consul string
		envoys []string
	}{
		{consulNew, []string{envoyNew, envoyOld}},
		{consulOld, []string{envoyNew}},
	} {
		t.Run("consul "+version.consul, func(t *testing.T) {
			t.Parallel()
			l := startMeshLab(t, version.consul, envoyNew, false)
			for _, envoy := range version.envoys {
				t.Run("envoy "+envoy, func(t *testing.T) {
					gateway := startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy})
					gateway.waitListener(t, 8080)
					l.HAProxy.setHeader(t, noHeader)
					l.wantBalancersAddress(t, gateway)
					l.HAProxy.setHeader(t, v2Header)
					l.wantBadRequest(t)
				})
			}
		})
	}
}

// wantBalancersAddress is the lab's first step: the request is answered, and
// nobody behind the balancer learns the client's address.
func (l *meshLab) wantBalancersAddress(t *testing.T, gateway *envoy) {
	t.Helper()
	waitStatus(t, l.call("/"), http.StatusOK)
	path := newPath()
	l.call(path).must(t).wantHello(t)
	if got := gateway.Log.request(t, path).ip(t, "downstream_remote_address"); got != balancerIP {
		t.Errorf("access log has %s for the client, want the balancer's %s", got, balancerIP)
	}
	if got := l.Echo.request(t, path).Header.Values("X-Forwarded-For"); len(got) != 0 {
		t.Errorf("the service got X-Forwarded-For %q, want none", got)
	}
}

// wantBadRequest is the lab's second step on Consul's own xDS.
func (l *meshLab) wantBadRequest(t *testing.T) {
	t.Helper()
	waitStatus(t, l.call("/"), http.StatusBadRequest)
}
