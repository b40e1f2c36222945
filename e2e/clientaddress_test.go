//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestClientAddressWithoutPROXYProtocol has a balancer of requests in front of
// the gateway, which tells of the client in headers, and gives the gateway one
// setting after the other. What the service is told changes with each, which
// shows that it is there.
func TestClientAddressWithoutPROXYProtocol(t *testing.T) {
	onBothEnvoys(t, func(t *testing.T, envoy string) {
		l := startMeshLab(t, consulNew, envoy, false)
		usher := startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul, Config: "usher {}"})
		gateway := startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})
		waitStatus(t, l.fromBalancer(), http.StatusOK)
		for _, step := range []struct{ settings, logged, xff, proto string }{
			{`forwarded_proto = "default"`, clientIP, "6.6.6.6," + clientIP, "https"}, // Consul's own
			{`xff = "append"`, balancerIP, "6.6.6.6," + clientIP + "," + balancerIP, "http"},
			{`xff = "overwrite"`, balancerIP, balancerIP, "http"},
			{`trusted_hops = 1`, clientIP, "6.6.6.6," + clientIP + "," + balancerIP, "https"},
			{`trusted_hops = 1 forwarded_proto = "connection"`, clientIP, "6.6.6.6," + clientIP + "," + balancerIP, "http"},
			{`trusted_hops = 2`, "6.6.6.6", "6.6.6.6," + clientIP + "," + balancerIP, "https"},
			{`forwarded_proto = "trust" xff = "overwrite"`, balancerIP, balancerIP, "https"},
			{`forwarded_proto = "trust"`, balancerIP, "6.6.6.6," + clientIP + "," + balancerIP, "https"},
			{`forwarded_proto { https_ports = [443] }`, balancerIP, "6.6.6.6," + clientIP + "," + balancerIP, "http"},
			{`forwarded_proto { https_ports = [8080] }`, balancerIP, "6.6.6.6," + clientIP + "," + balancerIP, "https"},
		} {
			writeFile(t, filepath.Dir(usher.ConfigFile), filepath.Base(usher.ConfigFile), "usher { client_address { "+step.settings+" } }")
			l.waitTold(t, step.settings, step.xff, step.proto)
			request := l.fromBalancer()
			request.must(t).wantHello(t)
			if got := gateway.Log.request(t, request.Path).ip(t, "downstream_remote_address"); got != step.logged {
				t.Errorf("%s: access log has %s for the client, want %s", step.settings, got, step.logged)
			}
		}
	})
}

// fromBalancer is a request as a balancer passes it on, of a client that has
// sent an X-Forwarded-For of its own.
func (l *meshLab) fromBalancer() call {
	return call{From: l.Balancer, To: l.Gateway.addr(8080), Path: newPath(), Header: http.Header{
		"X-Forwarded-For": {"6.6.6.6," + clientIP}, "X-Forwarded-Proto": {"https"},
	}}
}

// waitTold waits until the service is told of the client as wanted, several
// times in a row: an Envoy takes a new listener thread by thread.
func (l *meshLab) waitTold(t *testing.T, settings, xff, proto string) {
	t.Helper()
	const row = 10
	eventually(t, fmt.Sprintf("%s: the service gets X-Forwarded-For %s and X-Forwarded-Proto %s", settings, xff, proto), changeDeadline, func() error {
		for range row {
			request := l.fromBalancer()
			request.must(t).wantHello(t)
			seen := l.Echo.request(t, request.Path).Header
			if got := strings.Join(seen.Values("X-Forwarded-For"), ","); got != xff || seen.Get("X-Forwarded-Proto") != proto {
				return fmt.Errorf("it gets %q and %q", got, seen.Get("X-Forwarded-Proto"))
			}
		}
		return nil
	})
}
