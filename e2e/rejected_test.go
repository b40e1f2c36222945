//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestWhatAnEnvoyRefusesIsVisibleWhileItLasts gives a listener an access log in a
// directory that the gateway's machine does not have. The Envoy refuses it and goes
// on with the listener that it has, and metrics say so until the setting is
// corrected.
func TestWhatAnEnvoyRefusesIsVisibleWhileItLasts(t *testing.T) {
	t.Parallel()
	l := startMeshLab(t, consulNew, envoyNew, false)
	usher := startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul})
	startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoyNew, GRPCAddr: usher.GRPCAddr})
	waitStatus(t, l.call("/"), http.StatusOK)
	usher.waitMetric(t, `usher_xds_rejected{gateway="ingress-gateway",type="listener"}`, "")

	l.setAccessLog(t, "/no/such/directory/access.log")
	usher.waitMetric(t, `usher_xds_rejected{gateway="ingress-gateway",type="listener"}`, "1")
	usher.waitMetric(t, `usher_config_problems{gateway="ingress-gateway"}`, "1")
	usher.WaitOutput(t, "/no/such/directory/access.log")
	l.call("/").must(t).wantHello(t)

	l.setAccessLog(t, "/dev/null")
	usher.waitMetric(t, `usher_xds_rejected{gateway="ingress-gateway",type="listener"}`, "")
	usher.waitMetric(t, `usher_config_problems{gateway="ingress-gateway"}`, "0")
	usher.WaitOutput(t, "envoy accepts updates again")
}

// setAccessLog has requests logged into a file.
func (l *meshLab) setAccessLog(t *testing.T, path string) {
	t.Helper()
	l.Consul.writeEntry(t, readFile(t, "testdata/lab/proxy-defaults.hcl")+fmt.Sprintf(`
Config {
  usher {
    access_log { sinks = [{ type = "file", path = %q }] }
  }
}
`, path))
}

// waitMetric waits until a series has a value; "" until there is none.
func (u *usher) waitMetric(t *testing.T, series, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s is %q", series, want), changeDeadline, func() error {
		got := ""
		for line := range strings.Lines(u.metrics(t)) {
			if value, ok := strings.CutPrefix(line, series+" "); ok {
				got = strings.TrimSpace(value)
			}
		}
		if got != want {
			return errors.Join(fmt.Errorf("it is %q", got), u.Alive())
		}
		return nil
	})
}
