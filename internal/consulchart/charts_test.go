//go:build kubernetes

package consulchart

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/usherproxy/usher/internal/testing/golden"
)

// chartsOf returns the directories of the real charts in $CONSUL_K8S.
func chartsOf(t *testing.T) []string {
	t.Helper()
	dir := os.Getenv("CONSUL_K8S")
	if dir == "" {
		t.Skip("CONSUL_K8S names no directory with charts")
	}
	charts, err := filepath.Glob(filepath.Join(dir, "charts/*/consul"))
	if err != nil || len(charts) == 0 {
		t.Fatalf("no charts/*/consul in %s: %v", dir, err)
	}
	return charts
}

func TestTheRealChartsGiveThePodsTheBootstrap(t *testing.T) {
	refused := []string{"notices", "umbrella"} // the charts make no gateways of these values
	for _, chart := range chartsOf(t) {
		for _, name := range golden.Cases(t, "testdata") {
			if slices.Contains(refused, name) {
				continue
			}
			t.Run(filepath.Base(filepath.Dir(chart))+"/"+name, func(t *testing.T) {
				c, files := readCase(t, golden.Input(t, "testdata", name))
				prefix := parse(t, files...).Prefix("consul")
				helmGivesThePodsTheBootstrap(t, chart, c, files, func(gateway string) string { return prefix + "-" + gateway })
			})
		}
	}
}
