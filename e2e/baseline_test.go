//go:build e2e

package e2e

import (
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
)

// TestConsulsOwnGateway pins the behaviour without Usher: the access log has the
// balancer's address, and every request is answered with 400 once the balancer
// sends PROXY protocol v2.
func TestConsulsOwnGateway(t *testing.T) {
	t.Parallel()
	for _, version := range []struct {
		consul string
		envoys []string
	}{
		{lab.ConsulNew, []string{lab.EnvoyNew, lab.EnvoyOld}},
		{lab.ConsulOld, []string{lab.EnvoyNew}},
	} {
		t.Run("consul "+version.consul, func(t *testing.T) {
			t.Parallel()
			l := lab.Start(t, version.consul, lab.EnvoyNew, false)
			for _, envoy := range version.envoys {
				t.Run("envoy "+envoy, func(t *testing.T) {
					gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy})
					gateway.WaitListener(t, 8080)
					l.HAProxy.SetHeader(t, lab.SendNone)
					l.WantBalancerAddress(t, gateway)
					l.HAProxy.SetHeader(t, lab.SendV2)
					l.WantBadRequest(t)
				})
			}
		})
	}
}
