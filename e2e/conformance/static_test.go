//go:build e2e

package conformance

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/resourcediff"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// envoys are the releases of Envoy that every set of resources is shown to.
var envoys = []string{lab.EnvoyNew, lab.EnvoyOld}

// validateDeadline is how long an Envoy may take to look at a set.
const validateDeadline = 60 * time.Second

// takenByEnvoy demands that an Envoy of each release takes what Usher sends. In
// its validate mode an Envoy looks at its bootstrap only, so all resources are
// put there.
func (s *suite) takenByEnvoy(t *testing.T, releases []string) {
	t.Helper()
	bootstrap := bootstrapFile(t, s.everything(t, s.usher))
	for _, release := range releases {
		begin := time.Now()
		if err := validateMode(t, release, bootstrap); err != nil {
			t.Errorf("Envoy %s does not take what Usher sends: %v", release, err)
		}
		s.validating += time.Since(begin)
		s.validated++
	}
}

// bootstrapFile writes the resources into a bootstrap.
func bootstrapFile(t *testing.T, r resources) string {
	t.Helper()
	bootstrap, err := staticOf(r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(path, []byte(resourcediff.Text(bootstrap)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func validateMode(t *testing.T, release, bootstrap string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), validateDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, testprocess.Tool(t, "envoy-"+release, "envoy"), "--mode", "validate", "--use-dynamic-base-id", "--log-level", "error", "-c", bootstrap)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// staticOf returns a bootstrap that holds the resources and needs no xDS server.
func staticOf(r resources) (tree, error) {
	listeners, clusters := resourcediff.Clone(r[resource.ListenerType]), resourcediff.Clone(r[resource.ClusterType])
	var err error
	servers := map[string]bool{}
	for _, part := range []tree{listeners, clusters} {
		resourcediff.Walk(part, func(object map[string]any) {
			err = cmp.Or(err, resourcediff.InlineSecrets(object, r[resource.SecretType]), inlineRoutes(object, r[resource.RouteType]))
			noteServer(object, servers)
		})
	}
	resourcediff.Walk(clusters, func(object map[string]any) { inlineEndpoints(object, r[resource.EndpointType]) })
	all := sorted(clusters)
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		all = append(all, object{"name": name, "type": "STATIC", "load_assignment": object{"cluster_name": name}})
	}
	return object{
		"node":             object{"id": gatewayName, "cluster": gatewayName},
		"static_resources": object{"listeners": sorted(listeners), "clusters": all},
	}, err
}

// inlineRoutes puts a route configuration in the place of its name.
func inlineRoutes(manager map[string]any, routes map[string]tree) error {
	rds, ok := manager["rds"].(map[string]any)
	if !ok {
		return nil
	}
	name := resourcediff.StringOr(rds["route_config_name"], "")
	config, ok := routes[name].(map[string]any)
	if !ok {
		return fmt.Errorf("route configuration %q is missing", name)
	}
	delete(manager, "rds")
	manager["route_config"] = withoutType(config)
	return nil
}

// inlineEndpoints puts a load assignment into its cluster.
func inlineEndpoints(cluster map[string]any, assignments map[string]tree) {
	if cluster["type"] != "EDS" {
		return
	}
	delete(cluster, "eds_cluster_config")
	cluster["type"] = "STATIC"
	cluster["load_assignment"] = object{"cluster_name": cluster["name"]}
	if a, ok := assignments[resourcediff.StringOr(cluster["name"], "")].(map[string]any); ok {
		cluster["load_assignment"] = withoutType(a)
	}
}

// noteServer collects the clusters of the operator's SDS servers, which are in
// the operator's own bootstrap.
func noteServer(object map[string]any, servers map[string]bool) {
	if server, ok := object["envoy_grpc"].(map[string]any); ok {
		servers[resourcediff.StringOr(server["cluster_name"], "")] = true
	}
}

// withoutType returns a resource as a field has it that can hold nothing else.
func withoutType(resource map[string]any) tree {
	out := maps.Clone(resource)
	delete(out, "@type")
	return out
}

// sorted returns resources in the order of their names.
func sorted(byName tree) []any {
	var out []any
	m, _ := byName.(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if r, ok := m[name].(map[string]any); ok {
			out = append(out, withoutType(r))
		}
	}
	return out
}

// TestEnvoyRefusesWhatTheFieldRulesAllow shows that looking is not for nothing:
// two virtual hosts with one domain are valid field by field.
func TestEnvoyRefusesWhatTheFieldRulesAllow(t *testing.T) {
	host := func(name string) object { return object{"name": name, "domains": []any{"example.com"}} }
	for _, hosts := range [][]any{{host("a")}, {host("a"), host("b")}} {
		r := resources{
			resource.ListenerType: {"http": object{
				"name":    "http",
				"address": object{"socket_address": object{"address": "127.0.0.1", "port_value": 8080}},
				"filter_chains": []any{object{"filters": []any{object{
					"name": "http",
					"typed_config": object{
						"@type":       "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
						"stat_prefix": "http",
						"rds":         object{"route_config_name": "8080", "config_source": object{"ads": object{}}},
						"http_filters": []any{object{
							"name":         "router",
							"typed_config": object{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
						}},
					},
				}}}},
			}},
			resource.RouteType: {"8080": object{"name": "8080", "virtual_hosts": hosts}},
		}
		bootstrap := bootstrapFile(t, r)
		for _, release := range envoys {
			err := validateMode(t, release, bootstrap)
			if taken := err == nil; taken != (len(hosts) == 1) {
				t.Errorf("Envoy %s: %v for %d hosts with one domain", release, err, len(hosts))
			}
		}
	}
}
