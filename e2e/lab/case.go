//go:build e2e

package lab

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

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// GatewayCase is the content of a file in e2e/conformance/testdata: everything
// that Consul knows. Below the lower-case keys, names are those of Consul's API.
type GatewayCase struct {
	Name string `yaml:"-"` // of the file

	// Gateway overrides fields of the gateway's registration.
	Gateway map[string]any
	// Services are the mesh's services with their instances: fields that override
	// those of the sidecar's registration, and the Status of its check.
	Services map[string][]map[string]any
	// Entries are config entries.
	Entries []map[string]any
	// Nothing says that the gateway has no listener.
	Nothing bool
}

// String returns the case as a file would have it.
func (c GatewayCase) String() string {
	out, err := yaml.Marshal(map[string]any{"gateway": c.Gateway, "services": c.Services, "entries": c.Entries})
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// ReadCases reads the cases in the files that match the pattern, in the order of
// their names. A case is a C; setName gives it the name of its file.
func ReadCases[C any](t *testing.T, pattern string, setName func(c *C, name string)) []C {
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
		decoder := yaml.NewDecoder(bytes.NewReader(content))
		decoder.KnownFields(true)
		if err := decoder.Decode(&cases[i]); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		setName(&cases[i], strings.TrimSuffix(filepath.Base(path), ".yaml"))
	}
	return cases
}

// EntryKinds are the kinds of config entries in an order in which Consul accepts
// them. They are deleted in the opposite order.
var EntryKinds = []string{
	"proxy-defaults", "mesh", "service-defaults", "service-resolver", "service-splitter", "service-router", "ingress-gateway",
}

// InWriteOrder returns config entries in an order in which Consul accepts them.
func InWriteOrder(entries []map[string]any) []map[string]any {
	index := func(e map[string]any) int { return slices.Index(EntryKinds, fmt.Sprint(e["Kind"])) }
	return slices.SortedStableFunc(slices.Values(entries), func(a, b map[string]any) int { return cmp.Compare(index(a), index(b)) })
}

// DeleteEntries deletes all config entries of these kinds. Consul does not delete
// an entry to which another one of its kind refers.
func DeleteEntries(t *testing.T, client *api.Client) {
	t.Helper()
	for _, kind := range slices.Backward(EntryKinds) {
		testprocess.Eventually(t, "no entry of kind "+kind, testprocess.ChangeDeadline, func() error {
			entries, _, err := client.ConfigEntries().List(kind, nil)
			for _, e := range entries {
				_, deleted := client.ConfigEntries().Delete(kind, e.GetName(), nil)
				err = errors.Join(err, deleted)
			}
			return err
		})
	}
}

// Override overrides fields of the service in a registration. A Status becomes
// that of a check.
func Override(registration, over map[string]any) map[string]any {
	service, _ := registration["Service"].(map[string]any)
	maps.Copy(service, over)
	delete(service, "Status")
	if status := over["Status"]; status != nil {
		id := service["ID"]
		registration["Check"] = map[string]any{"CheckID": id, "Name": "alive", "ServiceID": id, "Status": status}
	}
	return registration
}
