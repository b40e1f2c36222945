//go:build e2e

package lab

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// label is a label of a metric, with its value.
var label = regexp.MustCompile(`[a-zA-Z0-9_]+="(?:[^"\\]|\\.)*"`)

// MetricsOf returns the values of metrics by name and labels, in the order of the labels' names. A label without a value
// is none to Prometheus. Usher's rules give one to each cluster that is not in a cluster peer (consul_destination_peer),
// as Consul's do for other labels, because a rule that does not match costs more.
func MetricsOf(text string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(text) {
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		name, labels, _ := strings.Cut(line[:at], "{")
		var kept []string
		for _, of := range label.FindAllString(labels, -1) {
			if !strings.HasSuffix(of, `=""`) {
				kept = append(kept, of)
			}
		}
		slices.Sort(kept)
		all[name+"{"+strings.Join(kept, ",")+"}"] = strings.TrimSpace(line[at:])
	}
	return all
}

// WantSameMetrics wants that two Envoys have the same metrics, except where one may differ.
func WantSameMetrics(t *testing.T, consuls, own map[string]string, mayDiffer func(metric, value string) bool) {
	t.Helper()
	if len(consuls) < 1000 {
		t.Fatalf("Envoy has %d metrics on Consul's bootstrap, want more than a thousand", len(consuls))
	}
	for what, pair := range map[string][2]map[string]string{
		"is missing on Usher's bootstrap":    {consuls, own},
		"is there only on Usher's bootstrap": {own, consuls},
	} {
		n := 0
		for _, metric := range slices.Sorted(maps.Keys(pair[0])) {
			if _, has := pair[1][metric]; has || mayDiffer != nil && mayDiffer(metric, pair[0][metric]) {
				continue
			}
			if n++; n <= 10 {
				t.Errorf("%s %s", metric, what)
			}
		}
		if n > 10 {
			t.Errorf("… and %d more", n-10)
		}
	}
}

// IsDeferred reports whether a metric may differ because Envoy creates it with the first request to a cluster: it is 0
// until then. What says whether it has been created comes in addition.
func IsDeferred(metric, value string) bool {
	return value == "0" && strings.Contains(metric, "envoy_cluster_name=") ||
		strings.HasPrefix(metric, "envoy_cluster_ClusterTrafficStats_initialized{")
}

// IsOfDrain reports whether a metric is of the listeners and clusters with which the template for consul-dataplane drains
// Envoy, and takes its reports to Usher.
func IsOfDrain(metric string) bool {
	return strings.Contains(metric, `="usher_admin"`) || strings.Contains(metric, `="usher_quit"`) || strings.Contains(metric, `="usher_reports"`)
}
