//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestReadyWithoutConsul stops Consul: an Usher that can serve Envoys stays
// ready, and one that has nothing to serve does not.
func TestReadyWithoutConsul(t *testing.T) {
	t.Parallel()
	network := lab.NewNetwork(t)
	consul := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: network.Control})
	network.RegisterCatalog(t, consul)
	good := lab.StartUsher(t, lab.UsherOptions{Host: network.Gateway, Consul: consul})
	lab.FetchPrivateKey(t, lab.ConnectFakeEnvoy(t, lab.XDSPort{From: network.Gateway}.Dial(t), fakeenvoy.Delta, ""))
	empty := lab.StartUsher(t, lab.UsherOptions{Host: network.Service, Consul: consul}) // no Envoy has asked it
	consul.Kill()

	empty.WantNotReady(t, consul.HTTPAddr, "connection refused")
	good.WantReadyWithoutConsul(t, consul.HTTPAddr)
	wantProblemOfConsul(t, good, "degraded", "Usher uses the last valid answer")
	good.Stop(t)
	for _, line := range []string{"consul answers such queries again", "problem over"} {
		if strings.Contains(good.Output(t), line) {
			t.Errorf("while Consul is away, the log of an Usher that ends has %q:\n%s", line, good.Output(t))
		}
	}
	again := lab.LaunchUsher(t, lab.UsherOptions{Host: network.Gateway, Consul: consul})
	again.WantNotReady(t, consul.HTTPAddr, "connection refused")
	wantProblemOfConsul(t, again, "outage", "it has never answered, so Usher serves nothing")
}

// wantProblemOfConsul waits until the metrics have the problem of a severity that Consul does not answer. In /readyz, it is
// worth a line if Usher is ready.
func wantProblemOfConsul(t *testing.T, u *lab.Usher, severity, what string) {
	t.Helper()
	testprocess.Eventually(t, "usher has the problem that Consul does not answer", testprocess.ChangeDeadline, func() error {
		if metrics := u.Metrics(t); !strings.Contains(metrics, `usher_config_problems{gateway="",severity="`+severity+`"} 1`) {
			return errors.New("the metrics have no such problem")
		}
		ready, err := u.Admin("/readyz")
		if err == nil && (!strings.Contains(ready, severity+": consul at http") || !strings.Contains(ready, what)) {
			return fmt.Errorf("/readyz says %q", ready)
		}
		return nil
	})
}
