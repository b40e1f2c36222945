package usher_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/usherproxy/usher/"

// allowed lists, for every package of the module, which others of it may be
// imported: the architecture of docs/architecture.md. The packages on the way
// from watch to server are strangers to each other; internal/control joins
// them.
var allowed = map[string][]string{
	"gateway":                     {"internal/ordered"},
	"consul":                      {"gateway", "internal/follow", "internal/guard", "internal/latest", "internal/ordered"},
	"files":                       {"gateway", "internal/follow", "internal/guard", "internal/hcl"},
	"kubernetes":                  {"gateway", "internal/guard", "internal/latest"},
	"listeners":                   {"gateway", "internal/ordered"},
	"xds":                         {"internal/follow", "internal/guard", "internal/ordered", "internal/wire"},
	"internal/follow":             {"internal/guard"},
	"internal/guard":              {},
	"internal/hcl":                {},
	"internal/latest":             {},
	"internal/ordered":            {},
	"internal/ordered/orderedcmp": {"internal/ordered"},
	"internal/golden":             {},
	"internal/wire":               {},
	"internal/xdstest":            {"internal/wire"},
	"internal/parts":              {},
	"internal/apiserver":          {"internal/parts"},
	"internal/operator":           {"gateway", "internal/follow", "internal/guard", "internal/hcl"},
	"internal/bootstrap":          {"gateway"},
	"internal/demo":               {"internal/bootstrap"},
	"internal/control":            {"gateway", "listeners", "xds", "internal/guard", "internal/latest", "internal/ordered"},
	"cmd/usher": {
		"gateway", "consul", "files", "kubernetes", "xds",
		"internal/control", "internal/operator", "internal/bootstrap", "internal/demo", "internal/guard",
	},
	"tools/settings-doc":  {"gateway"},
	"tools/balancers-doc": {"kubernetes"},
	"e2e":                 {"internal/apiserver", "internal/parts", "internal/xdstest"},
	"e2e/conformance":     {"internal/parts", "internal/xdstest"},
	"e2e/bench":           {"internal/wire", "internal/xdstest"},
}

func TestPackagesImportOnlyWhatTheArchitectureAllows(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-tags", "e2e", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		pkg, imports, _ := strings.Cut(strings.TrimSpace(line), " ")
		pkg = strings.TrimPrefix(pkg, module)
		if pkg+"/" == module {
			continue
		}
		seen[pkg] = true
		may, known := allowed[pkg]
		if !known {
			t.Errorf("package %s is not in the table", pkg)
		}
		for imported := range strings.FieldsSeq(imports) {
			own, isOwn := strings.CutPrefix(imported, module)
			if isOwn && !slices.Contains(may, own) {
				t.Errorf("%s imports %s, which the table does not allow", pkg, own)
			}
		}
	}
	for pkg := range allowed {
		if !seen[pkg] {
			t.Errorf("package %s of the table does not exist", pkg)
		}
	}
}
