//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestEnvoyKeepsWhatIsNewerThanTheRestoredState is about two Ushers behind one address. One has stopped early, so its state
// directory is old. When Consul is gone and the other one dies, the Envoy connects to the old one: it keeps what it has, and
// a new Envoy gets the old configuration. When Consul is back, the Envoy gets the newest.
func TestEnvoyKeepsWhatIsNewerThanTheRestoredState(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	l.HAProxy.SetHeader(t, lab.SendNone)
	options := func() lab.UsherOptions {
		key := lab.WriteFile(t, testprocess.NewDir(t), "key", "0123456789abcdef0123456789abcdef")
		return lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Args: []string{"--state-dir", testprocess.NewDir(t), "--state-key-file", key}}
	}
	old, other := options(), options()

	usher := lab.StartUsher(t, old)
	envoy := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	envoy.WaitListener(t, 8080)
	usher.Stop(t)
	usher = lab.StartUsher(t, other)
	usher.WaitStream(t)
	setListeners(t, l, 8080, 9090)
	envoy.WaitListener(t, 9090)

	unreachable := "unreachable " + lab.ControlIP + "/32"
	l.Gateway.RunIP(t, "route add "+unreachable)
	waitMetric(t, usher, "usher_consul_up", "0")
	usher.Kill()
	setListeners(t, l, 8080, 9091) // no Usher sees it: what Consul sends would still arrive
	removed := envoy.Stat(t, "listener_manager.listener_removed")
	usher = lab.StartUsher(t, old)
	usher.WaitOutput(t, "envoy keeps what it has")
	waitStatus(t, usher, `"sync":"waiting"`)
	if sent := usher.MetricSum(t, resourceBytes); sent != 0 {
		t.Errorf("the Envoy was sent %v bytes of an older configuration", sent)
	}
	wantPorts(t, envoy, 8080, 9090)
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)

	fresh := lab.ConnectFakeEnvoy(t, lab.XDSPort{From: l.Gateway}.Dial(t), fakeenvoy.Delta, "")
	fresh.Subscribe(resource.ListenerType)
	if names := fresh.Next().Names; len(names) != 1 || !strings.HasSuffix(names[0], ":8080") {
		t.Errorf("a new Envoy gets the listeners %q, want the one that was saved", names)
	}
	fresh.Disconnect()
	if now := envoy.Stat(t, "listener_manager.listener_removed"); now != removed {
		t.Errorf("the Envoy has lost %d listeners", now-removed)
	}

	l.Gateway.RunIP(t, "route del "+unreachable)
	envoy.WaitListener(t, 9091)
	testprocess.Eventually(t, "the Envoy has the newest listeners", testprocess.ChangeDeadline, func() error {
		ports, err := envoy.ListenerPorts()
		if err == nil && slices.Contains(ports, 9090) {
			err = fmt.Errorf("it has the ports %v", ports)
		}
		return err
	})
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	if status, err := usher.Admin("/status"); err != nil || strings.Contains(status, `"sync":"waiting"`) {
		t.Errorf("the status after the outage is %s (%v)", status, err)
	}
}

// setListeners writes the gateway's entry with http listeners on these ports.
func setListeners(t *testing.T, l *lab.Lab, ports ...int) {
	t.Helper()
	entry := "Kind = \"ingress-gateway\"\nName = \"ingress-gateway\"\nListeners = [\n"
	for _, port := range ports {
		entry += fmt.Sprintf("  { Port = %d, Protocol = \"http\", Services = [{ Name = \"static-server\" }] },\n", port)
	}
	l.Consul.WriteEntry(t, entry+"]\n")
}

func wantPorts(t *testing.T, e *lab.Envoy, want ...int) {
	t.Helper()
	ports, err := e.ListenerPorts()
	for _, port := range want {
		if err != nil || !slices.Contains(ports, port) {
			t.Errorf("the Envoy has listeners on the ports %v, want one on %d (%v)", ports, port, err)
		}
	}
}

// waitStatus waits until /status has the text.
func waitStatus(t *testing.T, u *lab.Usher, text string) {
	t.Helper()
	testprocess.Eventually(t, "/status has "+text, testprocess.ChangeDeadline, func() error {
		status, err := u.Admin("/status")
		if err == nil && !strings.Contains(status, text) {
			err = errors.New(status)
		}
		return err
	})
}
