//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestWhatAnEnvoyRefusesIsVisibleWhileItLasts gives a listener an access log in
// a directory that does not exist. The Envoy rejects the listener and keeps the
// one it has, and metrics show it until the setting is corrected.
func TestWhatAnEnvoyRefusesIsVisibleWhileItLasts(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
	lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	waitMetric(t, usher, `usher_xds_rejected{gateway="ingress-gateway",type="listener"}`, "")

	setAccessLog(t, l, "/no/such/directory/access.log")
	waitMetric(t, usher, `usher_xds_rejected{gateway="ingress-gateway",type="listener"}`, "1")
	waitMetric(t, usher, `usher_config_problems{gateway="ingress-gateway",severity="degraded"}`, "1")
	usher.WaitOutput(t, "/no/such/directory/access.log")
	l.Request("/").MustDo(t).WantHello(t)

	setAccessLog(t, l, "/dev/null")
	waitMetric(t, usher, `usher_xds_rejected{gateway="ingress-gateway",type="listener"}`, "")
	waitMetric(t, usher, `usher_config_problems{gateway="ingress-gateway",severity="degraded"}`, "0")
	usher.WaitOutput(t, "envoy accepts updates again")
}

// setAccessLog has requests logged into a file.
func setAccessLog(t *testing.T, l *lab.Lab, path string) {
	t.Helper()
	l.Consul.WriteEntry(t, testprocess.ReadFile(t, "testdata/lab/proxy-defaults.hcl")+fmt.Sprintf(`
Config {
  usher {
    access_log { sinks = [{ type = "file", path = %q }] }
  }
}
`, path))
}

// waitMetric waits until a series has a value; "" until there is none.
func waitMetric(t *testing.T, u *lab.Usher, series, want string) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("%s is %q", series, want), testprocess.ChangeDeadline, func() error {
		got := ""
		for line := range strings.Lines(u.Metrics(t)) {
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

// TestAPortInUseIsAnOutage gives the gateway's port to another program. The Envoy has
// no version of the listener, so it serves nothing, and one output says which Envoy it is
// and why.
func TestAPortInUseIsAnOutage(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	other := l.Gateway.Listen(t, "0.0.0.0:8080")
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
	lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	waitMetric(t, usher, `usher_config_problems{gateway="ingress-gateway",severity="outage"}`, "1")
	ready, err := usher.Admin("/readyz")
	for _, want := range []string{
		`outage (gateway ingress-gateway): Envoy "ingress-gateway" (release 1.40.0, from 127.0.0.1): it rejects the update of listener http:`,
		"Address already in use", "it has no earlier version of http:", ":8080, and serves nothing there",
	} {
		if err != nil || !strings.Contains(ready, want) {
			t.Errorf("/readyz does not have %q (%v):\n%s", want, err, ready)
		}
	}
	other.Close()
	setAccessLog(t, l, "/dev/null") // what was rejected is sent again when it changes
	waitMetric(t, usher, `usher_config_problems{gateway="ingress-gateway",severity="outage"}`, "0")
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
}
