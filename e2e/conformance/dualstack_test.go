//go:build e2e

package conformance

import (
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/internal/resourcediff"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestSameResourcesAsConsulOnIPv6 has a Consul whose own address is an IPv6
// address: a gateway without an address listens on "::". An Envoy then takes
// connections over IPv6 alone, and over both where "0.0.0.0" is listed as well.
func TestSameResourcesAsConsulOnIPv6(t *testing.T) {
	s := startSuiteAt(t, current, "::1")
	s.releases = envoys
	taken := map[string]struct{ listeners, from []string }{
		"bind-none":       {[]string{"db:[::]:5432"}, []string{"::1"}},
		"bind-dual-stack": {[]string{"db:0.0.0.0:5432", "db:[::]:5432"}, []string{"127.0.0.1", "::1"}},
	}
	for _, c := range readCases(t) {
		want, checked := taken[c.Name]
		if !checked && !slices.Contains([]string{"bind-addresses", "bind-ipv6", "instances"}, c.Name) {
			continue
		}
		t.Run(c.Name, func(t *testing.T) { s.run(t, c) })
		if !checked {
			continue
		}
		for of, addr := range map[string]string{"Consul": s.consul.grpc, "Usher": s.usher} {
			t.Run(c.Name+", the Envoy of "+of, func(t *testing.T) { wantTaken(t, s.everything(t, addr), want.listeners, want.from) })
		}
	}
}

// wantTaken wants an Envoy with some listeners to take connections to these
// addresses of its host, and to no other one.
func wantTaken(t *testing.T, r resources, listeners, from []string) {
	t.Helper()
	port, moved := testprocess.FreePortAt(t, nil, "::"), map[string]tree{}
	for _, name := range listeners {
		l, ok := r[resource.ListenerType][name].(map[string]any)
		if !ok {
			t.Fatalf("there is no listener %s", name)
		}
		moved[name] = withPort(l, port)
	}
	r[resource.ListenerType] = moved
	testprocess.Start(t, testprocess.Command{
		Name: "envoy", Path: testprocess.Tool(t, "envoy-"+envoys[0], "envoy"),
		Args: []string{"--use-dynamic-base-id", "--log-level", "error", "-c", bootstrapFile(t, r)},
	})
	for _, ip := range from {
		eventually(t, "Envoy takes connections to "+ip, func() error { return dial(t, ip, port) })
	}
	for _, ip := range []string{"127.0.0.1", "::1"} {
		if !slices.Contains(from, ip) && dial(t, ip, port) == nil {
			t.Errorf("Envoy takes connections to %s", ip)
		}
	}
}

// withPort returns a listener with another port.
func withPort(listener map[string]any, port int) tree {
	moved := resourcediff.Clone(listener)
	resourcediff.Walk(moved, func(object map[string]any) {
		if _, is := object["port_value"]; is {
			object["port_value"] = port
		}
	})
	return moved
}

func dial(t *testing.T, ip string, port int) error {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", net.JoinHostPort(ip, fmt.Sprint(port)))
	if err == nil {
		conn.Close()
	}
	return err
}
