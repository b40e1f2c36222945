//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// badSetting is a setting that an operator got wrong, as HCL, and what Usher
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
		"usher.proxy_protocol.enabled", `this key is unknown; remove it, or use "mode", "versions", "trusted_cidrs", "tlvs", "upstream" or "server_speaks_first"`,
	},
	{
		"no network, for one listener", `usher { listeners { "8080" { proxy_protocol { trusted_cidrs = ["10.0.0.0/33"] } } } }`,
		"usher.listeners.8080.proxy_protocol.trusted_cidrs", `"10.0.0.0/33" is not allowed; use networks and addresses such as "10.0.0.0/8", "192.0.2.7" and "2001:db8::/32", or "any" alone`,
	},
	{
		"no object", `usher = "off"`,
		"usher", `"off" is not allowed; use an object with the keys "proxy_protocol", "client_address", "access_log", "listeners"`,
	},
}

// TestBadSettingsInConsul writes bad settings to proxy-defaults and to the
// gateway's registration while the gateway is strict. It stays strict, and what
// is right in another place still counts.
func TestBadSettingsInConsul(t *testing.T) {
	t.Parallel()
	l := startMeshLab(t, consulNew, envoyNew, false)
	l.setMode(t, "strict")
	usher := startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul})
	startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoyNew, GRPCAddr: usher.GRPCAddr})
	l.HAProxy.setHeader(t, v2Header)
	waitStatus(t, l.call("/"), http.StatusOK)

	for _, place := range []struct {
		name, where string
		write       func(settings string)
	}{
		{"proxy-defaults", `proxy-defaults "global"`, func(s string) { l.writeDefaults(t, s) }},
		{"registration", `service "ingress-gateway" on node "control"`, func(s string) { l.writeOwn(t, s) }},
	} {
		t.Run(place.name, func(t *testing.T) {
			place.write(`usher { proxy_protocol { mode = "strict" } }`)
			for _, bad := range badSettings {
				line := `msg="bad configuration" gateway=ingress-gateway ` + asLogged(place.where+": "+bad.where, bad.what)
				trouble := usher.wantTrouble(t, line, func() { place.write(bad.usher) })
				l.wantStrict(t)
				trouble.mended(t, func() { place.write(`usher { proxy_protocol { mode = "strict" } }`) })
				l.wantStrict(t)
			}
		})
	}
	l.wantOverrideOfBadDefaults(t, usher)
}

// wantOverrideOfBadDefaults has a bad value in proxy-defaults, which is a
// problem also where the registration overrides it, and does not keep the
// registration from being followed.
func (l *meshLab) wantOverrideOfBadDefaults(t *testing.T, usher *usher) {
	t.Helper()
	bad := badSettings[0]
	line := `msg="bad configuration" gateway=ingress-gateway ` + asLogged(`proxy-defaults "global": `+bad.where, bad.what)
	trouble := usher.wantTrouble(t, line, func() { l.writeDefaults(t, bad.usher) })
	l.wantStrict(t)
	plain := call{From: l.Balancer, To: l.Gateway.addr(8080)}
	l.writeOwn(t, `usher { proxy_protocol { mode = "permissive" } }`)
	waitStatus(t, plain, http.StatusOK)
	if n := usher.configProblems(t); n == 0 {
		t.Error("usher_config_problems is 0 where the registration overrides a bad proxy-defaults")
	}
	l.writeOwn(t, "") // what proxy-defaults last said well counts again
	l.waitRefused(t, plain)
	l.wantStrict(t)
	trouble.mended(t, func() { l.writeDefaults(t, `usher { proxy_protocol { mode = "permissive" } }`) })
	waitStatus(t, plain, http.StatusOK)
}

// writeDefaults writes the lab's proxy-defaults with settings, as HCL, in its
// Config.
func (l *meshLab) writeDefaults(t *testing.T, settings string) {
	t.Helper()
	l.Consul.writeEntry(t, readFile(t, "testdata/lab/proxy-defaults.hcl")+"Config {\n"+settings+"\n}\n")
}

// writeOwn registers the gateway again, with settings in its Proxy.Config.
func (l *meshLab) writeOwn(t *testing.T, settings string) {
	t.Helper()
	old, _, err := l.Consul.Client.Agent().Service("ingress-gateway", nil)
	if err != nil {
		t.Fatal(err)
	}
	if old.Address != l.Gateway.IP.String() {
		t.Fatalf("the gateway is registered with the address %q", old.Address)
	}
	l.Consul.register(t, gatewayDefinition(l.Gateway, settings))
}

// gatewayDefinition is the definition of an ingress gateway on a host, with
// settings in its Proxy.Config.
func gatewayDefinition(h *host, settings ...string) string {
	return fmt.Sprintf(`service {
  kind    = "ingress-gateway"
  name    = "ingress-gateway"
  address = %q
  port    = 8443
  proxy { config { %s } }
}
`, h.IP, strings.Join(settings, "\n"))
}

// register registers a service as an operator does, from a file.
func (a *consulAgent) register(t *testing.T, definition string) {
	t.Helper()
	file := writeFile(t, newDir(t), "service.hcl", definition)
	got := runToEnd(t, command{
		Path: a.binary, Args: []string{"services", "register", file}, Env: a.env(a.managementToken()), Host: a.Host,
	})
	if got.Code != 0 {
		t.Fatalf("consul services register: %s%s%s", got.Stdout, got.Stderr, definition)
	}
}

// wantStrict wants requests with a PROXY header answered, and connections
// without one closed.
func (l *meshLab) wantStrict(t *testing.T) {
	t.Helper()
	l.call(newPath()).must(t).wantHello(t)
	plain := call{From: l.Balancer, To: l.Gateway.addr(8080), Path: newPath()}
	if got, err := plain.do(t.Context()); err == nil {
		t.Errorf("a connection without a PROXY header got %d %q, want it closed", got.Status, got.Body)
	}
}

// waitRefused waits until connections are closed without an answer.
func (l *meshLab) waitRefused(t *testing.T, c call) {
	t.Helper()
	const row = 10
	c.Path = waitPrefix
	eventually(t, "connections to "+c.To+" are closed", changeDeadline, func() error {
		for range row {
			if got, err := c.do(t.Context()); err == nil {
				return fmt.Errorf("status %d", got.Status)
			}
		}
		return nil
	})
}
