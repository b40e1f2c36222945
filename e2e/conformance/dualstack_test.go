//go:build e2e

package conformance

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// TestSameResourcesAsConsulOnIPv6 has a Consul whose own address is an IPv6
// address: a gateway without an address listens on "::".
func TestSameResourcesAsConsulOnIPv6(t *testing.T) {
	s := startSuiteAt(t, current, "::1")
	s.releases = envoys
	for _, c := range readCases(t) {
		if !slices.Contains([]string{"bind-none", "bind-addresses", "bind-ipv6", "instances"}, c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) { s.run(t, c) })
		if c.name != "bind-none" {
			continue
		}
		for of, addr := range map[string]string{"Consul": s.consul.grpc, "Usher": s.usher} {
			t.Run("the Envoy of "+of, func(t *testing.T) { wantIPv6Only(t, s.everything(t, addr), "db:[::]:5432") })
		}
	}
}

// wantIPv6Only wants an Envoy to take connections to a listener on "::" over
// IPv6 alone: that is how Consul sends it.
func wantIPv6Only(t *testing.T, r resources, listener string) {
	t.Helper()
	l, ok := r[resource.ListenerType][listener].(map[string]any)
	if !ok {
		t.Fatalf("there is no listener %s", listener)
	}
	port := freePort(t)
	r[resource.ListenerType] = map[string]tree{listener: withPort(l, port)}
	start(t, "envoy", filepath.Join(toolsDir(), "envoy-"+envoys[0], "envoy"), "make tools",
		[]string{"--use-dynamic-base-id", "--log-level", "error", "-c", r.bootstrapFile(t)})
	eventually(t, "Envoy takes connections over IPv6", func() error { return dial(t, "::1", port) })
	if err := dial(t, "127.0.0.1", port); err == nil {
		t.Error("Envoy takes connections over IPv4")
	}
}

// withPort gives a listener with another port.
func withPort(listener map[string]any, port int) tree {
	moved := clone(listener)
	walk(moved, func(object map[string]any) {
		if _, is := object["port_value"]; is {
			object["port_value"] = port
		}
	})
	return moved
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func dial(t *testing.T, ip string, port int) error {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", net.JoinHostPort(ip, fmt.Sprint(port)))
	if err == nil {
		conn.Close()
	}
	return err
}
