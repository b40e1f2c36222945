//go:build e2e

package conformance

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/resourcediff"
)

// TestInstanceWithAHostName shows what becomes of instances that are registered
// with a host name. Consul sends Envoy the name in the place of an address;
// Envoy then refuses all instances of the service. Usher leaves the one out.
func TestInstanceWithAHostName(t *testing.T) {
	t.Parallel()
	s := startSuite(t, current)
	cases := lab.ReadCases(t, "testdata/better/host-names.yaml", func(c *lab.GatewayCase, name string) { c.Name = name })
	if err := s.consul.load(cases[0]); err != nil {
		t.Fatal(err)
	}
	consul, usher := s.everything(t, s.consul.grpc), s.everything(t, s.usher)
	if got, want := addressesOf(consul), []string{"10.1.2.2", "api.example.com", "web.example.com"}; !slices.Equal(got, want) {
		t.Errorf("Consul sends the addresses %q, want %q", got, want)
	}
	if got, want := addressesOf(usher), []string{"10.1.2.2"}; !slices.Equal(got, want) {
		t.Errorf("Usher sends the addresses %q, want %q", got, want)
	}
}

// TestRemoteHostNames shows the same of the addresses that another datacenter's
// instances and mesh gateways have for those outside.
func TestRemoteHostNames(t *testing.T) {
	t.Parallel()
	s := startSuite(t, current)
	c := readFederated(t, "testdata/better/remote-host-names.yaml")[0]
	s.loadFederated(t, startRemote(t, s.consul), c)
	if err := s.consul.load(c.GatewayCase); err != nil {
		t.Fatal(err)
	}
	for _, server := range []struct {
		name, addr string
		want       []string
	}{
		{"Consul", s.consul.grpc, []string{"10.1.2.2", "198.51.100.22", "gateway.dc2.example.com", "web.dc2.example.com"}},
		{"Usher", s.usher, []string{"10.1.2.2", "198.51.100.22"}},
	} {
		eventually(t, server.name+" sends the addresses", func() error {
			if got := addressesOf(s.everything(t, server.addr)); !slices.Equal(got, server.want) {
				return fmt.Errorf("it sends %q, want %q", got, server.want)
			}
			return nil
		})
	}
	s.takenByEnvoy(t, envoys)
}

// TestHostNamesOfAClusterPeer shows the same of a cluster peer's mesh gateways.
// Consul then sends none of them: it has routes, and waits for instances.
func TestHostNamesOfAClusterPeer(t *testing.T) {
	t.Parallel()
	s := startSuite(t, current)
	c := readFederated(t, "testdata/better/peer-host-names.yaml")[0]
	s.loadPeered(t, startPeer(t, s.consul), c)
	s.consul.reset(t)
	if err := s.consul.load(c.GatewayCase); err != nil {
		t.Fatal(err)
	}
	if missing := s.missingBesideRoutes(t); !strings.HasPrefix(missing, resource.EndpointType) {
		t.Errorf("with Consul %q is missing, want the only load assignment", missing)
	}
	eventually(t, "Usher sends the address that is one", func() error {
		if got, want := addressesOf(s.everything(t, s.usher)), []string{"198.51.100.22"}; !slices.Equal(got, want) {
			return fmt.Errorf("it sends %q, want %q", got, want)
		}
		return nil
	})
	s.takenByEnvoy(t, envoys)
}

// missingBesideRoutes returns what an Envoy of Consul's lacks when it has routes,
// which come last.
func (s *suite) missingBesideRoutes(t *testing.T) string {
	t.Helper()
	e, stop := connect(t, s.consul.grpc)
	defer stop()
	timeout := time.NewTimer(settleDeadline)
	defer timeout.Stop()
	for {
		select {
		case v := <-e.views:
			if len(v.Resources[resource.RouteType]) > 0 {
				return v.Missing
			}
		case <-timeout.C:
			t.Fatalf("Consul sends no routes within %v", settleDeadline)
		}
	}
}

// everything returns what an Envoy gets of a server.
func (s *suite) everything(t *testing.T, addr string) resources {
	t.Helper()
	e, stop := connect(t, addr)
	defer stop()
	v, err := settled(e, nothingElse)
	if err != nil {
		t.Fatal(err)
	}
	return v.Resources
}

// addresses lists the addresses in all load assignments.
func addressesOf(r resources) []string {
	var out []string
	for _, assignment := range r[resource.EndpointType] {
		resourcediff.Walk(assignment, func(object map[string]any) {
			if address, ok := object["socket_address"].(map[string]any); ok {
				out = append(out, resourcediff.StringOr(address["address"], ""))
			}
		})
	}
	slices.Sort(out)
	return out
}
