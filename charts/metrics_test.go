package charts

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var metric = regexp.MustCompile(`\busher_[a-z]+(_[a-z]+)*\b`)

// TestAlertsAndDashboardNameMetrics checks that each metric in the alerts and in the dashboard exists.
func TestAlertsAndDashboardNameMetrics(t *testing.T) {
	code := readCode(t)
	for _, file := range []string{"usher/alerts.yaml", "usher/dashboards/usher.json"} {
		for _, name := range metric.FindAllString(read(t, file), -1) {
			if base := strings.TrimSuffix(name, "_bucket"); !strings.Contains(code, `"`+base+`"`) {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
	}
	if !json.Valid([]byte(read(t, "usher/dashboards/usher.json"))) {
		t.Error("the dashboard is not JSON")
	}
}

// withoutAlert are the metrics of the README's table "What to watch" in which "act when" is no fixed condition.
var withoutAlert = []string{"usher_kubernetes_grace_end_timestamp_seconds", "usher_dataplane_ads_streams", "usher_build_info"}

// TestEachMetricToWatchHasAnAlert checks that the alerts have every other metric of the table.
func TestEachMetricToWatchHasAnAlert(t *testing.T) {
	_, watch, _ := strings.Cut(read(t, "../README.md"), "## What to watch")
	watch, _, _ = strings.Cut(watch, "\n## ")
	alerts := read(t, "usher/alerts.yaml")
	for line := range strings.Lines(watch) {
		name := metric.FindString(line)
		if !strings.HasPrefix(line, "| `usher_") || slices.Contains(withoutAlert, name) {
			continue
		}
		if !strings.Contains(alerts, name) {
			t.Errorf("usher/alerts.yaml: no alert for %s", name)
		}
	}
}

// TestAlertsAreComplete checks that each alert says what it means and what to do.
func TestAlertsAreComplete(t *testing.T) {
	var alerts []struct {
		Alert, Expr, For    string
		Labels, Annotations map[string]string
	}
	if err := yaml.Unmarshal([]byte(read(t, "usher/alerts.yaml")), &alerts); err != nil {
		t.Fatal(err)
	}
	for _, a := range alerts {
		if a.Annotations["summary"] == "" || a.Annotations["description"] == "" || a.Labels["severity"] == "" {
			t.Errorf("%s has no summary, description or severity", a.Alert)
		}
		if n := strings.Count(a.Expr, `{namespace="NAMESPACE", job="JOB"`); n == 0 || n != strings.Count(a.Expr, "{") {
			t.Errorf("%s: a metric is not limited to the release: %s", a.Alert, a.Expr)
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// readCode returns the code of the packages that have metrics.
func readCode(t *testing.T) string {
	t.Helper()
	var code strings.Builder
	for _, dir := range []string{"../cmd", "../consul", "../internal", "../xds"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") {
				code.WriteString(read(t, path))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return code.String()
}
