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

// badSetting is a setting with a mistake, as HCL, and what Usher
// says of it behind the place where it stands.
type badSetting struct{ name, usher, where, what string }

// badSettings fit into every place where Usher's settings can stand.
var badSettings = []badSetting{
	{
		"wrong mode", `usher { proxy_protocol { mode = "stict" } }`,
		"usher.proxy_protocol.mode", `"stict" is not allowed (did you mean "strict"?); use "auto", "off", "permissive" or "strict"`,
	},
	{
		"unknown key", `usher { proxy_protocol { mode = "off", enabled = "yes" } }`,
		"usher.proxy_protocol.enabled", `this key is unknown; remove it, or use "mode", "versions", "trusted_cidrs", "tlvs", "upstream", "upstream_tlvs" or "server_speaks_first"`,
	},
	{
		"no network, for one listener", `usher { listeners { "8080" { proxy_protocol { trusted_cidrs = ["10.0.0.0/33"] } } } }`,
		"usher.listeners.8080.proxy_protocol.trusted_cidrs", `"10.0.0.0/33" is not allowed; use "any" or a list of networks and addresses such as "10.0.0.0/8", "192.0.2.7" and "2001:db8::/32"`,
	},
	{
		"no object", `usher = "off"`,
		"usher", `"off" is not allowed; use an object with the keys "proxy_protocol", "client_address", "access_log", "listeners"`,
	},
}

// TestBadSettingsInConsul writes bad settings to proxy-defaults and to the
// gateway's registration while the gateway is strict. It stays strict, and
// correct settings in other layers still apply.
func TestBadSettingsInConsul(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	l.SetMode(t, "strict")
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
	lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	l.HAProxy.SetHeader(t, lab.SendV2)
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)

	for _, place := range []struct {
		name, where string
		write       func(settings string)
	}{
		{"proxy-defaults", `proxy-defaults "global"`, func(s string) { writeProxyDefaults(t, l, s) }},
		{"registration", `service "ingress-gateway" on node "control"`, func(s string) { writeGatewayRegistration(t, l, s) }},
	} {
		t.Run(place.name, func(t *testing.T) {
			place.write(`usher { proxy_protocol { mode = "strict" } }`)
			for _, bad := range badSettings {
				line := `msg=problem gateway=ingress-gateway ` + lab.LoggedProblem(place.where+": "+bad.where, bad.what)
				trouble := usher.WantProblem(t, line, func() { place.write(bad.usher) })
				wantStrictMode(t, l)
				trouble.WantFixed(t, func() { place.write(`usher { proxy_protocol { mode = "strict" } }`) })
				wantStrictMode(t, l)
			}
		})
	}
	wantOverrideOfBadDefaults(t, l, usher)
}

// wantOverrideOfBadDefaults has a bad value in proxy-defaults, which is a
// problem also where the registration overrides it, and does not keep the
// registration from being followed.
func wantOverrideOfBadDefaults(t *testing.T, l *lab.Lab, usher *lab.Usher) {
	t.Helper()
	bad := badSettings[0]
	line := `msg=problem gateway=ingress-gateway ` + lab.LoggedProblem(`proxy-defaults "global": `+bad.where, bad.what)
	trouble := usher.WantProblem(t, line, func() { writeProxyDefaults(t, l, bad.usher) })
	wantStrictMode(t, l)
	plain := lab.Request{From: l.Balancer, To: l.Gateway.Addr(8080)}
	writeGatewayRegistration(t, l, `usher { proxy_protocol { mode = "permissive" } }`)
	lab.WaitStatus(t, plain, http.StatusOK)
	if n := usher.ConfigProblems(t); n == 0 {
		t.Error("usher_config_problems is 0 where the registration overrides a bad proxy-defaults")
	}
	writeGatewayRegistration(t, l, "") // what proxy-defaults last said well counts again
	waitPlainRefused(t, plain)
	wantStrictMode(t, l)
	trouble.WantFixed(t, func() { writeProxyDefaults(t, l, `usher { proxy_protocol { mode = "permissive" } }`) })
	lab.WaitStatus(t, plain, http.StatusOK)
}

// writeProxyDefaults writes the lab's proxy-defaults with settings, as HCL, in its
// Config.
func writeProxyDefaults(t *testing.T, l *lab.Lab, settings string) {
	t.Helper()
	l.Consul.WriteEntry(t, testprocess.ReadFile(t, "testdata/lab/proxy-defaults.hcl")+"Config {\n"+settings+"\n}\n")
}

// writeGatewayRegistration registers the gateway again, with settings in its Proxy.Config.
func writeGatewayRegistration(t *testing.T, l *lab.Lab, settings string) {
	t.Helper()
	old, _, err := l.Consul.Client.Agent().Service("ingress-gateway", nil)
	if err != nil {
		t.Fatal(err)
	}
	if old.Address != l.Gateway.IP.String() {
		t.Fatalf("the gateway is registered with the address %q", old.Address)
	}
	registerDefinition(t, l.Consul, gatewayDefinition(l.Gateway, settings))
}

// gatewayDefinition is the definition of an ingress gateway on a host, with
// settings in its Proxy.Config.
func gatewayDefinition(h *lab.Host, settings ...string) string {
	return fmt.Sprintf(`service {
  kind    = "ingress-gateway"
  name    = "ingress-gateway"
  address = %q
  port    = 8443
  proxy { config { %s } }
}
`, h.IP, strings.Join(settings, "\n"))
}

// registerDefinition registers a service from a file, with the CLI.
func registerDefinition(t *testing.T, a *lab.Consul, definition string) {
	t.Helper()
	file := lab.WriteFile(t, testprocess.NewDir(t), "service.hcl", definition)
	got := testprocess.Run(t, testprocess.Command{
		Path: a.Binary, Args: []string{"services", "register", file}, Env: a.Env(a.DefaultToken()), Host: a.Host,
	}, "")
	if got.Code != 0 {
		t.Fatalf("consul services register: %s%s%s", got.Stdout, got.Stderr, definition)
	}
}

// wantStrictMode wants requests with a PROXY header answered, and connections
// without one closed.
func wantStrictMode(t *testing.T, l *lab.Lab) {
	t.Helper()
	l.Request(lab.NewPath()).MustDo(t).WantHello(t)
	plain := lab.Request{From: l.Balancer, To: l.Gateway.Addr(8080), Path: lab.NewPath()}
	if got, err := plain.Do(t.Context()); err == nil {
		t.Errorf("a connection without a PROXY header got %d %q, want it closed", got.Status, got.Body)
	}
}

// waitPlainRefused waits until connections are closed without an answer.
func waitPlainRefused(t *testing.T, c lab.Request) {
	t.Helper()
	const consecutive = 10
	c.Path = lab.PollPath
	testprocess.Eventually(t, "connections to "+c.To+" are closed", testprocess.ChangeDeadline, func() error {
		for range consecutive {
			if got, err := c.Do(t.Context()); err == nil {
				return fmt.Errorf("status %d", got.Status)
			}
		}
		return nil
	})
}
