package configdir

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/messages"
)

// entryOf is a config entry with the fields that the lines have.
func entryOf(kind, name string, lines ...string) tree {
	return hclFile(append([]string{`kind = "` + kind + `" name = "` + name + `"`}, lines...)...)
}

// moreBad are directories with the problems that the other tests do not have.
func moreBad() []tree {
	custom := "apiVersion: consul.hashicorp.com/v1alpha1"
	listener := func(text string) tree { return entryOf("ingress-gateway", "gw", `listeners { port = 80 `+text+` }`) }
	return []tree{
		hclFile(`usher {}`),
		yml(custom, "spec: {}"),
		yml("a: &a\n  b: *a"), yml("a: !!int x"), yml("a: 9999999999999999999"),
		hclFile(`a = 09`), hclFile(`a b`), js(`{"a": 1e999}`),
		yml(custom, "kind: IngressGateway", "spec: {listeners: {}}"),
		yml(custom, "kind: ServiceDefaults", "spec: {maxRequestHeadersKb: -1, protocol: 1}"),
		yml(custom, "kind: ServiceDefaults", "metadata: {name: a}", "spec: {protocol: http, externalSNI: a, upstreamConfig: {a: 1}, destination: {port: 1}, rateLimits: {a: 1}}"),
		entryOf("proxy-defaults", "global", `mesh_gateway { mode = "local" } failover_policy { mode = "x" } prioritize_by_locality { mode = "x" } mutual_tls_mode = "x"`,
			`envoy_extensions = [{ name = "x" }] access_logs { enabled = "si" } kind = "x"`),
		entryOf("proxy-defaults", "global", `config { envoy_tracing_json = "x" envoy_public_listener_json = "x" telemetry { a = 1 } envoy_cluster_json = "x"`,
			`limits { a = 1 } mesh_gateway { mode = "local" } envoy_dns_discovery_type = "static" }`),
		entryOf("proxy-defaults", "global", `access_logs { type = "syslog" }`),
		entryOf("proxy-defaults", "global", `access_logs { path = "/x" }`),
		entryOf("proxy-defaults", "global", `access_logs { json_format = "{}" text_format = "x" }`),
		entryOf("proxy-defaults", "global", `access_logs { json_format = "x" }`),
		entryOf("service-defaults", "*"),
		entryOf("service-intentions", "web"),
		entryOf("service-intentions", "web", `sources { action = "allow" type = "x" }`),
		entryOf("service-intentions", "web", `jwt { a = 1 } sources { name = "a" peer = "b" legacy_id = "c" }`),
		hclFile(`service { address = "0.0.0.0" port = 1 proxy {} }`),
		hclFile(`service { kind = "ingress-gateway" name = "gw" port = 65536 }`),
		hclFile(`service { name = "a" socket_path = "/a" ports = [{ a = 1 }] locality { region = "a" } connect { native = true } kind = 1`,
			`proxy { destination_service_name = "a" local_service_port = 1 mode = "x" mesh_gateway { mode = "x" } access_logs { enabled = true } envoy_extensions = [{ a = 1 }] } }`),
		listener(`services {}`),
		listener(`protocol = "http" tls { enabled = true } services { name = "a" hosts = ["*"] }`),
		entryOf("ingress-gateway", "gw", `tls { enabled = true }`, `listeners { port = 80 protocol = "http" services { name = "a" hosts = ["*"] } }`),
		entryOf("ingress-gateway", "gw", `tls { tls_min_version = "TLSv1_3" tls_max_version = "TLSv1_2" cipher_suites = ["a"] }`),
		listener(`tls { sds { cert_resource = "a" } } services { name = "a" }`),
		listener(`services { name = "a" tls { sds { cert_resource = "a" } } }`),
		listener(`protocol = "http" services { name = "a" tls { sds { cert_resource = "a" } } }`),
		listener(`protocol = "http" services { name = "a" hosts = ["a.b"] tls { sds { cert_resource = "a" } } }`),
	}
}

func TestMessages(t *testing.T) {
	trees := moreBad()
	for _, b := range slices.Concat(badSyntax(t), otherDocuments(), badSettings(), badEntries(), badListeners(), badDefinitions()) {
		trees = append(trees, b.files)
	}
	var lines []string
	for _, files := range trees {
		lines = append(lines, linesOf(t, NewSource(write(t, files), Options{}))...)
	}
	unreadable := t.TempDir()
	must(t, os.Mkdir(filepath.Join(unreadable, "a.hcl"), 0o700))
	lines = append(lines, linesOf(t, NewSource(unreadable, Options{}))...)
	denied := tree{"gw.hcl": gw(80), "i.hcl": "kind = \"service-intentions\"\nname = \"*\"\nsources {\n  name = \"gw\"\n  action = \"deny\"\n}"}
	undefined := tree{"gw.hcl": gw(80), "own.hcl": `service { kind = "ingress-gateway" name = "gateway" }`}
	for name, files := range map[string]tree{"gw": denied, "gv": {"gw.hcl": gw(80)}, "gateway": undefined} {
		lines = append(lines, problemsOf(t, write(t, files), name)...)
	}
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, ": usher.") }) // settings' own
	messages.Check(t, lines, "problem.Problem", "add", "Add", "addAtName", "addProblem")
}
