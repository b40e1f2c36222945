//go:build e2e

package conformance

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestRowsHaveCases holds rows.yaml, the list of what goes into and comes out of
// a gateway, to the cases: each row has one that exists, and each case is there
// for a row.
func TestRowsHaveCases(t *testing.T) {
	content, err := os.ReadFile("rows.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var rows map[string][]string
	if err := yaml.Unmarshal(content, &rows); err != nil {
		t.Fatal(err)
	}
	cases := caseNames(t)
	needed := map[string]bool{}
	for row, names := range rows {
		if len(names) == 0 {
			t.Errorf("no case shows: %s", row)
		}
		for _, name := range names {
			needed[name] = true
			if !slices.Contains(cases, name) {
				t.Errorf("%s: there is no case %s", row, name)
			}
		}
	}
	for _, name := range cases {
		if !needed[name] {
			t.Errorf("no row needs the case %s", name)
		}
	}
	t.Logf("%d rows, %d cases", len(rows), len(cases))
}

// caseNames lists all files of cases, by their paths in testdata.
func caseNames(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, pattern := range []string{"testdata/*.yaml", "testdata/*/*.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			names = append(names, strings.TrimSuffix(strings.TrimPrefix(path, "testdata/"), ".yaml"))
		}
	}
	return names
}
