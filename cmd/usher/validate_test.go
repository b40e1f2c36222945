package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/problem"
)

// newFiles writes files, and makes their directory the current one.
func newFiles(t *testing.T, files map[string]string) {
	t.Helper()
	t.Chdir(t.TempDir())
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// gatewayFiles are a directory for --config-dir without a problem.
func gatewayFiles() map[string]string {
	return map[string]string{
		"gateways/edge.hcl": "kind = \"ingress-gateway\"\nname = \"edge\"\nlisteners {\n  port = 8080\n  protocol = \"http\"\n" +
			"  services { name = \"web\" hosts = [\"a.example.com\"] }\n}",
		"gateways/web.hcl":      "kind = \"service-defaults\"\nname = \"web\"\nprotocol = \"http\"",
		"gateways/service.json": `{"service": {"name": "web", "address": "10.1.0.7", "port": 8080}}`,
		"usher.hcl":             "gateway \"edge\" {\n  usher { proxy_protocol { mode = \"strict\" } }\n}",
	}
}

func TestValidatePrintsEachProblemWithItsPlace(t *testing.T) {
	const modes = `use "auto", "off", "permissive" or "strict"`
	for _, tc := range []struct {
		name, args string
		files      map[string]string // besides gatewayFiles
		want       string            // "": no problem
	}{
		{"good files", "gateways usher.hcl gateways/edge.hcl gateways/service.json", nil, ""},
		{"a good resource for Consul", "--consul crd.yaml", map[string]string{
			"crd.yaml": "apiVersion: consul.hashicorp.com/v1alpha1\nkind: ProxyDefaults\nspec: {mode: transparent, config: {usher: {}}}",
		}, ""},
		{
			"a setting", "usher.hcl",
			map[string]string{"usher.hcl": "usher {\n  proxy_protocol { mode = \"on\" }\n}"},
			"usher.hcl:2:20: usher.proxy_protocol.mode: \"on\" is not allowed; " + modes,
		},
		{
			"settings in YAML", "usher.yaml",
			map[string]string{"usher.yaml": "# ours\nusher: {}"},
			"usher.yaml:2:1: this is YAML, and the file has to be HCL or JSON; write usher { … } and gateway \"<name>\" { usher { … } }",
		},
		{
			"a brace that is missing", "usher.hcl",
			map[string]string{"usher.hcl": "usher {\n  proxy_protocol { mode = \"strict\"\n}"},
			"usher.hcl:1:7: this is not HCL: the { in this line is not closed; add a }",
		},
		{
			"settings among entries", "gateways usher.hcl",
			map[string]string{"gateways/usher.hcl": "usher {}"},
			"gateways/usher.hcl:1:1: these are Usher's settings; give the file with --config, and keep it out of this directory",
		},
		{
			"an entry", "gateways/edge.hcl",
			map[string]string{"gateways/edge.hcl": "kind = \"ingress-gateway\"\nname = \"edge\"\nlisteners { prot = 1 }"},
			"gateways/edge.hcl:3:13: listeners.prot: this key is unknown (did you mean \"port\"?); remove it, or use port, protocol, services, tls",
		},
		{"a resource of Consul", "--consul crd.yaml", map[string]string{
			"crd.yaml": "apiVersion: consul.hashicorp.com/v1alpha1\nkind: ProxyDefaults\nspec:\n  config:\n    usher:\n      proxy_protocol: {mode: on}",
		}, "crd.yaml:6:24: usher.proxy_protocol.mode: \"on\" is not allowed; " + modes},
		{
			"a directory for Consul", "--consul .",
			map[string]string{"d.hcl": "config { usher { a = 1 } }"},
			"d.hcl:1:18: usher.a: this key is unknown; remove it, or use",
		},
		{"what only a compile finds", "gateways usher.hcl", map[string]string{
			"usher.hcl": "usher { access_log { format = { text = \"%FOO%\" } sinks = [{ type = \"stdout\" }] } }",
		}, "%FOO%: there is no operator FOO"},
		{"an operator in the settings of proxy-defaults", "gateways", map[string]string{
			"gateways/defaults.hcl": "kind = \"proxy-defaults\"\nname = \"global\"\nAccessLogs { Enabled = true }\nconfig {\n  usher { access_log { format = { text = \"%CLIENT_ADDR%\" } } }\n}",
		}, "gateways/defaults.hcl:5:24: usher.access_log.format: %CLIENT_ADDR%: there is no operator CLIENT_ADDR (did you mean %DOWNSTREAM_REMOTE_ADDRESS%?); see https://www.envoyproxy.io/"},
		{"an operator in AccessLogs", "gateways", map[string]string{
			"gateways/defaults.hcl": "kind = \"proxy-defaults\"\nname = \"global\"\nAccessLogs {\n  Enabled = true\n  TextFormat = \"%CLIENT_ADDR%\"\n}",
		}, "gateways/defaults.hcl:3:1: AccessLogs: %CLIENT_ADDR%: there is no operator CLIENT_ADDR"},
		{"an unknown field", "usher.hcl", map[string]string{
			"usher.hcl": "usher {\n  access_log { format = { fields = [\"clent_address\"] } }\n}",
		}, "usher.hcl:2:27: usher.access_log.format.fields: \"clent_address\" is not allowed (did you mean \"client_address\"?); use \"client_address\", "},
		{
			"a misspelt usher", "--consul defaults.hcl",
			map[string]string{"defaults.hcl": "kind = \"proxy-defaults\"\nname = \"global\"\nconfig {\n  ushr {}\n}"},
			"defaults.hcl:4:3: Config.ushr: neither Consul nor Usher knows this key (did you mean \"usher\"?)",
		},
		{
			"what an old Envoy cannot do", "--envoy-version 1.22.0 gateways usher.hcl",
			map[string]string{"usher.hcl": "usher { proxy_protocol { mode = \"permissive\" } }"},
			"this needs Envoy 1.23 or later",
		},
		{
			"a block of no gateway", "gateways usher.hcl",
			map[string]string{"usher.hcl": strings.Replace(gatewayFiles()["usher.hcl"], "edge", "egde", 1)},
			"usher.hcl:1: gateway \"egde\": no ingress gateway has this name (did you mean \"edge\"?), so the block has no effect; the ingress gateways are \"edge\"",
		},
		{"a block of a gateway in the second of two directories", "empty gateways usher.hcl", map[string]string{"empty/web.hcl": gatewayFiles()["gateways/web.hcl"]}, ""},
		{"an entry in the first of two directories", "gateways more", map[string]string{
			"gateways/service.json": `{"service": {"name": "other", "address": "10.1.0.7", "port": 8080}}`, "more/edge.hcl": gatewayFiles()["gateways/edge.hcl"],
			"more/web.hcl": gatewayFiles()["gateways/web.hcl"], "more/service.json": gatewayFiles()["gateways/service.json"],
		}, "gateways/edge.hcl:6:14: service \"web\" has no definition; add service { name = \"web\", address, port } to a file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			newFiles(t, gatewayFiles())
			for path, text := range tc.files {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			args := append([]string{"validate"}, strings.Fields(tc.args)...)
			out, err := usher(t, args...)
			if tc.want == "" {
				if err != nil || !strings.HasSuffix(out, " checked, no problems\n") {
					t.Errorf("%v, and it printed %q", err, out)
				}
				return
			}
			if err != errBadResult || strings.Count(out, "\n") != 1 || !strings.Contains(out, tc.want) { //nolint:errorlint // it is not wrapped
				t.Errorf("error %v, want exit status 1\ngot  %swant %s", err, out, tc.want)
			}
			out, err = usher(t, append(args, "-o", "json")...)
			var list []reportedProblem
			if err := json.Unmarshal([]byte(out), &list); err != nil {
				t.Fatal(err)
			}
			if err != errBadResult || len(list) != 1 || !strings.Contains(list[0].Key+": "+list[0].Message, lastPart(tc.want)) { //nolint:errorlint // it is not wrapped
				t.Errorf("error %v, and as JSON %+v", err, list)
			}
		})
	}
}

// An intention may deny the gateway on purpose.
func TestANoticeDoesNotFailAValidation(t *testing.T) {
	files := gatewayFiles()
	files["gateways/deny.hcl"] = `kind = "service-intentions" name = "web" sources { name = "edge" action = "deny" }`
	newFiles(t, files)
	out, err := usher(t, "validate", "gateways")
	if want := `gateways/edge.hcl:6:14: notice: service "web" is not routed`; err != nil || !strings.HasPrefix(out, want) {
		t.Errorf("error %v, and it printed %q, want %q", err, out, want)
	}
	out, err = usher(t, "validate", "-o", "json", "gateways")
	var list []reportedProblem
	if jsonErr := json.Unmarshal([]byte(out), &list); err != nil || jsonErr != nil || len(list) != 1 || list[0].Severity != problem.Notice || strings.HasPrefix(list[0].Message, "notice") {
		t.Errorf("errors %v and %v, and as JSON %+v", err, jsonErr, list)
	}
	files["usher.hcl"] = "usher {\n  proxy_protocol { mode = \"on\" }\n}"
	newFiles(t, files)
	if out, err := usher(t, "validate", "gateways", "usher.hcl"); err != errBadResult || strings.Count(out, "notice: ") != 1 { //nolint:errorlint // it is not wrapped
		t.Errorf("beside a problem: error %v, and it printed %q", err, out)
	}
}

// lastPart returns the message at the end of a line.
func lastPart(line string) string { return line[strings.LastIndex(line, ": ")+2:] }

func TestValidatePrintsJSONWithPlaces(t *testing.T) {
	newFiles(t, map[string]string{"usher.hcl": "usher {\n  proxy_protocol { mode = \"on\" }\n}"})
	out, _ := usher(t, "validate", "-o", "json", "usher.hcl")
	var got []reportedProblem
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	want := []reportedProblem{{File: "usher.hcl", Line: 2, Column: 20, Key: "usher.proxy_protocol.mode", Message: `"on" is not allowed; use "auto", "off", "permissive" or "strict"`}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	newFiles(t, map[string]string{"good.hcl": "usher {}", "usher.hcl": "\ngateway \"edge\" {}", "gateways/web.hcl": gatewayFiles()["gateways/web.hcl"]})
	out, _ = usher(t, "validate", "-o", "json", "gateways", "usher.hcl")
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got) != 1 || got[0].File != "usher.hcl" || got[0].Line != 2 || got[0].Key != `gateway "edge"` {
		t.Errorf("error %v, and the problem of a block is %s", err, out)
	}
	if out, err := usher(t, "validate", "-o", "json", "good.hcl"); err != nil || out != "[]\n" {
		t.Errorf("without a problem: %v, and it printed %q", err, out)
	}
}

func TestValidateSaysWhatServeSays(t *testing.T) {
	newFiles(t, map[string]string{"usher.hcl": "usher {\n  proxy_protocol { mode = \"on\" }\n}", "gateways/edge.hcl": "kind = 1\nfoo"})
	for _, tc := range [][]string{{"usher.hcl", "--config"}, {"gateways", "--config-dir"}} {
		out, _ := usher(t, "validate", tc[0])
		_, err := usher(t, "serve", "--xds-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", tc[1], tc[0])
		if err == nil {
			t.Fatalf("serve accepts %s", tc[0])
		}
		_, message, _ := strings.Cut(strings.TrimSpace(out), ": ")
		if !strings.HasSuffix(err.Error(), message) {
			t.Errorf("serve says %v, and validate %q", err, out)
		}
	}
}
