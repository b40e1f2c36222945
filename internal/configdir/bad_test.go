package configdir

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// bad is a directory that is refused, and the lines of its problems.
type bad struct {
	name  string
	files tree
	want  []string // DIR stands for the directory
}

func (b bad) run(t *testing.T) {
	t.Helper()
	s := NewSource(write(t, b.files), Options{})
	got := linesOf(t, s)
	if diff := cmp.Diff(b.want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if ready := s.Ready(); ready == nil || len(strings.Split(ready.Error(), "\n")) != len(got) {
		t.Errorf("Ready returns %v, want the same", ready)
	}
}

// linesOf loads a bad directory and returns what is wrong with it.
func linesOf(t *testing.T, s *Source) []string {
	t.Helper()
	err := s.Load()
	if err == nil {
		t.Fatal("the directory has no problem")
	}
	return strings.Split(strings.ReplaceAll(err.Error(), s.dir, "DIR"), "\n")
}

func runBad(t *testing.T, cases []bad) {
	for _, tc := range cases {
		t.Run(tc.name, tc.run)
	}
}

// hclFile is a directory of one file.
func hclFile(lines ...string) tree { return tree{"a.hcl": strings.Join(lines, "\n")} }

func yml(lines ...string) tree { return tree{"a.yaml": strings.Join(lines, "\n")} }

func js(lines ...string) tree { return tree{"a.json": strings.Join(lines, "\n")} }

func TestBadSyntaxIsRefusedWithItsLine(t *testing.T) { runBad(t, badSyntax(t)) }

func badSyntax(t *testing.T) []bad {
	return []bad{
		{"tabs in YAML", tree{"values.yaml": testdata(t, "consul-values-ppv2-tab.yaml")}, []string{
			"DIR/values.yaml:11: this line begins with a TAB, and tabs cannot indent YAML; use spaces",
		}},
		{"YAML", yml("a: b", " c: d"), []string{"DIR/a.yaml:2: this is not YAML: mapping values are not allowed in this context; correct it"}},
		{"YAML key twice", yml("a: 1", "b: 2", "a: 3"), []string{"DIR/a.yaml:3: a: this key is already given at DIR/a.yaml:1; remove one of the two"}},
		{"YAML merge", yml("a: &a {b: 1}", "c:", "  <<: *a"), []string{"DIR/a.yaml:3: merge keys (<<) and keys that are not text are not supported; copy the keys here"}},
		{"HCL", hclFile(`kind = "ingress-gateway"`, `name = "gw"`, `listeners {`), []string{
			"DIR/a.hcl:3: this is not HCL: the { in this line is not closed; add a }",
		}},
		{"HCL literal", hclFile(`kind = "x"`, `name = "\q"`), []string{"DIR/a.hcl:2: this is not HCL: illegal char escape; correct it"}},
		{"HCL key twice", hclFile(`kind = "x"`, `name = "a"`, `name = "b"`), []string{
			"DIR/a.hcl:3: name: this key is already given at DIR/a.hcl:2; remove one of the two",
		}},
		{"JSON", js(`{`, `  "kind": "ingress-gateway",`, `  "name": "gw",`, `}`), []string{
			"DIR/a.json:4: this is not JSON: invalid character '}' looking for beginning of object key string; correct it",
		}},
		{"JSON without an end", js(`{`, `  "kind": "ingress-gateway"`), []string{"DIR/a.json:2: this is not JSON: unexpected end of JSON input; correct it"}},
		{"JSON twice", js(`{}`, `{}`), []string{
			"DIR/a.json:2: this is not JSON: invalid character '{' after top-level value; correct it",
		}},
		{"JSON key twice", js(`{"name": "a",`, ` "name": "b"}`), []string{
			"DIR/a.json:2: name: this key is already given at DIR/a.json:1; remove one of the two",
		}},
		{"JSON number", js(`{"kind": "proxy-defaults",`, ` "name": 1e999}`), []string{"DIR/a.json:2: the number 1e999 is too large; correct it"}},
		{"JSON list", js(``, `[]`), []string{
			"DIR/a.json:2: a list is not allowed; write an object: a config entry with kind and name, or service definitions",
		}},
		{"empty file", hclFile(""), []string{"DIR/a.hcl:1: the file is empty; write an entry, or remove it"}},
		{"empty directory", tree{}, []string{
			"DIR: there is no file with the extension .hcl, .json, .yaml, .yml in it; write config entries and service definitions there",
		}},
	}
}

func TestOtherDocumentsAreRefused(t *testing.T) { runBad(t, otherDocuments()) }

func otherDocuments() []bad {
	return []bad{
		{"Helm values", yml("", "global:", "  name: consul"), []string{
			"DIR/a.yaml:2: these look like values for Consul's Helm chart, not config entries; move the file elsewhere, and write the entries here",
		}},
		{"YAML without kind", yml("a: b"), []string{
			"DIR/a.yaml:1: this document has no apiVersion and kind; in YAML write custom resources (consul.hashicorp.com/v1alpha1), " +
				"other entries and service definitions as HCL or JSON",
		}},
		{"Kubernetes Service", yml("kind: Service", "apiVersion: v1"), []string{
			"DIR/a.yaml:2: apiVersion: \"v1\" is not read in file mode; use consul.hashicorp.com/v1alpha1 resources, " +
				"and define services in HCL or JSON: service { name, address, port }",
		}},
		{"custom resource of another kind", yml("apiVersion: consul.hashicorp.com/v1alpha1", "kind: ServiceRouter"), []string{
			"DIR/a.yaml:2: kind: \"ServiceRouter\" is not supported in file mode, which reads IngressGateway, ProxyDefaults, ServiceDefaults, ServiceIntentions; remove the entry",
		}},
		{"other kinds", tree{
			"a.hcl": "name = \"x\"\nkind = \"service-resolver\"", "b.hcl": `Kind = "mesh"`, "c.json": `{"kind": "terminating-gateway", "name": "t"}`,
		}, []string{
			"DIR/a.hcl:2: kind: \"service-resolver\" is not supported in file mode, which reads ingress-gateway, proxy-defaults, service-defaults, service-intentions; remove the entry",
			"DIR/b.hcl:1: Kind: \"mesh\" is not supported in file mode, which reads ingress-gateway, proxy-defaults, service-defaults, service-intentions; remove the entry",
			"DIR/c.json:1: kind: \"terminating-gateway\" is not supported in file mode, which reads ingress-gateway, proxy-defaults, service-defaults, service-intentions; remove the entry",
		}},
		{"agent config", hclFile(`datacenter = "dc1"`), []string{
			"DIR/a.hcl:1: this is neither a config entry, which has kind and name, nor service definitions (service, services); write one of them, or remove it",
		}},
		{"agent config with a service", hclFile(`service { name = "a" address = "10.0.0.1" port = 1 }`, `data_dir = "/x"`), []string{
			"DIR/a.hcl:2: data_dir: this key is unknown; remove it, or use service, services",
		}},
	}
}

func TestBadSettingsAreRefusedWithTheirLine(t *testing.T) { runBad(t, badSettings()) }

func badSettings() []bad {
	return []bad{
		{"wrong mode", hclFile(`kind = "proxy-defaults"`, `name = "global"`, `config {`, `  usher { proxy_protocol { mode = "on" } }`, `}`), []string{
			`DIR/a.hcl:4: usher.proxy_protocol.mode: "on" is not allowed; use "auto", "off", "permissive" or "strict"`,
		}},
		{"unknown key", yml("apiVersion: consul.hashicorp.com/v1alpha1", "kind: ProxyDefaults", "metadata: {name: global}", "spec:", "  config:", "    usher:", "      mode: strict"), []string{
			`DIR/a.yaml:7: usher.mode: this key is unknown; remove it, or use "proxy_protocol", "client_address", "access_log" or "listeners"`,
		}},
		{"registration", hclFile(`service {`, `  kind = "ingress-gateway"`, `  name = "gw"`, `  proxy { config {`, `    usher { proxy_protocol { mode = 1 } }`, `  } }`, `}`), []string{
			`DIR/a.hcl:5: usher.proxy_protocol.mode: 1 is not allowed; use "auto", "off", "permissive" or "strict"`,
		}},
		{"one of several TLVs", hclFile(`kind = "proxy-defaults"`, `name = "global"`, `config { usher { proxy_protocol { tlvs = [`, `  { type = "alpn" },`, `  { type = "alnp", name = "x" },`, `] } } }`), []string{
			`DIR/a.hcl:5: usher.proxy_protocol.tlvs[1].type: "alnp" is not allowed (did you mean "alpn"?); use "alpn", "authority", "unique_id", "ssl_client_cn", "ssl_client_verified", "gcp_psc_id", "aws_vpce_id", "azure_link_id" or a number from 0 to 255 such as "0xE4"`,
		}},
		{"one listener", hclFile(`kind = "proxy-defaults"`, `name = "global"`, `config { usher { listeners {`, `  "8080" {`, `    proxy_protocol { mode = "on" }`, `  }`, `} } }`), []string{
			`DIR/a.hcl:5: usher.listeners.8080.proxy_protocol.mode: "on" is not allowed; use "auto", "off", "permissive" or "strict"`,
		}},
		{"other config", hclFile(`kind = "proxy-defaults"`, `name = "global"`, `config {`, `  envoy_trcing_json = "{}"`, `}`), []string{
			"DIR/a.hcl:4: config.envoy_trcing_json: this key is unknown; remove it, or use envoy_gateway_bind_addresses, " +
				"envoy_gateway_bind_tagged_addresses, envoy_gateway_no_default_bind, envoy_mesh_gateway_bind_addresses, " +
				"envoy_mesh_gateway_bind_tagged_addresses, envoy_mesh_gateway_no_default_bind, max_request_headers_kb, protocol, usher, xds_fetch_timeout_ms",
		}},
		{"Consul's own key", hclFile(`Kind = "proxy-defaults"`, `Name = "global"`, `Config { envoy_prometheus_bind_addr = "0.0.0.0:9102" }`), []string{
			"DIR/a.hcl:3: Config.envoy_prometheus_bind_addr: this is Consul's own key, for the bootstrap that consul connect envoy or consul-dataplane writes; " +
				"it has no meaning in file mode; remove it, and read /stats/prometheus at Envoy's admin address",
		}},
		{"Consul's own key, of a gateway's definition", hclFile(`service {`, `  name = "gw"`, `  kind = "ingress-gateway"`, `  proxy { config { connect_timeout_ms = 1000 } }`, `}`), []string{
			"DIR/a.hcl:4: proxy.config.connect_timeout_ms: this is Consul's own key, which sidecars, mesh gateways and terminating gateways read; it has no meaning in file mode; remove it",
		}},
	}
}

func TestBadEntriesAreRefusedWithTheirLine(t *testing.T) { runBad(t, badEntries()) }

func badEntries() []bad {
	return []bad{
		{"unknown key", hclFile(`kind = "ingress-gateway"`, `name = "gw"`, `listener { port = 1 }`), []string{
			"DIR/a.hcl:3: listener: this key is unknown (did you mean \"listeners\"?); remove it, or use defaults, kind, listeners, name, namespace, partition, tls",
		}},
		{"unknown key in a resource", yml("apiVersion: consul.hashicorp.com/v1alpha1", "kind: IngressGateway", "metadata: {name: gw}", "spec:", "  listeners:", "  - port: 1", "    services:", "    - {name: a, max_connections: 1}"), []string{
			"DIR/a.yaml:8: spec.listeners[0].services[0].max_connections: this key is unknown (did you mean \"maxConnections\"?); remove it, or use hosts, maxConcurrentRequests, " +
				"maxConnections, maxPendingRequests, name, namespace, partition, passiveHealthCheck, requestHeaders, responseHeaders, tls",
		}},
		{"wrong type", yml("apiVersion: consul.hashicorp.com/v1alpha1", "kind: IngressGateway", "metadata: {name: gw}", "spec:", "  listeners:", "  - port: \"1\""), []string{
			"DIR/a.yaml:6: spec.listeners[0].port: \"1\" is not allowed; use a whole number",
		}},
		{"no name", hclFile(`kind = "ingress-gateway"`), []string{"DIR/a.hcl:1: this entry has no name; give it one"}},
		{"no spec", yml("apiVersion: consul.hashicorp.com/v1alpha1", "kind: IngressGateway", "metadata: {name: gw}"), []string{
			"DIR/a.yaml:1: spec: this resource has no spec; add one",
		}},
		{"same name", tree{
			"a.hcl": "kind = \"ingress-gateway\"\nname = \"gw\"",
			"b.yml": "apiVersion: consul.hashicorp.com/v1alpha1\nkind: IngressGateway\nspec: {}\nmetadata:\n  name: gw\n",
		}, []string{"DIR/b.yml:5: \"gw\" is already given at DIR/a.hcl:2; remove one of the two"}},
		{"namespace", hclFile(`kind = "ingress-gateway"`, `name = "gw"`, `namespace = "x"`), []string{
			"DIR/a.hcl:3: namespace: \"x\" is not supported: file mode has no namespaces and partitions; remove it",
		}},
		{"service-defaults of sidecars", hclFile(`kind = "service-defaults"`, `name = "web"`, `LocalRequestTimeoutMs = 5`, `protocol = "udp"`), []string{
			"DIR/a.hcl:3: LocalRequestTimeoutMs: file mode has no sidecars; remove it",
		}},
		{"protocol of a service", hclFile(`kind = "service-defaults"`, `name = "web"`, `protocol = "udp"`), []string{
			"DIR/a.hcl:3: protocol: \"udp\" is not allowed; use one of tcp, http, http2, grpc",
		}},
		{"headers of a service", hclFile(`kind = "service-defaults"`, `name = "web"`, `max_request_headers_kb = 5`), []string{
			"DIR/a.hcl:3: max_request_headers_kb: in file mode it works for ingress gateways only, and \"web\" is a service; remove it",
		}},
		{"proxy-defaults", hclFile(`kind = "proxy-defaults"`, `name = "x"`, `access_logs { type = "file" }`, `mode = "transparent"`), []string{
			"DIR/a.hcl:4: mode: file mode has no sidecars; remove it",
		}},
		{"access logs", hclFile(`kind = "proxy-defaults"`, `name = "x"`, `access_logs {`, `  type = "file"`, `}`), []string{
			"DIR/a.hcl:2: \"x\" is not allowed; the only proxy-defaults entry is called \"global\"",
			"DIR/a.hcl:3: access_logs.path: access logs of type file need a path; add one",
		}},
		{"permissions", hclFile(`kind = "service-intentions"`, `name = "web"`, `sources {`, `  name = "gw"`, `  permissions { action = "allow" http { path_prefix = "/" } }`, `}`), []string{
			"DIR/a.hcl:5: sources.permissions: file mode has no sidecar that could look into requests; give the source an action instead",
		}},
		{"intentions", yml("apiVersion: consul.hashicorp.com/v1alpha1", "kind: ServiceIntentions", "metadata: {name: x}", "spec:", "  destination: {name: web}", "  sources:", "  - {name: gw, action: maybe}", "  - {name: gw, action: deny}"), []string{
			"DIR/a.yaml:7: spec.sources[0].action: \"maybe\" is not allowed; use allow or deny",
			"DIR/a.yaml:8: spec.sources[1].name: source \"gw\" is already given at DIR/a.yaml:7; remove one of the two",
		}},
	}
}

func TestBadListenersAreRefusedWithTheirLine(t *testing.T) { runBad(t, badListeners()) }

func badListeners() []bad {
	gw := func(lines ...string) tree {
		return hclFile(append([]string{`kind = "ingress-gateway"`, `name = "gw"`}, lines...)...)
	}
	return []bad{
		{"port twice", gw(`listeners { port = 80 services { name = "a" } }`, `listeners { port = 80 services { name = "b" } }`), []string{
			"DIR/a.hcl:4: listeners[1].port: port 80 is already given at DIR/a.hcl:3; give every listener another port",
		}},
		{"no port", gw(`listeners { services { name = "a" } }`), []string{"DIR/a.hcl:3: listeners.port: 0 is not a port; use one from 1 to 65535"}},
		{"protocol", gw(`listeners {`, `  port = 80`, `  protocol = "htp"`, `}`), []string{
			"DIR/a.hcl:5: listeners.protocol: \"htp\" is not allowed (did you mean \"http\"?); use one of tcp, http, http2, grpc",
		}},
		{"no service", gw(`listeners { port = 80 }`), []string{"DIR/a.hcl:3: listeners.services: this listener has no service; add one"}},
		{"two tcp services", gw(`listeners {`, `  port = 80`, `  services { name = "a" }`, `  services { name = "b" }`, `}`), []string{
			"DIR/a.hcl:6: listeners.services[1].name: a tcp listener takes one service; add one listener for each service",
		}},
		{"tcp wildcard", gw(`listeners { port = 80 services { name = "*" } }`), []string{
			"DIR/a.hcl:3: listeners.services.name: a tcp listener takes one service and not \"*\"; name it, or use protocol http",
		}},
		{"tcp hosts and headers", gw(`listeners { port = 80 services {`, `  name = "a"`, `  hosts = ["a.b"]`, `  request_headers { remove = ["x"] }`, `} }`), []string{
			"DIR/a.hcl:5: listeners.services.hosts: a tcp listener takes no hosts; remove them, or use protocol http",
			"DIR/a.hcl:6: listeners.services.request_headers: a tcp listener has no headers; remove them, or use protocol http",
		}},
		{"wildcard with hosts", gw(`listeners { port = 80 protocol = "http" services { name = "*" hosts = ["a.b"] } }`), []string{
			"DIR/a.hcl:3: listeners.services.hosts: \"*\" takes no hosts; name the service that has them",
		}},
		{"service and host twice", gw(`listeners { port = 80 protocol = "http"`, `  services { name = "a" hosts = ["a.b"] }`, `  services { name = "a" hosts = ["a.b", "x.*.y", "a b"] }`, `}`), []string{
			"DIR/a.hcl:5: listeners.services[1].name: service \"a\" is already given at DIR/a.hcl:4; a listener can have it only once",
			"DIR/a.hcl:5: listeners.services[1].hosts[0]: host \"a.b\" is already given at DIR/a.hcl:4; a listener can have it only once",
			"DIR/a.hcl:5: listeners.services[1].hosts[1]: \"x.*.y\" is not allowed; \"*\" stands only for the leftmost label, as in \"*.example.com\"",
			"DIR/a.hcl:5: listeners.services[1].hosts[2]: \"a b\" is not a host name; use one such as \"www.example.com\"",
		}},
		{"listener's protocol is not the service's", tree{
			"a.hcl": "kind = \"ingress-gateway\"\nname = \"gw\"\nlisteners {\n  port = 80\n  protocol = \"http\"\n  services { name = \"a\" }\n  services { name = \"b\" }\n}",
			"b.hcl": "kind = \"service-defaults\"\nname = \"b\"\nprotocol = \"grpc\"",
		}, []string{
			"DIR/a.hcl:6: listeners.services[0].name: the listener's protocol is http, and that of \"a\" is tcp (the default); set protocol = \"http\" in its service-defaults entry, or change the listener's",
			"DIR/a.hcl:7: listeners.services[1].name: the listener's protocol is http, and that of \"b\" is grpc (set at DIR/b.hcl:3); set protocol = \"http\" in its service-defaults entry, or change the listener's",
		}},
		{"TLS without certificates", gw(`tls { enabled = true }`, `listeners { port = 80 services { name = "a" } }`, `listeners { port = 81 services { name = "a" } }`), []string{
			"DIR/a.hcl:3: tls.enabled: in file mode Usher has no mesh CA to issue a certificate; take one from an SDS server (tls.sds), or remove tls.enabled (clients then connect without TLS)",
		}},
		{"TLS of a listener", gw(`listeners {`, `  port = 80`, `  tls { enabled = true tls_min_version = "1.2" }`, `  services { name = "a" }`, `}`), []string{
			"DIR/a.hcl:5: listeners.tls.tls_min_version: \"1.2\" is not allowed; use one of TLS_AUTO, TLSv1_0, TLSv1_1, TLSv1_2, TLSv1_3",
			"DIR/a.hcl:5: listeners.tls.enabled: in file mode Usher has no mesh CA to issue a certificate; take one from an SDS server (tls.sds), or remove tls.enabled (clients then connect without TLS)",
		}},
		{"incomplete SDS", gw(`tls { sds { cluster_name = "c" } }`, `listeners { port = 80 services { name = "a" } }`), []string{
			"DIR/a.hcl:4: listeners.tls.sds.cert_resource: an SDS cluster is given and no certificate; add the certificate's name",
		}},
		{"percentage", gw(`defaults { passive_health_check { max_ejection_percent = 101 } }`), []string{
			"DIR/a.hcl:3: defaults.passive_health_check.max_ejection_percent: 101 is not a percentage; use 0 to 100",
		}},
		{"duration", gw(`defaults { passive_health_check { interval = "10" } }`), []string{
			"DIR/a.hcl:3: defaults.passive_health_check.interval: \"10\" is not allowed; use a duration such as \"10s\"",
		}},
	}
}

func TestBadDefinitionsAreRefusedWithTheirLine(t *testing.T) { runBad(t, badDefinitions()) }

func badDefinitions() []bad {
	return []bad{
		{"host name", hclFile(`service {`, `  name = "web"`, `  address = "web.example.com"`, `  port = 80`, `}`), []string{
			"DIR/a.hcl:3: address: \"web.example.com\" is not an IP address, and Envoy needs one; use the address that the name resolves to",
		}},
		{"no address, no port", hclFile(`service {`, `  name = "web"`, `}`), []string{
			"DIR/a.hcl:1: address: the address is missing; add an IP address (file mode has no Consul node to take it from)",
			"DIR/a.hcl:1: port: 0 is not a port; use one from 1 to 65535",
		}},
		{"checks and sidecar", hclFile(`service {`, `  name = "web"`, `  check { tcp = "x" interval = "1s" }`, `  connect { sidecar_service {} }`, `  token = "s3cret"`, `}`), []string{
			"DIR/a.hcl:3: service.check: file mode runs no health checks, and every instance counts as passing; remove it",
			"DIR/a.hcl:4: service.connect.sidecar_service: file mode has no sidecars; remove it",
			"DIR/a.hcl:5: service.token: file mode uses no Consul; remove it",
		}},
		{"same ID", hclFile(`service { name = "web" address = "10.0.0.1" port = 1 }`, `service { name = "web" address = "10.0.0.2" port = 1 }`), []string{
			"DIR/a.hcl:2: service ID \"web\" is already given at DIR/a.hcl:1; give one of the two another id",
		}},
		{"kind", hclFile(`service { name = "web" kind = "connect-proxy" }`), []string{
			"DIR/a.hcl:1: kind: \"connect-proxy\" is not supported in file mode, which reads plain services and ingress-gateway; remove the definition",
		}},
		{"weights", hclFile(`service { name = "web" address = "10.0.0.1" port = 1 weights { passing = 0 } }`), []string{
			"DIR/a.hcl:1: weights.passing: 0 is not a weight; use 1 to 65535",
		}},
		{"gateway's address", hclFile(`service { name = "gw" kind = "ingress-gateway" address = "edge" }`), []string{
			"DIR/a.hcl:1: address: \"edge\" is not an IP address to listen on; use one, or none for all addresses",
		}},
		{"bind address", hclFile(`service { name = "gw" kind = "ingress-gateway" proxy { config {`, `  envoy_gateway_bind_addresses { a { address = "eth0" } }`, `} } }`), []string{
			"DIR/a.hcl:2: proxy.config.envoy_gateway_bind_addresses.a: \"eth0\" is not an IP address to listen on; use one",
		}},
	}
}
