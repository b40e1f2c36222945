//go:build e2e

package conformance

import (
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
		for _, name := range []string{"db:[::]:5432", "http:[::]:8080"} {
			if s.everything(t, s.usher)[resource.ListenerType][name] == nil {
				t.Errorf("there is no listener %s", name)
			}
		}
	}
}
