//go:build e2e

package charts

import (
	"fmt"
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

// TestSettingsReplaceNoPod wants the same pods with settings as without.
func TestSettingsReplaceNoPod(t *testing.T) {
	var deployments []string
	for _, set := range []string{"settings=null", "settings.usher.proxy_protocol.mode=strict"} {
		rendered, failure := template(t, "usher", "--set", set)
		if failure != "" {
			t.Fatal(failure)
		}
		deployments = append(deployments, string(asJSON(t, find(t, rendered, "Deployment", "usher"))))
	}
	if deployments[0] != deployments[1] {
		t.Errorf("without settings, the Deployment is\n%s\nwith them, it is\n%s", deployments[0], deployments[1])
	}
}

// TestNotesOfAnUpgrade wants that the notes tell users whose gateways use Usher already not to move them again.
func TestNotesOfAnUpgrade(t *testing.T) {
	rendered, failure := template(t, chartWithNotes(t), "--is-upgrade")
	if failure != "" {
		t.Fatal(failure)
	}
	const want = "Next, if the gateways do not use Usher yet:"
	if notes := fmt.Sprint(find(t, rendered, "Notes", "notes")["text"]); !strings.Contains(notes, want) {
		t.Errorf("the notes are\n%s\nwant %q", notes, want)
	}
}
