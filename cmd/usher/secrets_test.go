package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/status"
	"github.com/usherproxy/usher/internal/supportbundle"
)

// TestNoProblemShowsASecret has problems of settings with secrets, and one that quotes what it should not.
func TestNoProblemShowsASecret(t *testing.T) {
	var wrong any
	if err := json.Unmarshal([]byte(`{"access_log": {"request_header": "Authorization: Bearer s3cret",
		"sinks": [{"type": "otlp", "address": "http://u:s3cret@h:1"}]}}`), &wrong); err != nil {
		t.Fatal(err)
	}
	_, problems := settings.Decode("usher.hcl:2", wrong)
	problems = append(problems, problem.Problem{Where: "https://u:s3cret@where", What: "https://u:s3cret@what is wrong"})
	for _, format := range []string{"text", "json"} {
		var logged bytes.Buffer
		log, err := newLogger(&logged, format, "info")
		if err != nil {
			t.Fatal(err)
		}
		sources, _ := newAdminSources()
		sources.problems = controlplane.NewProblems(log, prometheus.NewRegistry())
		sources.ready.problems = sources.problems
		sources.problems.Report("a file", problems)
		a, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), sources.ready)
		if err != nil {
			t.Fatal(err)
		}
		defer a.stop()
		a.addPages(sources)
		shown := map[string]string{"the log": logged.String()}
		for _, path := range []string{status.Path, "/readyz"} {
			answer := httptest.NewRecorder()
			a.mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
			shown[path] = answer.Body.String()
		}
		for where, text := range shown {
			if strings.Contains(text, "s3cret") || !strings.Contains(text, "usher.access_log.request_header") || !strings.Contains(text, "://[redacted]@what is wrong") {
				t.Errorf("%s: %s", where, text)
			}
		}
	}
}

func TestTheLogHasNoSecrets(t *testing.T) {
	const secret = "http://u:s3cret@h"
	for _, format := range []string{"text", "json"} {
		var logged bytes.Buffer
		log, err := newLogger(&logged, format, "info")
		if err != nil {
			t.Fatal(err)
		}
		log.Info("asks "+secret, "text", secret, "error", errors.New(secret), "list", []string{secret}, slog.Group("group", "text", secret))
		if got := logged.String(); strings.Contains(got, "s3cret") || strings.Count(got, "http://[redacted]@h") != 5 {
			t.Errorf("%s: %s", format, got)
		}
	}
}

// TestTheTextsOfABundleHaveNoSecrets has an Usher of another release, whose pages have some, and gateways with bad names.
func TestTheTextsOfABundleHaveNoSecrets(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == gatewaysPath {
			fmt.Fprint(w, `[{"gateway": ".."}, {"gateway": "."}, {"gateway": ""}, {"gateway": "team/edge"}]`)
			return
		}
		fmt.Fprint(w, `{"at": "http://u:s3cret@h"}`)
	}))
	defer other.Close()
	out, err := usher(t, "support-bundle", "--admin-addr", other.URL, "-o", "-")
	if err != nil {
		t.Fatal(err)
	}
	files, _ := readBundle(t, []byte(out))
	for _, page := range usherPages {
		if text := files[page.name]; strings.HasSuffix(page.name, ".txt") && text != `{"at": "http://[redacted]@h"}` {
			t.Errorf("%s: %q", page.name, text)
		}
	}
	for name := range files {
		if dir, in := strings.CutPrefix(path.Dir(name), "gateways"); in && dir != "/team%2Fedge" {
			t.Errorf("the bundle has %s", name)
		}
	}
	if files["gateways/team%2Fedge/snapshot.json"] == "" {
		t.Error("a gateway is missing")
	}
}

// TestABundleHasNoPasswordOfAnAddress has passwords that make the address invalid, and one without http://.
func TestABundleHasNoPasswordOfAnAddress(t *testing.T) {
	for _, address := range []string{"admin:s3cret@127.0.0.1:1", "http://admin:s3c%ret@127.0.0.1:1", "http://admin:s3c ret@127.0.0.1:1"} {
		var stdout, stderr bytes.Buffer
		cmd := rootCommand()
		cmd.SetArgs([]string{"support-bundle", "--admin-addr", address, "--envoy-admin", address, "-o", "-"})
		cmd.SetOut(&stdout)
		cmd.SetErr(&stderr)
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		files, _ := readBundle(t, stdout.Bytes())
		if manifest := files[supportbundle.ManifestName]; strings.Contains(manifest+stderr.String(), "s3c") || manifest == "" {
			t.Errorf("%s: %s\n%s", address, manifest, &stderr)
		}
	}
}

// TestTheLogPageHasNoSecrets has a line that did not come through the logger.
func TestTheLogPageHasNoSecrets(t *testing.T) {
	var log recentLog
	if _, err := log.Write([]byte("http://u:s3cret@h\n")); err != nil {
		t.Fatal(err)
	}
	answer := httptest.NewRecorder()
	debugHandlers{log: &log}.lines(answer, nil)
	if got := answer.Body.String(); got != "http://[redacted]@h\n" {
		t.Errorf("got %q", got)
	}
}
