//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// twoInstances are two instances of one gateway with one service ID, each
// registered at the Consul agent of its own node, one strict and one off.
type twoInstances struct {
	*lab.Lab
	Second *lab.Host
	agents map[*lab.Host]*lab.Consul
}

// TestTwoInstancesOnDifferentNodes has two instances of a gateway on one Usher,
// each with its own listeners. Usher identifies their Envoys by the address that
// they connect from or, through a unix socket, by the name of their node. An
// Envoy whose instance is unknown is refused, with the reason.
func TestTwoInstancesOnDifferentNodes(t *testing.T) {
	t.Parallel()
	l := startTwoInstances(t)
	t.Run("by address", func(t *testing.T) {
		usher := lab.StartUsher(t, lab.UsherOptions{
			Host: l.Control, Consul: l.Consul, XDSAddr: l.Control.Addr(18000), Args: []string{"--insecure-plaintext"},
		})
		envoys := map[*lab.Host]*lab.Envoy{}
		for h, agent := range l.agents {
			envoys[h] = lab.StartEnvoy(t, lab.EnvoyOptions{
				Name: "gateway on " + h.Name, Host: h, Consul: agent, Envoy: lab.EnvoyNew, AdminPort: 19000,
				GRPCAddr: usher.GRPCAddr, Args: []string{"-gateway=ingress", "-service", "ingress-gateway"},
			})
		}
		l.wantTheirListeners(t, envoys)
		l.wantRefused(t, usher, lab.BalancerIP)
		l.wantOneProblem(t, usher)
	})
	t.Run("by node name", func(t *testing.T) {
		usher := lab.StartUsher(t, lab.UsherOptions{
			Host: l.Control, Consul: l.Consul, XDSAddr: "unix://" + filepath.Join(testprocess.NewDir(t), "xds.sock"),
		})
		envoys := map[*lab.Host]*lab.Envoy{}
		for h := range l.agents {
			envoys[h] = lab.StartBootstrapped(t, lab.BootstrapOptions{
				Host: h, Envoy: lab.EnvoyNew, XDSAddr: usher.GRPCAddr, Args: []string{"--node-name", h.Name},
			})
		}
		l.wantTheirListeners(t, envoys)
		l.wantRefused(t, usher, "a unix socket")
	})
}

func startTwoInstances(t *testing.T) *twoInstances {
	t.Helper()
	l := &twoInstances{Lab: lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false), agents: map[*lab.Host]*lab.Consul{}}
	l.Second = l.AddHost(t, "gateway2", lab.Gateway2IP)
	for h, mode := range map[*lab.Host]string{l.Gateway: "strict", l.Second: "off"} {
		agent := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: h, Join: l.Consul})
		registerDefinition(t, agent, gatewayDefinition(h, fmt.Sprintf("usher { proxy_protocol { mode = %q } }", mode)))
		l.agents[h] = agent
	}
	return l
}

// ownReady is the ready listener in the bootstraps of Consul's CLI.
const ownReady = "envoy_ready_listener::127.0.0.1:8443\n"

// wantTheirListeners wants the first instance strict and the second off, each on
// its own address and no other.
func (l *twoInstances) wantTheirListeners(t *testing.T, envoys map[*lab.Host]*lab.Envoy) {
	t.Helper()
	l.WaitMode(t, l.Gateway, "strict")
	l.WaitMode(t, l.Second, "off")
	for h, e := range envoys {
		listeners, err := e.Admin("/listeners")
		if want := "http:" + h.Addr(8080) + "::" + h.Addr(8080) + "\n"; err != nil || strings.TrimPrefix(listeners, ownReady) != want {
			t.Errorf("%s has the listeners %q, want %q (%v)", e.Name, listeners, want, err)
		}
	}
}

// wantRefused starts an Envoy on a host that has none of the instances'
// addresses, and without its node's name: both logs say what to do.
func (l *twoInstances) wantRefused(t *testing.T, usher *lab.Usher, from string) {
	t.Helper()
	message := fmt.Sprintf(`Envoy "ingress-gateway" (release %s, from %s) can be an instance of gateway "ingress-gateway" on each of the nodes `+
		`"gateway", "gateway2", and their settings differ. `+
		`Start it with the name of its node: "usher bootstrap --node-name", or "consul connect envoy -node-name"`, lab.EnvoyNew, from)
	unknown := lab.StartBootstrapped(t, lab.BootstrapOptions{Host: l.Balancer, Envoy: lab.EnvoyNew, XDSAddr: usher.GRPCAddr})
	unknown.WaitOutput(t, message)
	usher.WaitOutput(t, strings.ReplaceAll(message, `"`, `\"`))
	if listeners, err := unknown.Admin("/listeners"); err != nil || listeners != "" {
		t.Errorf("an Envoy that is refused has the listeners %q, want none (%v)", listeners, err)
	}
}

// wantOneProblem has a bad proxy-defaults for a while. It is one problem, though
// both agents merge it into their registrations, each in its own time.
func (l *twoInstances) wantOneProblem(t *testing.T, usher *lab.Usher) {
	t.Helper()
	bad := badSettings[0]
	line := `msg=problem gateway=ingress-gateway ` + lab.LoggedProblem(`proxy-defaults "global": `+bad.where, bad.what)
	trouble := usher.WantProblem(t, line, func() { writeProxyDefaults(t, l.Lab, bad.usher) })
	trouble.WantFixed(t, func() { l.SetMode(t, "off") })
	l.WaitMode(t, l.Gateway, "strict")
	l.WaitMode(t, l.Second, "off")
}

// TestSettingsInFourPlaces sets the mode in each layer, from general to
// specific: the config file for all gateways, proxy-defaults, the gateway's
// registration, and the config file for the gateway. The later one wins, and so
// in reverse when the settings are removed. A setting for one listener wins over
// all settings for every listener. The file is written as editors do it, which
// truncate it first.
func TestSettingsInFourPlaces(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	const others = "gateway \"another\" {\n  usher { proxy_protocol { mode = \"strict\" } }\n}\n"
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: others})
	lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	setting := func(mode string) string { return fmt.Sprintf("usher { proxy_protocol { mode = %q } }", mode) }
	ofListener := func(mode string) string {
		return fmt.Sprintf("usher { listeners { \"8080\" { proxy_protocol { mode = %q } } } }", mode)
	}
	writeConfig := func(content string) {
		usher.WriteConfig(t, content)
	}
	own := "gateway \"ingress-gateway\" {\n  " + setting("MODE") + "\n}\n"

	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"no layer has a setting", func() {}, "off"},
		{"the file, for every gateway", func() { writeConfig(setting("permissive") + "\n" + others) }, "permissive"},
		{"proxy-defaults wins", func() { writeProxyDefaults(t, l, setting("strict")) }, "strict"},
		{"the registration wins", func() { writeGatewayRegistration(t, l, setting("off")) }, "off"},
		{"the file wins", func() { writeConfig(others + strings.ReplaceAll(own, "MODE", "permissive")) }, "permissive"},
		{"the file changes", func() { writeConfig(strings.ReplaceAll(own, "MODE", "strict") + others) }, "strict"},
		{"the file says off", func() { writeConfig(strings.ReplaceAll(own, "MODE", "off") + others) }, "off"},
		{"proxy-defaults says it of the listener", func() { writeProxyDefaults(t, l, ofListener("strict")) }, "strict"},
		{"the registration says it of the listener", func() { writeGatewayRegistration(t, l, ofListener("permissive")) }, "permissive"},
		{"the registration says off of all", func() { writeGatewayRegistration(t, l, setting("off")) }, "strict"},
		{"no layer has a setting for the listener", func() { writeProxyDefaults(t, l, setting("strict")) }, "off"},
		{"the registration changes beneath it", func() { writeGatewayRegistration(t, l, setting("permissive")) }, "off"},
		{"the file says nothing any more", func() { writeConfig(others) }, "permissive"},
		{"nor does the registration", func() { writeGatewayRegistration(t, l, "") }, "strict"},
		{"nor does proxy-defaults", func() { writeProxyDefaults(t, l, "") }, "off"},
	} {
		step.do()
		l.WaitMode(t, l.Gateway, step.want)
		t.Logf("%s: %s", step.name, step.want)
	}
	for _, line := range usher.Errors(t) {
		if !strings.Contains(line, `gateway \"another\"" what="no ingress gateway has this name`) {
			t.Errorf("usher logs an error: %s", line)
		}
	}
}
