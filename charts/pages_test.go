//go:build e2e

package charts

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/pages"
)

// TestValuesOfThePagesAreRendered renders the chart with the values that pages show, which its schema has to allow.
func TestValuesOfThePagesAreRendered(t *testing.T) {
	values := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(values, []byte(pages.Find(t, "docs/monitoring.md", "metrics:")[0].Text), 0o600); err != nil {
		t.Fatal(err)
	}
	if objects, refused := template(t, "usher", "-f", values); refused != "" || len(objects) == 0 {
		t.Errorf("helm renders %d objects: %s", len(objects), refused)
	}
}

// TestSettingsOfThePage renders the chart with the settings that the page for Kubernetes shows.
func TestSettingsOfThePage(t *testing.T) {
	values := writeValues(t, []byte(pages.Find(t, "docs/kubernetes.md", "# A further -f")[0].Text))
	rendered, failure := template(t, "usher", "-f", values)
	if failure != "" {
		t.Fatal(failure)
	}
	config := string(asJSON(t, find(t, rendered, "ConfigMap", "usher-config")["data"]))
	if !strings.Contains(config, "ingress-gateway") || !strings.Contains(config, "strict") {
		t.Errorf("Usher's config file is %s", config)
	}
}
