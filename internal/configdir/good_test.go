package configdir

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

func TestLabsCustomResourcesGiveTheGateway(t *testing.T) {
	got := snapshotOf(t, "ingress-gateway", tree{
		"custom-resources.yaml": testdata(t, "custom-resources.yaml"),
		"static-server.hcl":     staticServer,
	})
	empty, problems := settings.Layer{}.Update("", nil)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	web := gateway.ServiceName{Name: "static-server"}
	want := &gateway.Snapshot{
		ID:         gateway.ID{Name: "ingress-gateway"},
		Datacenter: "dc1",
		Entry: &gateway.Entry{Name: "ingress-gateway", Listeners: []gateway.Listener{{
			Port: 8080, Protocol: "http", Services: []gateway.ListenerService{{Name: "static-server"}},
		}}},
		Services: []gateway.Service{{Service: web, Port: 8080, Protocol: "http"}},
		Chains: map[gateway.ServiceName]*gateway.Chain{web: {
			ServiceName: "static-server", Namespace: "default", Partition: "default", Datacenter: "dc1",
			Protocol: "http", Default: true, StartNode: "resolver:static-server.default.default.dc1",
			Nodes: map[string]*gateway.ChainNode{"resolver:static-server.default.default.dc1": {
				Type: "resolver", Name: "static-server.default.default.dc1",
				Resolver: &gateway.Resolver{Default: true, ConnectTimeout: gateway.Duration(5 * time.Second), Target: "static-server.default.default.dc1"},
			}},
			Targets: map[string]*gateway.Target{"static-server.default.default.dc1": {
				ID: "static-server.default.default.dc1", Service: "static-server", Namespace: "default", Partition: "default",
				Datacenter: "dc1", ConnectTimeout: gateway.Duration(5 * time.Second),
				SNI:  "static-server.default.dc1.internal.files.consul",
				Name: "static-server.default.dc1.internal.files.consul",
			}},
		}},
		Endpoints: ordered.From(map[string]*gateway.Endpoints{"static-server.default.default.dc1": {Endpoints: []gateway.Endpoint{{
			NodeDatacenter: "dc1", Address: "10.1.0.7", Port: 8080, Weights: gateway.Weights{Passing: 1, Warning: 1},
		}}}}),
		Plain:         true,
		ProxyDefaults: empty,
		Instances:     []*gateway.Instance{{ServiceID: "ingress-gateway", AccessLogs: gateway.AccessLogs{Enabled: true}}},
	}
	if diff := cmp.Diff(want, got, snapshots); diff != "" {
		t.Error(diff)
	}
}

// The same gateway, with everything that file mode honours, in every form.
const (
	richSnake = `
kind = "ingress-gateway"
name = "gw"
meta { team = "edge" }
tls { tls_min_version = "TLSv1_2" sds { cluster_name = "sds" cert_resource = "default" } }
defaults { max_connections = 10 }
listeners {
  port     = 8443
  protocol = "grpc"
  services {
    name = "api"
    hosts = ["api.example.com", "*.api.example.com"]
    max_pending_requests = 5
    passive_health_check { interval = "10s" max_failures = 3 enforcing_consecutive_5xx = 100 max_ejection_percent = 50 base_ejection_time = "1m" }
    request_headers { add { x-one = "1" } set = { x-two = "2" } remove = ["x-three"] }
    tls { sds { cert_resource = "api" } }
  }
}
listeners {
  port = 9000
  services { name = "db" }
}`
	richCamel = `
Kind = "ingress-gateway"
Name = "gw"
TLS = { TLSMinVersion = "TLSv1_2" SDS = { ClusterName = "sds" CertResource = "default" } }
Defaults = { MaxConnections = 10 }
Listeners = [
  {
    Port     = 8443
    Protocol = "GRPC"
    Services = [{
      Name = "api"
      Hosts = ["api.example.com", "*.api.example.com"]
      MaxPendingRequests = 5
      PassiveHealthCheck = { Interval = "10s", MaxFailures = 3, EnforcingConsecutive5xx = 100, MaxEjectionPercent = 50, BaseEjectionTime = "60s" }
      RequestHeaders = { Add = { x-one = "1" }, Set = { x-two = "2" }, Remove = ["x-three"] }
      TLS = { SDS = { CertResource = "api" } }
    }]
  },
  { Port = 9000, Protocol = "tcp", Services = [{ Name = "db" }] },
]`
	// As `consul config read` prints it, with what was never set.
	richJSON = `{
  "Kind": "ingress-gateway", "Name": "gw", "Partition": "default", "Namespace": "default",
  "TLS": {"Enabled": false, "TLSMinVersion": "TLSv1_2", "SDS": {"ClusterName": "sds", "CertResource": "default"}},
  "Listeners": [
    {"Port": 8443, "Protocol": "grpc", "Services": [{
      "Name": "api", "Hosts": ["api.example.com", "*.api.example.com"], "MaxPendingRequests": 5,
      "PassiveHealthCheck": {"Interval": 10000000000, "MaxFailures": 3, "EnforcingConsecutive5xx": 100, "MaxEjectionPercent": 50, "BaseEjectionTime": 60000000000},
      "RequestHeaders": {"Add": {"x-one": "1"}, "Set": {"x-two": "2"}, "Remove": ["x-three"]},
      "TLS": {"SDS": {"CertResource": "api"}}}]},
    {"Port": 9000, "Protocol": "tcp", "Services": [{"Name": "db", "Hosts": null}]}
  ],
  "Defaults": {"MaxConnections": 10, "MaxPendingRequests": null, "MaxConcurrentRequests": null},
  "CreateIndex": 12, "ModifyIndex": 34
}`
	richYAML = `
apiVersion: consul.hashicorp.com/v1alpha1
kind: IngressGateway
metadata: {name: gw, namespace: consul, resourceVersion: "7", finalizers: [finalizers.consul.hashicorp.com]}
spec:
  tls: {tlsMinVersion: TLSv1_2, sds: {clusterName: sds, certResource: default}}
  defaults: {maxConnections: 10}
  listeners:
    - port: 8443
      protocol: grpc
      services:
        - name: api
          hosts: [api.example.com, "*.api.example.com"]
          maxPendingRequests: 5
          passiveHealthCheck: {interval: 10s, maxFailures: 3, enforcingConsecutive5xx: 100, maxEjectionPercent: 50, baseEjectionTime: 1m}
          requestHeaders: {add: {x-one: "1"}, set: {x-two: "2"}, remove: [x-three]}
          tls: {sds: {certResource: api}}
    - port: 9000
      services:
        - name: db
status:
  conditions: [{type: Synced, status: "True"}]
`
)

func TestEverySpellingGivesTheSameSnapshot(t *testing.T) {
	rest := tree{
		"api.json": `{"kind": "service-defaults", "name": "api", "protocol": "grpc", "mesh_gateway": {}, "Expose": {"Checks": false}}`,
		"defs.hcl": `
services { name = "api" id = "api-2" address = "10.1.0.2" port = 80 weights { passing = 7 } }
services { name = "api" id = "api-1" address = "10.1.0.1" port = 80 tags = ["v1"] }
services { name = "db" address = "10.1.0.3" port = 5432 }`,
	}
	with := func(name, text string) *gateway.Snapshot {
		files := tree{name: text}
		maps.Copy(files, rest)
		return snapshotOf(t, "gw", files)
	}
	want := with("gw.hcl", richSnake)
	if len(want.Problems) > 0 || len(want.Services) != 2 || len(want.Endpoints.Get("api.default.default.dc1").Endpoints) != 2 {
		t.Fatalf("the HCL gives %d services, problems %v", len(want.Services), want.Problems)
	}
	check := want.Entry.Listeners[0].Services[0].PassiveHealthCheck
	if check.Interval != gateway.Duration(10*time.Second) || *check.BaseEjectionTime != gateway.Duration(time.Minute) {
		t.Errorf("durations are %v and %v", check.Interval, *check.BaseEjectionTime)
	}
	for name, text := range map[string]string{"camel.hcl": richCamel, "read.json": richJSON, "json.hcl": richJSON, "gw.yaml": richYAML} {
		if diff := cmp.Diff(want, with(name, text), snapshots); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestServiceDefinitionsInHCLAndJSONAreEqual(t *testing.T) {
	gw := `kind = "ingress-gateway" name = "gw" listeners { port = 80 services { name = "web" } }`
	want := snapshotOf(t, "gw", tree{"gw.hcl": gw, "web.hcl": `services = [{ name = "web" address = "::1" port = "81" }]`})
	if got := want.Endpoints.Get("web.default.default.dc1").Endpoints[0]; got.Address != "::1" || got.Port != 81 {
		t.Fatalf("endpoint is %+v", got)
	}
	for name, text := range map[string]string{
		"block.hcl":  `service { name = "web" address = "::1" port = 81 }`,
		"one.json":   `{"service": {"Name": "web", "Address": "::1", "Port": 81}}`,
		"many.json":  `{"services": [{"name": "web", "address": "::1", "port": 81, "checks": null}]}`,
		"blocks.hcl": "# comment\nservices {\n  name = \"web\"\n  address = \"::1\"\n  port = 81\n}\n",
	} {
		if diff := cmp.Diff(want, snapshotOf(t, "gw", tree{"gw.hcl": gw, name: text}), snapshots); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestWildcardTakesDefinedServicesOfItsProtocol(t *testing.T) {
	got := snapshotOf(t, "gw", tree{
		"gw.hcl": `kind = "ingress-gateway" name = "gw"
listeners { port = 81 protocol = "http" services { name = "*" } }
listeners { port = 80 protocol = "http" services { name = "*" } services { name = "b" hosts = ["b.example.com"] } }`,
		"defaults.hcl":  `kind = "proxy-defaults" name = "global" config { protocol = "http" }`,
		"tcp.hcl":       `kind = "service-defaults" name = "db" protocol = "tcp"`,
		"undefined.hcl": `kind = "service-defaults" name = "undefined" protocol = "http"`,
		"defs.hcl": `
service { name = "a" address = "10.0.0.1" port = 1 }
service { name = "b" address = "10.0.0.2" port = 1 }
service { name = "db" address = "10.0.0.3" port = 1 }`,
	})
	row := func(name string, port int) gateway.Service {
		return gateway.Service{Service: gateway.ServiceName{Name: name}, Port: port, Protocol: "http", FromWildcard: true}
	}
	named := row("b", 80)
	named.FromWildcard, named.Hosts = false, []string{"b.example.com"}
	want := []gateway.Service{row("a", 80), named, row("a", 81), row("b", 81)}
	if diff := cmp.Diff(want, got.Services, snapshots); diff != "" {
		t.Error(diff)
	}
	if len(got.Problems) > 0 {
		t.Errorf("problems: %v", got.Problems)
	}
}

func TestTCPListenerTakesServiceOfAnyProtocol(t *testing.T) {
	got := snapshotOf(t, "gw", tree{
		"gw.hcl":       `kind = "ingress-gateway" name = "gw" listeners { port = 80 services { name = "static-server" } }`,
		"defaults.hcl": `kind = "service-defaults" name = "static-server" protocol = "http"`,
		"defs.hcl":     staticServer,
	})
	if len(got.Services) != 1 || got.Services[0].Protocol != "tcp" {
		t.Errorf("services are %+v", got.Services)
	}
}

func TestRegisteredInstancesHaveTheirOwnSettings(t *testing.T) {
	got := snapshotOf(t, "gw", tree{
		"gw.hcl": `kind = "ingress-gateway" name = "gw"`,
		"proxy.hcl": `
kind = "proxy-defaults"
name = "global"
config {
  envoy_gateway_no_default_bind = true
  envoy_gateway_bind_addresses { a { address = "10.0.0.1" } }
  xds_fetch_timeout_ms = 3000
  max_request_headers_kb = 10
  usher { proxy_protocol { mode = "permissive" } }
}
access_logs { enabled = true type = "file" path = "/var/log/gw" json_format = "{\"a\":\"b\"}" }`,
		"own.hcl": `kind = "service-defaults" name = "gw" max_request_headers_kb = 20`,
		"defs.hcl": `
service {
  kind = "ingress-gateway"
  name = "gw"
  id = "gw-2"
  address = "10.0.0.9"
  port = 8443
  tagged_addresses { lan { address = "10.0.0.8" port = 1 } }
  proxy { config {
    envoy_gateway_no_default_bind = false
    envoy_mesh_gateway_bind_addresses { b { address = "10.0.0.2" port = 7 } }
    max_request_headers_kb = 30
    xds_fetch_timeout_ms = 0
    usher { proxy_protocol { mode = "strict" } }
  } }
}
service { kind = "ingress-gateway" name = "gw" id = "gw-1" }`,
	})
	timeout := 3 * time.Second
	a := gateway.Address{Address: "10.0.0.1"}
	logs := gateway.AccessLogs{Enabled: true, Type: "file", Path: "/var/log/gw", JSONFormat: `{"a":"b"}`}
	place := settings.PlaceOf("proxy_protocol.mode", 0, got.Instances[1].Registration).String()
	if !strings.HasSuffix(place, "/defs.hcl:14") {
		t.Errorf("the mode is set at %s, want line 14 of defs.hcl", place)
	}
	strict, _ := settings.Layer{}.Update("", map[string]any{"proxy_protocol": map[string]any{"mode": "strict"}})
	strict.Places = got.Instances[1].Registration.Places
	empty, _ := settings.Layer{}.Update("", nil)
	want := []*gateway.Instance{
		{
			ServiceID: "gw-1", AccessLogs: logs, Registration: empty,
			Config: gateway.ProxyConfig{
				NoDefaultBind: true, BindAddresses: map[string]gateway.Address{"a": a}, FetchTimeout: &timeout, MaxRequestHeadersKB: 20,
			},
		},
		{
			ServiceID: "gw-2", Address: "10.0.0.9", Port: 8443, AccessLogs: logs, Registration: strict,
			TaggedAddresses: map[string]gateway.Address{"lan": {Address: "10.0.0.8", Port: 1}},
			Config: gateway.ProxyConfig{
				NoDefaultBind: true, FetchTimeout: &timeout, MaxRequestHeadersKB: 30,
				BindAddresses: map[string]gateway.Address{"a": a, "b": {Address: "10.0.0.2", Port: 7}},
			},
		},
	}
	if diff := cmp.Diff(want, got.Instances, snapshots); diff != "" {
		t.Error(diff)
	}
	for _, in := range got.Instances {
		want := map[string]settings.Mode{"gw-1": settings.Permissive, "gw-2": settings.Strict}[in.ServiceID]
		if s, known := got.ListenerSettings(in, 0); !known || s.ProxyProtocol.Mode != want {
			t.Errorf("%s: mode %q, known %v; want %q", in.ServiceID, s.ProxyProtocol.Mode, known, want)
		}
	}
}

func TestUnknownGatewayHasNoInstance(t *testing.T) {
	got := snapshotOf(t, "typo", tree{"gw.hcl": `kind = "ingress-gateway" name = "gw"`})
	if got.Entry != nil || len(got.Instances) != 0 || len(got.Problems) != 1 {
		t.Fatalf("got %+v", got)
	}
	want := `dir: there is no ingress-gateway entry "typo"; add one, or correct the gateway's name in its Envoy's bootstrap`
	if got := got.Problems[0]; got.String() != want || got.Severity != problem.Outage {
		t.Errorf("problem %q (%s), want the outage %q", got, got.Severity, want)
	}
}

// TestAMisspeltEntryIsFound has a gateway whose entry has a name that is nearly the one of its Envoy, or of its definition.
func TestAMisspeltEntryIsFound(t *testing.T) {
	entry := "kind = \"ingress-gateway\"\nname = \"ingres-gateway\""
	got := snapshotOf(t, "ingress-gateway", tree{"gw.hcl": entry})
	if want := `there is no ingress-gateway entry "ingress-gateway"; there is "ingres-gateway" (`; !strings.HasPrefix(got.Problems[0].What, want) || !strings.Contains(got.Problems[0].What, "gw.hcl:2); add one") {
		t.Errorf("problem %q, want %q", got.Problems[0].What, want)
	}
	got = snapshotOf(t, "ingress-gateway", tree{"gw.hcl": entry, "own.hcl": `service { kind = "ingress-gateway" name = "ingress-gateway" }`})
	if len(got.Problems) != 1 || got.Problems[0].Severity != problem.Outage || filepath.Base(got.Problems[0].At.File) != "own.hcl" ||
		!strings.Contains(got.Problems[0].What, `has no ingress-gateway entry, so its Envoys have no listeners; there is "ingres-gateway" (`) {
		t.Errorf("problems %v", got.Problems)
	}
}

// TestProblemsOfAllGatewaysAreReported has a service without a definition on a gateway that has no Envoy.
func TestProblemsOfAllGatewaysAreReported(t *testing.T) {
	dir := write(t, tree{"gw.hcl": `kind = "ingress-gateway" name = "gw" listeners { port = 80 services { name = "web" } }`})
	reports := make(chan []problem.Problem, 10)
	s := NewSource(dir, Options{Report: func(p []problem.Problem) { reports <- p }})
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	if got := <-reports; len(got) != 1 || !strings.HasPrefix(got[0].What, `service "web" has no definition`) {
		t.Errorf("at the start, %v are reported", got)
	}
	must(t, os.WriteFile(filepath.Join(dir, "web.hcl"), []byte(`service { name = "web" address = "10.0.0.1" port = 80 }`), 0o600))
	if got := <-reports; len(got) != 0 {
		t.Errorf("once it is defined, %v are reported", got)
	}
}

func TestFilesOfOtherNamesAreLeftAlone(t *testing.T) {
	s := NewSource(write(t, tree{
		"gw.hcl": `kind = "ingress-gateway" name = "gw"`, "README.md": "{", ".hidden.hcl": "{", "gw.hcl~": "{", "gw.hcl.bak": "{",
		"comment.hcl": "# nothing yet\n", "nothing.yaml": "---\n# nothing\n---\n",
	}), Options{})
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]gateway.ID{{Name: "gw"}}, s.Gateways()); diff != "" {
		t.Error(diff)
	}
	if err := s.Ready(); err != nil {
		t.Error(err)
	}
}

func TestUnquotedOffInYAMLIsTheModeOff(t *testing.T) {
	got := snapshotOf(t, "gw", tree{"gw.hcl": `kind = "ingress-gateway" name = "gw"`, "proxy.yaml": `
apiVersion: consul.hashicorp.com/v1alpha1
kind: ProxyDefaults
metadata: {name: global}
spec:
  config: {usher: {proxy_protocol: {mode: off}}}
`})
	if got.ProxyDefaults.Settings.ProxyProtocol.Mode != settings.Off {
		t.Errorf("the layer is %+v", got.ProxyDefaults)
	}
}
