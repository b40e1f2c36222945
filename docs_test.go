package usher_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What the pages name: spans in backquotes, tests, metrics, and links to files.
var (
	codeSpan = regexp.MustCompile("`([^`\n]+)`")
	filePath = regexp.MustCompile(`^((cmd|consul|docs|e2e|internal|listeners|tools|xds|changes)(/[\w.*-]+)*/?|[\w./-]+\.(go|md|yml))$`)
	exported = regexp.MustCompile(`^([a-z][a-z0-9/]*)\.([A-Z]\w*)(?:\.([A-Z]\w*))?(/[\w-]+)?$`)
	testFunc = regexp.MustCompile(`\b(Test|Benchmark)[A-Z]\w+`)
	metric   = regexp.MustCompile(`\busher_[a-z]+(_[a-z]+)*\b`)
	linkTo   = regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`) // without a file: to the page itself
	heading  = regexp.MustCompile(`(?m)^#+ (.*)$`)
	noSlug   = regexp.MustCompile(`[^\w -]`)
)

// TestPagesNameWhatExists holds the pages to the code: every file, package,
// exported identifier, test and metric that they name exists.
func TestPagesNameWhatExists(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	code := readCode(t)
	for _, page := range append(pages, "README.md", "CONTRIBUTING.md", "SECURITY.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, span := range codeSpan.FindAllStringSubmatch(string(text), -1) {
			if name := exported.FindStringSubmatch(span[1]); name != nil {
				if !code.declares(name[1], name[2]) || name[3] != "" && !code.declares(name[1], name[3]) {
					t.Errorf("%s: there is no %s", page, span[1])
				}
			} else if filePath.MatchString(span[1]) {
				wantPath(t, page, span[1])
			}
		}
		for _, link := range linkTo.FindAllStringSubmatch(string(text), -1) {
			to := page
			if link[1] != "" {
				to = filepath.Join(filepath.Dir(page), link[1])
			}
			wantPath(t, page, to)
			if link[2] != "" && !slices.Contains(headings(t, to), link[2]) {
				t.Errorf("%s: %s has no heading #%s", page, to, link[2])
			}
		}
		for _, name := range testFunc.FindAllString(string(text), -1) {
			if !code.declares("", name) {
				t.Errorf("%s: there is no test %s", page, name)
			}
		}
		for _, name := range metric.FindAllString(string(text), -1) {
			if !strings.Contains(code.text, `"`+name+`"`) {
				t.Errorf("%s: there is no metric %s", page, name)
			}
		}
	}
}

func wantPath(t *testing.T, page, path string) {
	t.Helper()
	if found, err := filepath.Glob(path); err != nil || len(found) == 0 {
		t.Errorf("%s: there is no %s (%v)", page, path, err)
	}
}

// headings returns the anchors of the headings of a page.
func headings(t *testing.T, page string) []string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var anchors []string
	for _, found := range heading.FindAllStringSubmatch(string(text), -1) {
		anchors = append(anchors, strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(found[1]), ""), " ", "-"))
	}
	return anchors
}

// source is all Go code of the module.
type source struct {
	text  string
	names map[string][]string // the names that each directory declares
}

// declares reports whether a package declares the name. The package is the end of
// its path; "" stands for any.
func (s source) declares(pkg, name string) bool {
	for dir, names := range s.names {
		if (pkg == "" || strings.HasSuffix("/"+dir, "/"+pkg)) && slices.Contains(names, name) {
			return true
		}
	}
	return false
}

func (s source) add(dir string, names ...*ast.Ident) {
	for _, name := range names {
		s.names[dir] = append(s.names[dir], name.Name)
	}
}

func readCode(t *testing.T) source {
	t.Helper()
	s := source{names: map[string][]string{}}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == ".tools" {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		s.text += string(text)
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				s.add(dir, n.Name)
			case *ast.TypeSpec:
				s.add(dir, n.Name)
			case *ast.ValueSpec:
				s.add(dir, n.Names...)
			case *ast.Field:
				s.add(dir, n.Names...)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestEveryFaultHasATest holds the tables of docs/operations.md to their promise.
func TestEveryFaultHasATest(t *testing.T) {
	text, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	faults := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(line, "|\n "), " | ")
		if len(cells) != 5 || cells[0] == "fault" {
			continue
		}
		if faults++; !testFunc.MatchString(cells[4]) {
			t.Errorf("no test shows: %s", cells[0])
		}
	}
	if faults < 50 {
		t.Errorf("found %d faults, want the tables of the page", faults)
	}
}

// TestTheFAQHasMeasuredNumbers holds what docs/faq.md says of costs to the tables of docs/performance.md.
func TestTheFAQHasMeasuredNumbers(t *testing.T) {
	measured := readText(t, "docs/performance.md")
	for _, row := range tableBelow(t, readText(t, "docs/faq.md"), "## What does it cost?")[1:] {
		if !strings.Contains(measured, "| "+row[1]+" |") {
			t.Errorf("docs/performance.md does not say %s: %s", row[1], row[0])
		}
	}
}
