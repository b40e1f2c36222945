//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

func readGatewayCase(t *testing.T, name string) lab.GatewayCase {
	t.Helper()
	c := lab.ReadCases(t, filepath.Join("conformance", "testdata", name+".yaml"), func(c *lab.GatewayCase, name string) { c.Name = name })[0]
	if len(c.Gateway) > 0 {
		t.Fatalf("%s: the gateways of this test register themselves", name)
	}
	return c
}

// withAccessLogs switches the access logs on where a case says nothing about
// them.
func withAccessLogs(c *lab.GatewayCase) {
	on := map[string]any{"Enabled": true}
	for _, e := range c.Entries {
		if e["Kind"] == "proxy-defaults" {
			if e["AccessLogs"] == nil {
				e["AccessLogs"] = on
			}
			return
		}
	}
	c.Entries = append(c.Entries, map[string]any{"Kind": "proxy-defaults", "Name": "global", "AccessLogs": on})
}

// listenerPorts are those of the gateway's listeners.
func listenerPorts(c lab.GatewayCase) []int {
	var out []int
	for _, e := range c.Entries {
		if e["Kind"] != "ingress-gateway" {
			continue
		}
		listeners, _ := e["Listeners"].([]any)
		for _, l := range listeners {
			listener, _ := l.(map[string]any)
			port, _ := listener["Port"].(int)
			out = append(out, port)
		}
	}
	return out
}

// behaviourStory are the two gateways, and services that say what they got.
type behaviourStory struct {
	*lab.Comparison
	mesh *echoMesh
	xds  string // Usher's address
}

// meshNode is the node of all services.
const meshNode = "mesh"

func startBehaviourStory(t *testing.T) *behaviourStory {
	t.Helper()
	l := lab.NewNetwork(t)
	s := &behaviourStory{Comparison: &lab.Comparison{Network: l}}
	s.Consul = lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: l.Control})
	s.mesh = newEchoMesh(t, s.Consul, l.Service)
	s.xds = lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: s.Consul}).GRPCAddr
	s.OnUsher = &lab.LoadedGateway{Envoy: &lab.Envoy{Host: l.Gateway}}
	s.OnConsul = &lab.LoadedGateway{Envoy: &lab.Envoy{Host: l.AddHost(t, "gateway2", lab.Gateway2IP)}}
	return s
}

// startCase starts an Envoy of each gateway, changes Consul to a case, and waits
// until both answer the request as it wants. The Envoys come first: with a
// proxy-defaults entry there already, their admin ports would log as well.
func (s *behaviourStory) startCase(t *testing.T, c lab.GatewayCase, first request) {
	t.Helper()
	s.clear(t)
	s.startEnvoys(t)
	for _, service := range slices.Sorted(maps.Keys(c.Services)) {
		for i, over := range c.Services[service] {
			s.register(t, service, fmt.Sprintf("%s-%d", service, i+1), over)
		}
	}
	for _, e := range lab.InWriteOrder(c.Entries) {
		s.put(t, "/v1/config", e)
	}
	s.waitSameConfig(t, c)
	testprocess.Eventually(t, fmt.Sprintf("both answer %v", first), testprocess.ChangeDeadline, func() error {
		usher, consul := s.sendBoth(first)
		return errors.Join(usher.err, consul.err, first.wants(usher), first.wants(consul))
	})
}

// startEnvoys starts Envoys with one thread, so that limits and turns are exact,
// and a ready port that no case has.
func (s *behaviourStory) startEnvoys(t *testing.T) {
	t.Helper()
	start := func(g *lab.LoadedGateway, id, xds string) {
		g.Envoy = lab.StartGateway(t, lab.GatewayOptions{
			Host: g.Host, Consul: s.Consul, Envoy: lab.EnvoyNew, GRPCAddr: xds, ID: id, ReadyPort: 9999,
			EnvoyArgs: []string{"--concurrency", "1"},
		})
	}
	start(s.OnUsher, "on-usher", s.xds)
	start(s.OnConsul, "on-consul", "")
}

// put writes a body to a path of Consul's API.
func (s *behaviourStory) put(t *testing.T, path string, body map[string]any) {
	t.Helper()
	if _, err := s.Consul.Client.Raw().Write(path, body, nil, nil); err != nil {
		t.Fatalf("PUT %s %v: %v", path, body, err)
	}
}

// register puts an instance into the catalog.
func (s *behaviourStory) register(t *testing.T, service, instance string, over map[string]any) {
	t.Helper()
	s.put(t, "/v1/catalog/register", lab.Override(map[string]any{
		"Node": meshNode, "Address": s.mesh.host.IP.String(), "Service": map[string]any{
			"Kind": "connect-proxy", "ID": instance + "-sidecar-proxy", "Service": service + "-sidecar-proxy",
			"Address": s.mesh.host.IP.String(), "Port": s.mesh.port(t, service, instance),
			"Proxy": map[string]any{"DestinationServiceName": service},
		},
	}, over))
	s.put(t, "/v1/catalog/register", map[string]any{
		"Node": meshNode, "Address": s.mesh.host.IP.String(), "Service": map[string]any{"ID": instance, "Service": service, "Port": 8080},
	})
}

// clear takes back what the case before has written.
func (s *behaviourStory) clear(t *testing.T) {
	t.Helper()
	lab.DeleteEntries(t, s.Consul.Client)
	// A node that is not there is no error.
	s.put(t, "/v1/catalog/deregister", map[string]any{"Node": meshNode})
}

// waitSameConfig waits until both Envoys serve the case's listeners, and know as many
// services and the same instances of every cluster. What their routes say is for
// the requests to tell.
func (s *behaviourStory) waitSameConfig(t *testing.T, c lab.GatewayCase) {
	t.Helper()
	for _, g := range s.Both() {
		for _, port := range listenerPorts(c) {
			g.WaitListener(t, port)
		}
	}
	testprocess.Eventually(t, "both Envoys know the same", testprocess.ChangeDeadline, func() error {
		usher, errUsher := s.configOf(s.OnUsher)
		consul, errConsul := s.configOf(s.OnConsul)
		return errors.Join(errUsher, errConsul, firstDifference(usher, consul))
	})
}

// configOf is what an Envoy says about its instances, a line each, and a line for
// every virtual host.
func (s *behaviourStory) configOf(g *lab.LoadedGateway) ([]string, error) {
	clusters, err := g.Admin("/clusters")
	if err != nil {
		return nil, err
	}
	routes, err := g.Admin("/config_dump?resource=dynamic_route_configs")
	var out []string
	for line := range strings.Lines(clusters) {
		if strings.Contains(line, "::health_flags::") && !strings.HasPrefix(line, "local_agent::") {
			out = append(out, line)
		}
	}
	for line := range strings.Lines(routes) {
		if strings.Contains(line, `"domains":`) {
			out = append(out, "virtual host")
		}
	}
	slices.Sort(out)
	return out, err
}

// firstDifference is nil for lines that are the same.
func firstDifference(usher, consul []string) error {
	for i := range max(len(usher), len(consul)) {
		a, b := at(usher, i), at(consul, i)
		if a != b {
			return fmt.Errorf("on Usher %q, on Consul's own xDS %q", a, b)
		}
	}
	return nil
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "nothing more"
}

// varying are the names of headers and of fields of the access log that no two
// requests have alike, and why. They have to be there all the same.
var varying = map[string]string{
	"date":                          "time",
	"x-envoy-upstream-service-time": "time",
	"start_time":                    "time",
	"duration":                      "time",
	"upstream_service_time":         "time",
	"x-request-id":                  "random",
	"request_id":                    "random",
	"upstream_local_address":        "the gateway's address, and a port that the kernel picks",
}

// maskings are the parts of values that no two requests have alike.
var maskings = []struct {
	of   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(regexp.QuoteMeta(lab.ClientIP) + `:\d+`), "CLIENT:PORT"},
	{regexp.MustCompile(regexp.QuoteMeta(lab.GatewayIP) + "|" + regexp.QuoteMeta(lab.Gateway2IP)), "GATEWAY"},
	{regexp.MustCompile(`="[0-9a-f]{16}"`), "=COOKIE"}, // a hash of both ends of the connection
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z`), "TIME"},
}

// masked is the line of a name and a value, without what varies.
func masked(where, name, value string) string {
	if varying[name] != "" && value != "" {
		return where + ": " + name + " is there"
	}
	return where + ": " + name + ": " + unvaried(value)
}

// unvaried is a value without its parts that vary.
func unvaried(value string) string {
	for _, m := range maskings {
		value = m.of.ReplaceAllString(value, m.with)
	}
	return value
}

// loggedPaths is how much the Envoy has written to each of its outputs.
func loggedPaths(g *lab.LoadedGateway) ([2]int64, error) {
	var out [2]int64
	for i, path := range []string{g.Stdout, g.Stderr} {
		info, err := os.Stat(path)
		if err != nil {
			return out, err
		}
		out[i] = info.Size()
	}
	return out, nil
}

// accessLogSince waits until the access log has the number of entries after the mark,
// and returns them. On standard error they are among Envoy's own words.
func accessLogSince(g *lab.LoadedGateway, mark [2]int64, number int) ([]string, error) {
	var entries []string
	for end := time.Now().Add(testprocess.ChangeDeadline); time.Now().Before(end); time.Sleep(testprocess.PollInterval) {
		entries = nil
		for i, path := range []string{g.Stdout, g.Stderr} {
			content, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			for line := range strings.Lines(string(content[mark[i]:])) {
				if strings.HasSuffix(line, "\n") && (path == g.Stdout || strings.HasPrefix(line, "{")) {
					entries = append(entries, strings.TrimSuffix(line, "\n"))
				}
			}
		}
		if len(entries) >= number {
			return entries, nil
		}
	}
	return nil, fmt.Errorf("%s has logged %d of %d requests", g.Name, len(entries), number)
}

// loggedLines are the entries of an access log, a field a line.
func loggedLines(entries []string) []string {
	var out []string
	for _, text := range entries {
		var fields map[string]any
		if json.Unmarshal([]byte(text), &fields) != nil {
			out = append(out, masked("log", "text", text))
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			value, err := json.Marshal(fields[name])
			if err != nil {
				return append(out, err.Error())
			}
			out = append(out, masked("log", name, string(value)))
		}
	}
	return out
}
