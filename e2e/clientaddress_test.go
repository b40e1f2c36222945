//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestClientAddressWithoutPROXYProtocol has an HTTP load balancer in front of
// the gateway, which names the client in headers, and tries one setting of the
// gateway after the other. Each changes what the service receives.
func TestClientAddressWithoutPROXYProtocol(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := lab.Start(t, lab.ConsulNew, envoy, false)
		usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: "usher {}"})
		gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})
		lab.WaitStatus(t, fromBalancer(l), http.StatusOK)
		for _, step := range []struct{ settings, logged, xff, proto string }{
			{`forwarded_proto = "default"`, lab.ClientIP, "6.6.6.6," + lab.ClientIP, "https"}, // Consul's own
			{`xff = "append"`, lab.BalancerIP, "6.6.6.6," + lab.ClientIP + "," + lab.BalancerIP, "http"},
			{`xff = "overwrite"`, lab.BalancerIP, lab.BalancerIP, "http"},
			{`trusted_hops = 1`, lab.ClientIP, "6.6.6.6," + lab.ClientIP + "," + lab.BalancerIP, "https"},
			{`trusted_hops = 1 forwarded_proto = "connection"`, lab.ClientIP, "6.6.6.6," + lab.ClientIP + "," + lab.BalancerIP, "http"},
			{`trusted_hops = 2`, "6.6.6.6", "6.6.6.6," + lab.ClientIP + "," + lab.BalancerIP, "https"},
			{`forwarded_proto = "trust" xff = "overwrite"`, lab.BalancerIP, lab.BalancerIP, "https"},
			{`forwarded_proto = "trust"`, lab.BalancerIP, "6.6.6.6," + lab.ClientIP + "," + lab.BalancerIP, "https"},
			{`forwarded_proto { https_ports = [443] }`, lab.BalancerIP, "6.6.6.6," + lab.ClientIP + "," + lab.BalancerIP, "http"},
			{`forwarded_proto { https_ports = [8080] }`, lab.BalancerIP, "6.6.6.6," + lab.ClientIP + "," + lab.BalancerIP, "https"},
		} {
			usher.WriteConfig(t, "usher { client_address { "+step.settings+" } }")
			waitDocumented(t, l, step.settings, step.xff, step.proto)
			request := fromBalancer(l)
			request.MustDo(t).WantHello(t)
			if got := gateway.Log.WaitRequest(t, request.Path).IP(t, "downstream_remote_address"); got != step.logged {
				t.Errorf("%s: access log has %s for the client, want %s", step.settings, got, step.logged)
			}
		}
	})
}

// fromBalancer is a request as a balancer passes it on, of a client that has
// sent an X-Forwarded-For of its own.
func fromBalancer(l *lab.Lab) lab.Request {
	return lab.Request{From: l.Balancer, To: l.Gateway.Addr(8080), Path: lab.NewPath(), Header: http.Header{
		"X-Forwarded-For": {"6.6.6.6," + lab.ClientIP}, "X-Forwarded-Proto": {"https"},
	}}
}

// waitDocumented waits until the service receives the wanted client address, several
// times in a row: an Envoy takes a new listener thread by thread.
func waitDocumented(t *testing.T, l *lab.Lab, settings, xff, proto string) {
	t.Helper()
	const consecutive = 10
	testprocess.Eventually(t, fmt.Sprintf("%s: the service gets X-Forwarded-For %s and X-Forwarded-Proto %s", settings, xff, proto), testprocess.ChangeDeadline, func() error {
		for range consecutive {
			request := fromBalancer(l)
			request.MustDo(t).WantHello(t)
			seen := l.Echo.Received(t, request.Path).Header
			if got := strings.Join(seen.Values("X-Forwarded-For"), ","); got != xff || seen.Get("X-Forwarded-Proto") != proto {
				return fmt.Errorf("it gets %q and %q", got, seen.Get("X-Forwarded-Proto"))
			}
		}
		return nil
	})
}
