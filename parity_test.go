package usher_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The cells of docs/parity.md: what Usher does about it, and where that is shown.
var (
	decision = regexp.MustCompile(`^(match\b|better: |\*\*gap\*\*: )`)
	testName = regexp.MustCompile("^`([a-z0-9/]+)\\.(Test[A-Za-z0-9]+)(?:/([a-z0-9-]+))?`$")
)

// TestParityPageNamesTestsThatExist holds docs/parity.md to the code: each row
// says what Usher does, and names a test that is there.
func TestParityPageNamesTestsThatExist(t *testing.T) {
	page, err := os.ReadFile("docs/parity.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if len(cells) != 4 || !strings.HasPrefix(line, "|") || strings.TrimSpace(cells[0]) == "what" {
			continue
		}
		rows++
		if !decision.MatchString(strings.TrimSpace(cells[2])) {
			t.Errorf("no decision: %s", line)
		}
		for test := range strings.SplitSeq(strings.TrimSpace(cells[3]), ", ") {
			named := testName.FindStringSubmatch(test)
			if named == nil {
				t.Errorf("%s is no test: %s", test, line)
				continue
			}
			wantTest(t, named[1], named[2], named[3])
		}
	}
	if rows < 30 {
		t.Errorf("%d rows found: the page has another form than this test reads", rows)
	}
}

// wantTest wants a package to have the test, and the test a case of that name:
// a file in its testdata, or a name in its tests.
func wantTest(t *testing.T, pkg, test, name string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(content)
	}
	if !strings.Contains(code.String(), "\nfunc "+test+"(t *testing.T)") {
		t.Errorf("%s has no test %s", pkg, test)
	}
	if name == "" || strings.Contains(code.String(), `"`+name+`"`) {
		return
	}
	for _, suffix := range []string{".yaml", ".in.yaml"} {
		if _, err := os.Stat(filepath.Join(pkg, "testdata", name+suffix)); err == nil {
			return
		}
	}
	t.Errorf("%s.%s has no case %s", pkg, test, name)
}
