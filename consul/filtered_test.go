package consul

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/gateway"
)

const servicesPath = "/v1/catalog/gateway-services/gateway"

func TestServicesThatTheTokenMayNotReadAreNoEmptyGateway(t *testing.T) {
	c := newFakeGateway(t, "web", "api")
	c.set(servicesPath, reply{body: "[]", hidden: true})
	snapshots := c.watch(t)
	c.waitHandled(t, servicesPath, "/v1/connect/ca/roots", "/v1/config/proxy-defaults", "/v1/config/mesh",
		"/v1/config/ingress-gateway", "/v1/health/service/gateway")

	c.set(servicesPath, servicesAnswer("web", "api"))
	wantServices(t, <-snapshots, "api", "web")
}

func TestServicesStayWhenTheTokenLosesThem(t *testing.T) {
	for name, left := range map[string][]string{
		"one":  {"web"},
		"both": nil,
	} {
		t.Run(name, func(t *testing.T) {
			c := newFakeGateway(t, "web", "api")
			snapshots := c.watch(t)
			wantServices(t, <-snapshots, "api", "web")

			hidden := servicesAnswer(left...)
			hidden.hidden = true
			c.set(servicesPath, hidden)
			c.set("/v1/discovery-chain/api", reply{status: http.StatusForbidden, body: "Permission denied"})
			c.waitHandled(t, servicesPath)
			// The mesh's certificates still change.
			c.set("/v1/connect/ca/roots", roots("next"))
			for s := range snapshots {
				wantServices(t, s, "api", "web")
				if s.Roots.TrustDomain == "next.consul" {
					wantProblem(t, s, `services of gateway "gateway"`, "service:read on all services")
					break
				}
			}

			// The entry decides, not the memory.
			c.set("/v1/config/ingress-gateway", entryOf("web"))
			c.set(servicesPath, servicesAnswer("web"))
			for s := range snapshots {
				if len(s.Services) == 1 {
					wantServices(t, s, "web")
					break
				}
			}
		})
	}
}

// newFakeGateway is a Consul with the gateway "gateway" and its services, none
// of which has an instance.
func newFakeGateway(t *testing.T, services ...string) *fakeConsul {
	t.Helper()
	c := newFakeConsul(t)
	c.set("/v1/connect/ca/roots", roots("first"))
	c.set("/v1/agent/connect/ca/leaf/gateway", reply{body: `{"CertPEM": "certificate", "PrivateKeyPEM": "key"}`})
	c.set("/v1/config/proxy-defaults", reply{body: "[]"})
	c.set("/v1/config/mesh", reply{body: "[]"})
	c.set("/v1/config/ingress-gateway", entryOf(services...))
	c.set(servicesPath, servicesAnswer(services...))
	c.set("/v1/health/service/gateway", reply{body: `[{
		"Node": {"Node": "n1", "Datacenter": "dc1"}, "Service": {"Kind": "ingress-gateway", "ID": "gateway"}
	}]`})
	for _, s := range services {
		c.set("/v1/discovery-chain/"+s, reply{body: `{"Chain": {"Datacenter": "dc1", "StartNode": "start", "Nodes": {"start": {}}}}`})
	}
	return c
}

// watch returns the snapshots of the gateway.
func (c *fakeConsul) watch(t *testing.T) <-chan *gateway.Snapshot {
	t.Helper()
	snapshots := make(chan *gateway.Snapshot, 100)
	w := c.watcher(t)
	run(t, func(ctx context.Context) error {
		return w.Watch(ctx, gateway.ID{Name: "gateway"}, func(s *gateway.Snapshot) { snapshots <- s })
	})
	return snapshots
}

func roots(name string) reply {
	return reply{body: fmt.Sprintf(`{"TrustDomain": "%s.consul", "Roots": [{"RootCert": "pem"}]}`, name)}
}

// entryOf has one listener with the services.
func entryOf(services ...string) reply {
	return reply{body: fmt.Sprintf(`[{"Name": "gateway", "Listeners": [{"Port": 8080, "Protocol": "http", "Services": [%s]}]}]`,
		joined(`{"Name": %q}`, services))}
}

func servicesAnswer(services ...string) reply {
	return reply{body: "[" + joined(`{"Service": {"Name": %q}, "Port": 8080, "Protocol": "http"}`, services) + "]"}
}

func joined(format string, names []string) string {
	var items []string
	for _, name := range names {
		items = append(items, fmt.Sprintf(format, name))
	}
	return strings.Join(items, ", ")
}

func wantServices(t *testing.T, s *gateway.Snapshot, want ...string) {
	t.Helper()
	var got []string
	for _, row := range s.Services {
		got = append(got, row.Service.Name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("services of the snapshot: %s", diff)
	}
}
