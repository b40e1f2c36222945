package usher_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	seriesLine  = regexp.MustCompile(`(?m)^(usher_[a-z_]+?)(?:_count)?\{(.*)\} 0$`)
	emptyLabel  = regexp.MustCompile(`([a-z_]+)=""`)
	metricRow   = regexp.MustCompile("(?m)^\\| `(usher_[a-z_]+)` \\|([^|]*)\\|")
	alertInFile = regexp.MustCompile(`(?m)^  - alert: (\w+)$`)
)

// TestMonitoringPageHasEachMetric compares the table with a real scrape (e2e/metrics_test.go).
func TestMonitoringPageHasEachMetric(t *testing.T) {
	scrape, page := map[string]string{}, map[string]string{}
	for _, found := range seriesLine.FindAllStringSubmatch(readText(t, "e2e/testdata/metrics.txt"), -1) {
		scrape[found[1]] = strings.ReplaceAll(emptyLabel.ReplaceAllString(found[2], "`$1`"), ",", ", ")
	}
	for _, found := range metricRow.FindAllStringSubmatch(readText(t, "docs/monitoring.md"), -1) {
		page[found[1]] = found[2]
	}
	if diff := cmp.Diff(sortedLabels(scrape), sortedLabels(page)); diff != "" {
		t.Errorf("docs/monitoring.md (-want +got):\n%s", diff)
	}
}

// sortedLabels makes the order of labels irrelevant.
func sortedLabels(metrics map[string]string) map[string]map[string]bool {
	all := map[string]map[string]bool{}
	for name, labels := range metrics {
		all[name] = map[string]bool{}
		for label := range strings.SplitSeq(strings.TrimSpace(labels), ", ") {
			all[name][label] = true
		}
	}
	return all
}

func TestMonitoringPageHasEachAlert(t *testing.T) {
	page, alerts := readText(t, "docs/monitoring.md"), alertInFile.FindAllStringSubmatch(readText(t, "charts/usher/files/alerts.yaml"), -1)
	if len(alerts) == 0 {
		t.Fatal("there is no alert")
	}
	for _, found := range alerts {
		if link := "[" + found[1] + "](runbooks.md#" + strings.ToLower(found[1]) + ")"; !strings.Contains(page, link) {
			t.Errorf("docs/monitoring.md lacks %s", link)
		}
	}
}

func readText(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
