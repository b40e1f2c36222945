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
// from watch to server are strangers to each other; internal/controlplane joins
// them.
var allowed = map[string][]string{
	"consul":                       {"internal/expiry", "internal/gateway", "internal/problem", "internal/settings", "internal/filewatch", "internal/guard", "internal/latest", "internal/ordered", "internal/inflight", "internal/retry", "internal/statedir"},
	"listeners":                    {"internal/accesslog", "internal/envoy", "internal/evidence", "internal/gateway", "internal/problem", "internal/settings", "internal/ordered"},
	"xds":                          {"internal/expiry", "internal/filewatch", "internal/guard", "internal/latest", "internal/ordered", "internal/problem", "internal/redaction", "internal/requestbytes", "internal/wire"},
	"internal/gateway":             {"internal/problem", "internal/settings", "internal/ordered"},
	"internal/settings":            {"internal/problem"},
	"internal/problem":             {},
	"internal/configdir":           {"internal/configtree", "internal/gateway", "internal/problem", "internal/settings", "internal/filewatch"},
	"internal/configfile":          {"internal/configtree", "internal/problem", "internal/settings", "internal/filewatch"},
	"internal/configtree":          {"internal/problem"},
	"internal/consulchart":         {"internal/configtree", "internal/problem"},
	"internal/evidence":            {"internal/gateway", "internal/latest", "internal/settings"},
	"internal/kubeapi":             {"internal/filewatch", "internal/guard", "internal/problem", "internal/retry"},
	"internal/loadbalancer":        {"internal/evidence", "internal/gateway", "internal/kubeapi", "internal/problem", "internal/settings", "internal/guard", "internal/latest", "internal/retry"},
	"internal/reportkey":           {"internal/evidence", "internal/kubeapi", "internal/latest", "internal/problem", "internal/retry"},
	"internal/probe":               {},
	"internal/doctor":              {"consul", "internal/evidence", "internal/gateway", "internal/probe", "internal/problem", "internal/settings", "internal/status"},
	"internal/doctor/collect":      {"consul", "internal/accesslog", "internal/adminport", "internal/consulchart", "internal/doctor", "internal/envoyadmin", "internal/gateway", "internal/probe", "internal/status"},
	"internal/statuspage":          {"internal/inflight", "internal/status"},
	"internal/status":              {"internal/problem"},
	"internal/csds":                {"xds", "internal/resourcediff"},
	"internal/tokenreview":         {"internal/kubeapi", "internal/problem"},
	"internal/admission":           {"internal/guard"},
	"internal/controlplane":        {"listeners", "xds", "internal/evidence", "internal/gateway", "internal/problem", "internal/settings", "internal/status", "internal/guard", "internal/latest", "internal/ordered", "internal/retry"},
	"internal/dataplane":           {"xds", "internal/guard", "internal/requestbytes", "internal/wire", "internal/inflight"},
	"internal/bootstrap":           {"internal/gateway"},
	"internal/demo":                {"internal/bootstrap"},
	"internal/resourcediff":        {"internal/redaction"},
	"internal/supportbundle":       {},
	"internal/adminport":           {},
	"internal/envoyadmin":          {"internal/adminport"},
	"internal/cutover":             {"internal/envoyadmin", "internal/resourcediff"},
	"internal/accesslog":           {"internal/envoy", "internal/gateway", "internal/problem", "internal/settings"},
	"internal/envoy":               {"internal/gateway"},
	"internal/expiry":              {},
	"internal/filewatch":           {"internal/guard"},
	"internal/guard":               {},
	"internal/inflight":            {},
	"internal/latest":              {},
	"internal/memory":              {},
	"internal/ordered":             {},
	"internal/redaction":           {},
	"internal/requestbytes":        {},
	"internal/retry":               {},
	"internal/statedir":            {},
	"internal/wire":                {},
	"internal/testing/apiserver":   {"internal/testing/testprocess"},
	"internal/testing/browser":     {"internal/testing/testprocess"},
	"internal/testing/fakeenvoy":   {"internal/wire"},
	"internal/testing/golden":      {},
	"internal/testing/logbuffer":   {},
	"internal/testing/messages":    {"internal/testing/golden"},
	"internal/testing/orderedcmp":  {"internal/ordered"},
	"internal/testing/pages":       {"internal/testing/testprocess"},
	"internal/testing/services":    {},
	"internal/testing/testprocess": {},
	"charts":                       {},
	"cmd/usher": {
		"consul", "xds",
		"internal/accesslog", "internal/adminport", "internal/admission", "internal/bootstrap", "internal/configdir", "internal/configfile", "internal/consulchart", "internal/controlplane", "internal/csds", "internal/cutover",
		"internal/dataplane", "internal/demo", "internal/doctor", "internal/doctor/collect", "internal/envoyadmin", "internal/evidence", "internal/filewatch", "internal/gateway", "internal/guard", "internal/inflight", "internal/kubeapi", "internal/latest",
		"internal/loadbalancer", "internal/memory", "internal/probe", "internal/problem", "internal/redaction", "internal/reportkey", "internal/resourcediff", "internal/settings", "internal/statedir", "internal/status", "internal/statuspage", "internal/supportbundle",
		"internal/tokenreview",
	},
	"tools/settings-doc":  {"internal/configtree", "internal/settings"},
	"tools/balancers-doc": {"internal/loadbalancer"},
	"tools/chart-doc":     {},
	"tools/messages-doc":  {},
	"tools/measure":       {},
	"tools/site":          {},
	"e2e":                 {"e2e/lab", "internal/memory", "internal/testing/apiserver", "internal/testing/browser", "internal/testing/fakeenvoy", "internal/testing/testprocess"},
	"e2e/lab":             {"internal/testing/apiserver", "internal/testing/fakeenvoy", "internal/testing/testprocess"},
	"e2e/conformance":     {"e2e/lab", "internal/resourcediff", "internal/testing/fakeenvoy", "internal/testing/testprocess"},
	"e2e/chaos":           {"e2e/lab", "internal/testing/testprocess"},
	"e2e/bench":           {"internal/wire", "internal/testing/fakeenvoy"},
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
