package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/envoyadmin"
	"github.com/usherproxy/usher/internal/supportbundle"
)

// readBundle returns the files of an archive, without the directory that all of them are in, and its manifest.
func readBundle(t *testing.T, archive []byte) (map[string]string, supportbundle.Manifest) {
	t.Helper()
	compressed, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(compressed); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(header.Name, "/")
		files[name] = string(content)
	}
	var m supportbundle.Manifest
	if err := json.Unmarshal([]byte(files[supportbundle.ManifestName]), &m); err != nil {
		t.Fatal(err)
	}
	return files, m
}

// fakeEnvoyAdmin is the admin interface of an Envoy with secrets. Of /stats, it has none.
func fakeEnvoyAdmin(t *testing.T) (url string) {
	t.Helper()
	pages := map[string]string{
		"/server_info": `{"version": "a/1.40.0/b", "command_line_options": {"config_yaml": "token: s3cret-9"}}`,
		"/config_dump": `{"configs": [{"bootstrap": {"initial_metadata": [{"key": "x-consul-token", "value": "s3cret-10"}]}}]}`,
		"/clusters":    "http://admin:s3cret-11@web::observability_name::web\n",
		"/listeners":   "http:0.0.0.0:8080::0.0.0.0:8080\n",
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if page := pages[r.URL.Path]; page != "" {
			fmt.Fprint(w, page)
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestSupportBundle(t *testing.T) {
	t.Setenv("CONSUL_HTTP_TOKEN", "s3cret-5")
	admin, envoy := debugOf(t), fakeEnvoyAdmin(t)
	var stderr strings.Builder
	run := func(out string) error {
		cmd := rootCommand()
		cmd.SetArgs([]string{"support-bundle", "--admin-addr", strings.TrimPrefix(admin, "http://"), "--envoy-admin", envoy, "--config", "usher.hcl", "-o", out})
		cmd.SetErr(&stderr)
		return cmd.ExecuteContext(t.Context())
	}
	if err := run("bundle.tar.gz"); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat("bundle.tar.gz")
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v: mode %v, want 0600", err, info.Mode())
	}
	archive, err := os.ReadFile("bundle.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	files, manifest := readBundle(t, archive)
	for name, want := range map[string]string{
		"command.json":                   `"CONSUL_HTTP_TOKEN":"[redacted]"`,
		"config.json":                    `"mode":"strict"`,
		"usher/process.json":             `"consul-http-addr"`,
		"usher/readyz.txt":               "ready\n",
		"usher/metrics.txt":              "",
		"usher/gateways.json":            `"gateway":"edge"`,
		"usher/config.json":              `"config":"usher.hcl"`,
		"usher/log.txt":                  "msg=serving\n",
		"usher/goroutines.txt":           "goroutine profile: total ",
		"usher/heap.pb.gz":               "\x1f\x8b",
		"gateways/edge/snapshot.json":    `"Authorization":"[redacted]"`,
		"gateways/edge/resources.json":   `"name":"http:0.0.0.0:8080"`,
		"envoy-1/server_info.json":       `"config_yaml":"[redacted]"`,
		"envoy-1/config_dump.json":       `{"key":"x-consul-token","value":"[redacted]"}`,
		"envoy-1/clusters.txt":           "http://[redacted]@web::observability_name::web\n",
		"envoy-1/listeners.txt":          "http:0.0.0.0:8080::0.0.0.0:8080\n",
		supportbundle.ManifestName:       `"name": "usher/readyz.txt"`,
		"gateways/default%2Fteam%2Fnew/": "",
	} {
		content, found := files[name]
		if !strings.Contains(content, want) || found == strings.HasSuffix(name, "/") {
			t.Errorf("%s: %v, want in it %q:\n%s", name, found, want, content)
		}
	}
	for name, content := range files {
		if strings.Contains(content, "s3cret") {
			t.Errorf("%s has a secret:\n%s", name, content)
		}
	}
	for name, want := range map[string]string{
		"usher/status.json":                           admin + "/status answers 404 Not Found",
		"usher/envoys.json":                           admin + "/envoys answers 404 Not Found",
		"gateways/default%2Fteam%2Fnew/snapshot.json": `nothing is known of the gateway "default/team/new" yet`,
		"envoy-1/stats.txt":                           envoy + "/stats answers 404 Not Found",
	} {
		i := slices.IndexFunc(manifest.Files, func(f supportbundle.File) bool { return f.Name == name })
		if i < 0 || !manifest.Files[i].Missing || !strings.Contains(manifest.Files[i].Problem, want) {
			t.Errorf("the manifest does not say that %s is missing because %s", name, want)
		}
		if !strings.Contains(stderr.String(), name+": ") || !strings.Contains(stderr.String(), want) {
			t.Errorf("stderr does not say that %s is missing because %s", name, want)
		}
	}
	if err := run("bundle.tar.gz"); err == nil || !strings.Contains(err.Error(), "the file exists, and Usher overwrites nothing") {
		t.Errorf("a file that exists: %v", err)
	}
	if again, err := os.ReadFile("bundle.tar.gz"); err != nil || !bytes.Equal(again, archive) {
		t.Errorf("the file was changed, %v", err)
	}
}

// TestSupportBundleWithoutAnUsher writes to stdout.
func TestSupportBundleWithoutAnUsher(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	var stdout bytes.Buffer
	var stderr strings.Builder
	cmd := rootCommand()
	cmd.SetArgs([]string{"support-bundle", "--admin-addr", strings.Replace(gone.URL, "//", "//admin:s3cret@", 1), "-o", "-"})
	cmd.SetOut(&stdout)
	cmd.SetErr(&stderr)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if line := stderr.String(); strings.Count(line, "\n") != 1 || !strings.HasPrefix(line, "usher/process.json, usher/readyz.txt, ") {
		t.Errorf("stderr has more than one line for one cause:\n%s", line)
	}
	files, manifest := readBundle(t, stdout.Bytes())
	if len(files) != 2 || files["command.json"] == "" || len(manifest.Files) != 1+len(usherPages) {
		t.Errorf("it has %d files, and the manifest says %+v", len(files), manifest)
	}
	for _, f := range manifest.Files[1:] {
		if !f.Missing || !strings.HasPrefix(f.Problem, "no Usher answers at http://127.0.0.1:") || strings.Contains(f.Problem+f.From, "s3cret") {
			t.Errorf("%+v", f)
		}
	}
}

// TestSupportBundleOfAnUsherThatIsNotReady has the reason: /readyz gives it with the status 503.
func TestSupportBundleOfAnUsherThatIsNotReady(t *testing.T) {
	unready := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "not ready: "+r.URL.Path, http.StatusServiceUnavailable)
	}))
	defer unready.Close()
	out, err := usher(t, "support-bundle", "--admin-addr", unready.URL, "-o", "-")
	if err != nil {
		t.Fatal(err)
	}
	files, _ := readBundle(t, []byte(out))
	if len(files) != 3 || files["usher/readyz.txt"] != "not ready: /readyz\n" {
		t.Errorf("it has %q", files)
	}
}

// TestSupportBundleReadsNoMoreOfAnEnvoyThanItCanKeep has an Envoy whose answers are larger than a file may be.
func TestSupportBundleReadsNoMoreOfAnEnvoyThanItCanKeep(t *testing.T) {
	page := bytes.Repeat([]byte(" "), maxBundlePart+1)
	envoy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(page) }))
	defer envoy.Close()
	o := bundleOptions{envoys: []string{envoy.URL}}
	for part := range o.ofEnvoys {
		want := fmt.Sprintf("%s answers more than the %d bytes that Usher takes", part.From, maxBundlePart)
		if err := part.Collect(t.Context(), io.Discard); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

// TestABundleThatCannotBeWrittenIsRemoved writes to a device that is full.
func TestABundleThatCannotBeWrittenIsRemoved(t *testing.T) {
	name := filepath.Join(t.TempDir(), "bundle")
	full := errors.New("no space left")
	_, err := toNewFile(name, func(to io.Writer) (supportbundle.Manifest, error) {
		_, _ = io.WriteString(to, "half")
		return supportbundle.Manifest{}, full
	})
	if !errors.Is(err, full) {
		t.Errorf("%v, want %v", err, full)
	}
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is there: %v", err)
	}
}

// supportBundleErrors returns every error of usher support-bundle and of the pages that it asks for.
func supportBundleErrors(t *testing.T) []error {
	t.Helper()
	name := filepath.Join(t.TempDir(), "bundle")
	if err := os.WriteFile(name, []byte("usher {"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, exists := toNewFile(name, nil)
	_, nowhere := toNewFile(filepath.Join(name, "bundle"), nil)
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{") }))
	defer broken.Close()
	var config error
	for field, value := range configReport(name, "") {
		if field == "content" {
			config, _ = value.(error)
		}
	}
	var o bundleOptions
	o.adminAddr = "127.0.0.1:1"
	away := o.usherPage("", "").Collect(t.Context(), io.Discard)
	errs := []error{exists, nowhere, away, copyRedactedJSON(t.Context(), envoyadmin.New(broken.URL).Client, "/config_dump", io.Discard), config}
	for i, err := range errs {
		errs[i] = errors.New(strings.NewReplacer(filepath.Dir(name), "DIR", broken.URL, "http://ADDRESS").Replace(err.Error()))
	}
	return errs
}
