package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestRenderPrintsWhatAnEnvoyGets(t *testing.T) {
	newFiles(t, gatewayFiles())
	flags := []string{"render", "--gateway", "edge", "--config-dir", "gateways", "--config", "usher.hcl"}
	out, err := usher(t, flags...)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"listeners:\n  - ", "name: http:0.0.0.0:8080\n", "name: envoy.filters.listener.proxy_protocol\n",
		"routes:\n  - ", "clusters:\n  - ", "endpoints:\n  - ", "address: 10.1.0.7\n", "secrets: []\n", "token_buckets: []\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("it has no %q", want)
		}
	}
	if again, _ := usher(t, flags...); again != out {
		t.Error("the same input gives another output")
	}
	old, err := usher(t, append(flags, "--envoy-version", "1.29.0")...)
	if err != nil || old == out {
		t.Errorf("an old Envoy gets the same; error %v", err)
	}
	text, err := usher(t, append(flags, "-o", "json")...)
	var got map[string][]struct{ Name string }
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if err != nil || len(got) != len(renderedTypes) || len(got["listeners"]) != 1 || got["listeners"][0].Name != "http:0.0.0.0:8080" {
		t.Errorf("error %v, and the JSON has %v", err, got)
	}
}

func TestRenderSaysWhatIsMissing(t *testing.T) {
	files := gatewayFiles()
	files["usher.hcl"] = `usher { proxy_protocol { mode = "permissive" } }`
	newFiles(t, files)
	var stderr strings.Builder
	cmd := rootCommand()
	cmd.SetArgs([]string{"render", "--gateway", "edge", "--config-dir", "gateways", "--config", "usher.hcl", "--envoy-version", "1.22"})
	cmd.SetOut(&strings.Builder{})
	cmd.SetErr(&stderr)
	if err := cmd.ExecuteContext(t.Context()); err != errBadResult { //nolint:errorlint // it is not wrapped
		t.Errorf("error %v, want exit status 1", err)
	}
	for _, want := range []string{"problem: usher.hcl:1: usher.proxy_protocol.mode: listener 8080 of gateway edge: ", "this needs Envoy 1.23", "held back: listener http:0.0.0.0:8080\n"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("stderr has no %q: %s", want, stderr.String())
		}
	}
}

func TestRenderAndDiffPrintNoSecrets(t *testing.T) {
	files := gatewayFiles()
	files["other/web.hcl"], files["other/service.json"] = files["gateways/web.hcl"], files["gateways/service.json"]
	for dir, secret := range map[string]string{"gateways": "s3cret-1", "other": "s3cret-2"} {
		headers := `services { request_headers { set { Authorization = "Bearer ` + secret + `" X-Client = "` + dir + `" } } name = "web"`
		files[dir+"/edge.hcl"] = strings.Replace(gatewayFiles()["gateways/edge.hcl"], `services { name = "web"`, headers, 1)
	}
	files["log.hcl"] = `usher { access_log { request_header = { name = "x-token" value = "s3cret-3" } sinks = [{ type = "stdout" }] } }`
	newFiles(t, files)
	for command, want := range map[string]string{
		"render --gateway edge --config-dir gateways --config log.hcl":           "string_match: '[redacted]'",
		"render --gateway edge --config-dir gateways --config log.hcl --explain": `{"name":"x-token","value":"[redacted]"}`,
		"render --gateway edge --config-dir gateways":                            "value: '[redacted]'",
		"render --gateway edge --config-dir gateways -o json":                    `"value": "[redacted]"`,
		"diff --gateway edge --config-dir gateways --against other":              "value: gateways\n",
	} {
		out, err := usher(t, strings.Fields(command)...)
		if strings.Contains(out, "s3cret") || !strings.Contains(out, want) {
			t.Errorf("usher %s: error %v, want %q and no secret:\n%s", command, err, want, out)
		}
	}
}

// TestRenderReportsABlockOfNoGateway has a config file whose block names a gateway that there is not.
func TestRenderReportsABlockOfNoGateway(t *testing.T) {
	files := gatewayFiles()
	files["usher.hcl"] = strings.Replace(files["usher.hcl"], "edge", "egde", 1)
	newFiles(t, files)
	var stderr strings.Builder
	cmd := rootCommand()
	cmd.SetArgs([]string{"render", "--gateway", "edge", "--config-dir", "gateways", "--config", "usher.hcl"})
	cmd.SetOut(&strings.Builder{})
	cmd.SetErr(&stderr)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Error(err)
	}
	if want := `problem: usher.hcl:1: gateway "egde": no ingress gateway has this name (did you mean "edge"?)`; !strings.Contains(stderr.String(), want) {
		t.Errorf("stderr has no %q: %s", want, stderr.String())
	}
}
