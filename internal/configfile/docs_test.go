package configfile

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"sigs.k8s.io/yaml"

	"github.com/usherproxy/usher/internal/settings"
)

var (
	hclBlock  = regexp.MustCompile("(?s)```hcl\n(.*?)```")
	yamlBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```")
	yamlBelow = regexp.MustCompile("(?s)^\n*```yaml\n(.*?)```")
	inlineHCL = regexp.MustCompile("`([a-z_]+) = ([^`]+)`")
)

// TestSettingsInDocumentsAreRead reads every setting that the documents show, whole files and single keys, as an
// operator would copy them.
func TestSettingsInDocumentsAreRead(t *testing.T) {
	groups := map[string]string{} // of keys
	for _, group := range settings.Groups {
		for _, s := range group.Settings {
			groups[s.Key] = group.Key
		}
	}
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range hclBlock.FindAllStringSubmatch(string(text), -1) {
			if strings.HasPrefix(found[1], "usher") || strings.HasPrefix(found[1], "gateway") {
				wantRead(t, page, found[1])
				read++
			}
		}
		for _, found := range inlineHCL.FindAllStringSubmatch(string(text), -1) {
			if group := groups[found[1]]; group != "" {
				wantRead(t, page, fmt.Sprintf("usher {\n%s {\n%s = %s\n}\n}\n", group, found[1], found[2]))
				read++
			}
		}
	}
	if read == 0 {
		t.Error("the documents have no settings")
	}
}

func wantRead(t *testing.T, page, text string) settings.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "usher.hcl")
	write(t, path, strings.ReplaceAll(text, "<the load balancer>", "192.0.2.10"))
	f, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Errorf("%s has settings that are refused: %v\n%s", page, err, text)
	}
	return f.Content()
}

// TestSettingsAreShownInBothForms wants a patch for the custom resource ProxyDefaults directly below each block of the
// config file that is for all gateways, with the same settings.
func TestSettingsAreShownInBothForms(t *testing.T) {
	shown := 0
	for _, page := range []string{"settings.md", "client-address.md", "access-logs.md", "migration.md"} {
		text, err := os.ReadFile(filepath.Join("../../docs", page))
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range hclBlock.FindAllStringSubmatchIndex(string(text), -1) {
			inHCL := string(text[at[2]:at[3]])
			if !strings.HasPrefix(inHCL, "usher") {
				continue
			}
			shown++
			below := yamlBelow.FindSubmatch(text[at[1]:])
			if below == nil {
				t.Errorf("%s: a block in YAML is missing below\n%s", page, inHCL)
				continue
			}
			want := wantRead(t, page, inHCL).All.Settings
			if diff := cmp.Diff(want, patched(t, page, below[1]), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("%s: YAML and HCL differ (-HCL +YAML):\n%s\n%s", page, diff, below[1])
			}
		}
	}
	if shown < 10 {
		t.Errorf("found %d blocks of settings, want those of the four pages", shown)
	}
}

// patched returns the settings in a patch for ProxyDefaults, read as Kubernetes reads it.
func patched(t *testing.T, page string, text []byte) settings.Settings {
	t.Helper()
	var patch struct {
		Spec struct {
			Config map[string]any `json:"config"`
		} `json:"spec"`
	}
	if err := yaml.UnmarshalStrict(text, &patch); err != nil {
		t.Errorf("%s: %v\n%s", page, err, text)
	}
	decoded, problems := settings.Decode(page, patch.Spec.Config[settings.Key])
	if len(problems) > 0 || len(patch.Spec.Config) != 1 {
		t.Errorf("%s: %v\n%s", page, problems, text)
	}
	return decoded
}

// TestChartSettingsAreRead reads what the documents show of the chart's value settings, which becomes the config file.
func TestChartSettingsAreRead(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range yamlBlock.FindAllSubmatch(text, -1) {
			var values struct {
				Settings json.RawMessage `json:"settings"`
			}
			if err := yaml.Unmarshal(found[1], &values); err == nil && len(values.Settings) > 0 {
				wantRead(t, page, string(values.Settings))
				read++
			}
		}
	}
	if read < 2 {
		t.Errorf("found %d values of the chart, want those of settings.md and kubernetes.md", read)
	}
}
