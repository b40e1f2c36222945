package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/cobra"

	"github.com/usherproxy/usher/internal/resourcediff"
)

func TestDiffPrintsOnlyWhatDiffers(t *testing.T) {
	files := gatewayFiles()
	files["off.hcl"] = "usher {}"
	files["other/edge.hcl"] = strings.Replace(files["gateways/edge.hcl"], "a.example.com", "b.example.com", 1)
	files["other/web.hcl"], files["other/service.json"] = files["gateways/web.hcl"], files["gateways/service.json"]
	newFiles(t, files)
	for _, tc := range []struct {
		against string
		want    string // a line; "" for no difference
		without string
	}{
		{"usher.hcl", "", "@"},
		{"off.hcl", "+  - name: envoy.filters.listener.proxy_protocol\n", "--- off.hcl/route/"},
		{"other", "-      - b.example.com\n", "/listener/"},
	} {
		out, err := usher(t, "diff", "--gateway", "edge", "--config-dir", "gateways", "--config", "usher.hcl", "--against", tc.against)
		if status, _ := statusOf(&cobra.Command{}, err); status > 0 != (tc.want != "") || !strings.Contains(out, tc.want) || strings.Contains(out, tc.without) {
			t.Errorf("against %s: error %v, want the line %q and nothing of %q:\n%s", tc.against, err, tc.want, tc.without, out)
		}
	}
}

func TestDiffAsksAnEnvoyWhatItRuns(t *testing.T) {
	newFiles(t, gatewayFiles())
	args := []string{"diff", "--gateway", "edge", "--config-dir", "gateways", "--config", "usher.hcl"}
	listener := `{"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "http:0.0.0.0:8080", "is_newer": true}`
	answers := map[string]string{
		"/server_info": `{"version": "c0ffee/1.29.0/Clean/RELEASE/BoringSSL", "node": {"id": "edge"}}`,
		"/config_dump": `{"configs": [{"dynamic_listeners": [{"active_state": {"listener": ` + listener + `}}, {"name": "warming"}]}]}`,
	}
	envoy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if answer, ok := answers[r.URL.Path]; ok {
			fmt.Fprint(w, answer)
			return
		}
		http.NotFound(w, r)
	}))
	defer envoy.Close()
	at := strings.TrimPrefix(envoy.URL, "http://")
	files := []string{"--envoy-admin", at}
	if _, err := usher(t, append(append(args, files...), "--service-id", "none")...); err == nil || !strings.Contains(err.Error(), "no such instance") {
		t.Errorf("error %v, want one about the instance", err)
	}
	out, err := usher(t, append(args, files...)...)
	for _, text := range []string{"--- envoy/listener/http:0.0.0.0:8080\n", "+  - name: envoy.filters.listener.proxy_protocol\n", "+++ usher/cluster/web"} {
		if err != errBadResult || !strings.Contains(out, text) || strings.Contains(out, "/endpoint/") || strings.Contains(out, "stat_prefix: http_0_0_0_0_8080") { //nolint:errorlint // it is not wrapped
			t.Errorf("error %v, want %q, no endpoints, and what Envoy 1.29 gets:\n%s", err, text, out)
		}
	}
	for path, bad := range map[string]string{"/server_info": "{", "/config_dump": `{"configs": [{"dynamic_active_clusters": [{"cluster": 1}]}]}`} {
		good := answers[path]
		answers[path] = bad
		if _, err := usher(t, append(args, files...)...); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("a bad answer at %s: error %v", path, err)
		}
		delete(answers, path)
		if _, err := usher(t, append(args, files...)...); err == nil || !strings.Contains(err.Error(), "404 Not Found") {
			t.Errorf("no answer at %s: error %v", path, err)
		}
		answers[path] = good
	}
}

func TestDiffLeavesOutTheReportsOfConnections(t *testing.T) {
	const listener = `{"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "%s", "access_log": [%s]}`
	const report = `{"name": "Usher Report", "filter": {"not_health_check_filter": {}}}`
	dump := `{"configs": [{"dynamic_listeners": [{"active_state": {"listener": ` + fmt.Sprintf(listener, "a", report+","+report) +
		`}}, {"active_state": {"listener": ` + fmt.Sprintf(listener, "b", report+`, {"name": "other"}`) + `}}]}]}`
	resources, err := resourcediff.ReadDump([]byte(dump))
	if err != nil {
		t.Fatal(err)
	}
	leaveOutReports(resources)
	want := map[string]resourcediff.Tree{"a": map[string]any{"name": "a"}, "b": map[string]any{"name": "b", "access_log": []any{map[string]any{"name": "other"}}}}
	if diff := cmp.Diff(want, resources[resource.ListenerType], cmpopts.IgnoreMapEntries(func(key string, _ any) bool { return key == "@type" })); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestExitStatusesAreThoseOfDiff(t *testing.T) {
	diff, render := diffCommand(), renderCommand()
	for _, tc := range []struct {
		cmd    *cobra.Command
		err    error
		status int
		silent bool
	}{
		{diff, nil, 0, true},
		{diff, errBadResult, 1, true},
		{diff, errors.New("no Consul"), 2, false},
		{render, errBadResult, 1, true},
		{render, errors.New("no Consul"), 1, false},
	} {
		if status, silent := statusOf(tc.cmd, tc.err); status != tc.status || silent != tc.silent {
			t.Errorf("usher %s with %v: exit status %d, silent %v", tc.cmd.Name(), tc.err, status, silent)
		}
	}
}
