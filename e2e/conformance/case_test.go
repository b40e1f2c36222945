//go:build e2e

package conformance

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	"go.yaml.in/yaml/v3"
)

// The gateway of every case, and the nodes that it and the services are on.
const (
	gatewayName = "ingress-gateway"
	gatewayNode = "edge"
	serviceNode = "mesh"
	serverNode  = "server" // Consul's own
)

// testCase is the content of a file in testdata: all that Consul knows.
// Everything below the lower-case keys is spelled as in Consul's API.
type testCase struct {
	name string

	// Gateway is laid over the gateway's registration.
	Gateway map[string]any
	// Services are the mesh's services, and each one's instances: what is laid
	// over the registration of the sidecar, and the Status of its check.
	Services map[string][]map[string]any
	// Entries are config entries.
	Entries []map[string]any
	// Nothing says that the gateway has no listener.
	Nothing bool
}

// String returns the case as a file would have it.
func (c testCase) String() string {
	out, err := yaml.Marshal(map[string]any{"gateway": c.Gateway, "services": c.Services, "entries": c.Entries})
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// readCases reads all cases that need nothing but one Consul.
func readCases(t *testing.T) []testCase {
	t.Helper()
	return readFiles(t, "testdata/*.yaml", func(c *testCase, name string) { c.name = name })
}

// readFiles reads the cases of some files, in the order of their names.
func readFiles[C any](t *testing.T, pattern string, call func(c *C, name string)) []C {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases in %s: %v", pattern, err)
	}
	cases := make([]C, len(paths))
	for i, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		dec := yaml.NewDecoder(bytes.NewReader(content))
		dec.KnownFields(true)
		if err := dec.Decode(&cases[i]); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		call(&cases[i], strings.TrimSuffix(filepath.Base(path), ".yaml"))
	}
	return cases
}

// kinds are the kinds of config entries in an order that Consul takes when they
// are written; they are removed in the opposite order.
var kinds = []string{
	"proxy-defaults", "mesh", "service-defaults", "service-resolver", "service-splitter", "service-router", "ingress-gateway",
}

// clear takes back what an earlier case has written, except the gateway's
// registration, which the next case replaces.
func (s *consulServer) clear(t *testing.T) {
	t.Helper()
	for _, kind := range slices.Backward(kinds) {
		s.clearKind(t, kind)
	}
	if _, err := s.client.Catalog().Deregister(&api.CatalogDeregistration{Node: serviceNode}, nil); err != nil {
		t.Fatalf("deregister %s: %v", serviceNode, err)
	}
}

// clearKind removes all entries of a kind, those first that no other of them
// refers to.
func (s *consulServer) clearKind(t *testing.T, kind string) {
	t.Helper()
	for {
		entries, _, err := s.client.ConfigEntries().List(kind, nil)
		if err != nil {
			t.Fatalf("list %s: %v", kind, err)
		}
		if len(entries) == 0 {
			return
		}
		var refused []error
		for _, e := range entries {
			if _, err := s.client.ConfigEntries().Delete(kind, e.GetName(), nil); err != nil {
				refused = append(refused, err)
			}
		}
		if len(refused) == len(entries) {
			t.Fatalf("delete entries of kind %s: %v", kind, errors.Join(refused...))
		}
	}
}

// load writes a case.
func (s *consulServer) load(c testCase) error {
	var writes []write
	for i, name := range slices.Sorted(maps.Keys(c.Services)) {
		for j, instance := range c.Services[name] {
			sidecar := sidecar(name, i+1, j+1, instance)
			writes = append(writes, write{registerPath, sidecar}, write{registerPath, behind(name, sidecar)})
		}
	}
	writes = append(writes, write{registerPath, gatewayRegistration(c.Gateway)})
	entries := slices.Clone(c.Entries)
	slices.SortStableFunc(entries, func(a, b map[string]any) int {
		return cmp.Compare(slices.Index(kinds, fmt.Sprint(a["Kind"])), slices.Index(kinds, fmt.Sprint(b["Kind"])))
	})
	for _, e := range entries {
		if !slices.Contains(kinds, fmt.Sprint(e["Kind"])) {
			return fmt.Errorf("kind %v is not one of %v", e["Kind"], kinds)
		}
		writes = append(writes, write{"/v1/config", e})
	}
	return s.write(writes)
}

func (s *consulServer) write(writes []write) error {
	for _, w := range writes {
		if _, err := s.client.Raw().Write(w.path, w.body, nil, nil); err != nil {
			return fmt.Errorf("PUT %s: %w: %s", w.path, err, text(w.body))
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
	return laidOver(map[string]any{"Node": serviceNode, "Address": "10.0.0.2", "Service": service}, over)
}

// laidOver lays what a case says over the service of a registration, and returns
// it a check if the case says a Status.
func laidOver(registration, over map[string]any) map[string]any {
	service, _ := registration["Service"].(map[string]any)
	maps.Copy(service, over)
	delete(service, "Status")
	if status := over["Status"]; status != nil {
		id := service["ID"]
		registration["Check"] = map[string]any{"CheckID": id, "Name": "alive", "ServiceID": id, "Status": status}
	}
	return registration
}

// behind registers the instance of a service that a sidecar stands before.
func behind(name string, sidecar map[string]any) map[string]any {
	service, _ := sidecar["Service"].(map[string]any)
	id := strings.TrimSuffix(fmt.Sprint(service["ID"]), "-sidecar-proxy")
	return map[string]any{
		"Node": serviceNode, "Address": "10.0.0.2",
		"Service": map[string]any{"ID": id, "Service": name, "Address": service["Address"], "Port": 8080},
	}
}
