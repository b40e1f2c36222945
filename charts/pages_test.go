//go:build e2e

package charts

import (
	"os"
	"path/filepath"
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
