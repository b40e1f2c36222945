//go:build e2e

package conformance

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/resourcediff"
)

// The gateway of every case, and the nodes that it and the services are on.
const (
	gatewayName = "ingress-gateway"
	gatewayNode = "edge"
	serviceNode = "mesh"
	serverNode  = "server" // Consul's own
)

// readCases reads all cases that need nothing but one Consul.
func readCases(t *testing.T) []lab.GatewayCase {
	t.Helper()
	return lab.ReadCases(t, "testdata/*.yaml", func(c *lab.GatewayCase, name string) { c.Name = name })
}

// reset takes back what an earlier case has written, except the gateway's
// registration, which the next case replaces.
func (s *consulServer) reset(t *testing.T) {
	t.Helper()
	lab.DeleteEntries(t, s.client)
	if _, err := s.client.Catalog().Deregister(&api.CatalogDeregistration{Node: serviceNode}, nil); err != nil {
		t.Fatalf("deregister %s: %v", serviceNode, err)
	}
}

// load writes a case.
func (s *consulServer) load(c lab.GatewayCase) error {
	var writes []write
	for i, name := range slices.Sorted(maps.Keys(c.Services)) {
		for j, instance := range c.Services[name] {
			sidecar := sidecar(name, i+1, j+1, instance)
			writes = append(writes, write{registerPath, sidecar}, write{registerPath, serviceInstance(name, sidecar)})
		}
	}
	writes = append(writes, write{registerPath, gatewayRegistration(c.Gateway)})
	for _, e := range lab.InWriteOrder(c.Entries) {
		if !slices.Contains(lab.EntryKinds, fmt.Sprint(e["Kind"])) {
			return fmt.Errorf("kind %v is not one of %v", e["Kind"], lab.EntryKinds)
		}
		writes = append(writes, write{"/v1/config", e})
	}
	return s.write(writes)
}

func (s *consulServer) write(writes []write) error {
	for _, w := range writes {
		if _, err := s.client.Raw().Write(w.path, w.body, nil, nil); err != nil {
			return fmt.Errorf("PUT %s: %w: %s", w.path, err, resourcediff.Text(w.body))
		}
	}
	return nil
}

// write is a body for a path of Consul's API.
type write struct {
	path string
	body map[string]any
}

const registerPath = "/v1/catalog/register"

func gatewayRegistration(over map[string]any) map[string]any {
	service := map[string]any{
		"Kind": "ingress-gateway", "ID": gatewayName, "Service": gatewayName, "Address": "10.0.1.1", "Port": 8443,
	}
	maps.Copy(service, over)
	return map[string]any{"Node": gatewayNode, "Address": "10.0.0.1", "Service": service}
}

// sidecar registers the jth instance of the ith service.
func sidecar(name string, i, j int, over map[string]any) map[string]any {
	id := fmt.Sprintf("%s-%d-sidecar-proxy", name, j)
	service := map[string]any{
		"Kind": "connect-proxy", "ID": id, "Service": name + "-sidecar-proxy",
		"Address": fmt.Sprintf("10.1.%d.%d", i, j), "Port": 21000,
		"Proxy": map[string]any{"DestinationServiceName": name},
	}
	return lab.Override(map[string]any{"Node": serviceNode, "Address": "10.0.0.2", "Service": service}, over)
}

// serviceInstance registers the instance of a service that a sidecar stands before.
func serviceInstance(name string, sidecar map[string]any) map[string]any {
	service, _ := sidecar["Service"].(map[string]any)
	id := strings.TrimSuffix(fmt.Sprint(service["ID"]), "-sidecar-proxy")
	return map[string]any{
		"Node": serviceNode, "Address": "10.0.0.2",
		"Service": map[string]any{"ID": id, "Service": name, "Address": service["Address"], "Port": 8080},
	}
}
