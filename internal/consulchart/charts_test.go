//go:build kubernetes

package consulchart

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// TestTheRealChartsKnowTheirKeys holds the tables of keys to the values that the charts come with.
func TestTheRealChartsKnowTheirKeys(t *testing.T) {
	unread := map[string]bool{} // keys of the tables that no chart has
	for path, keys := range knownKeys {
		for _, key := range keys {
			unread[join(path, key)] = path != gatewaysPath && !strings.HasPrefix(path, gatewaysPath+".")
		}
	}
	delete(unread, "fullnameOverride") // helpers read these, and the values do not have them
	delete(unread, "nameOverride")
	for _, chart := range chartsOf(t) {
		text, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		version := filepath.Base(filepath.Dir(chart))
		v := parse(t, File{version, text})
		for _, notice := range noticesOf(t, v, version) {
			if strings.Contains(notice, "this key") {
				t.Error(notice)
			}
		}
		for path := range unread {
			if key, _ := v.find(path); key != nil {
				unread[path] = false
			}
		}
	}
	for path, is := range unread {
		if is {
			t.Errorf("no chart has the key %s", path)
		}
	}
}
