//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
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
					l.HAProxy.SetHeader(t, lab.SendNone)
					gateway := startConsulsGateway(t, l, envoy, version.consul == lab.ConsulOld)
					l.WantBalancerAddress(t, gateway)
					l.HAProxy.SetHeader(t, lab.SendV2)
					l.WantBadRequest(t)
				})
			}
		})
	}
}

// startConsulsGateway starts an Envoy that Consul's own xDS serves. Consul 1.15.1
// sometimes never sends an Envoy the endpoints, and all requests are answered 503. The
// next Envoy gets them.
func startConsulsGateway(t *testing.T, l *lab.Lab, envoy string, losesEndpoints bool) *lab.Envoy {
	t.Helper()
	start := func() (*lab.Envoy, time.Time) {
		gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy})
		gateway.WaitListener(t, 8080)
		return gateway, time.Now()
	}
	gateway, started := start()
	testprocess.Eventually(t, "Consul's own gateway serves", testprocess.StartDeadline, func() error {
		r, err := l.Request("/").Do(t.Context())
		if err != nil || r.Status == http.StatusOK {
			return err
		}
		if losesEndpoints && time.Since(started) > 5*time.Second {
			gateway.Stop(t)
			gateway, started = start()
		}
		return fmt.Errorf("the answer is %d", r.Status)
	})
	return gateway
}
