// Package messages holds what a package says to operators on one page: a test
// provokes every message, the page has them as they are printed, and a message
// in the source that no line of the page has is a failure.
//
//	go test ./listeners -update
//
// rewrites the page, testdata/messages.golden.
package messages

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/golden"
)

// Page is the file with a package's messages, in the package's directory.
const Page = "testdata/messages.golden"

// Check compares the messages that a test has provoked with the page of the
// package whose test it is, and demands that they are all that its source has.
//
// The messages of the source are the texts in calls of the constructors, which
// are names such as "fmt.Errorf" or "refuse" (a function or method of the
// package), and in literals of types such as "problem.Problem". A text is the
// constants in one argument or field; what is not constant in it, and each verb
// of a format, stands for anything. Texts without a space are no messages.
func Check(t *testing.T, provoked []string, constructors ...string) {
	t.Helper()
	provoked = slices.Clone(provoked)
	slices.Sort(provoked)
	provoked = slices.Compact(provoked)
	if err := comparePage(provoked); err != nil {
		t.Error(err)
	}
	found, err := inSource(".", constructors)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Errorf("the package has no calls of %q", constructors)
	}
	for _, m := range found {
		if !slices.ContainsFunc(provoked, m.pattern.MatchString) {
			t.Errorf("%s: no test provokes the message %q", m.at, m.text)
		}
	}
}

func comparePage(lines []string) error {
	want := strings.Join(lines, "\n") + "\n"
	if golden.Updating() {
		if err := os.MkdirAll(filepath.Dir(Page), 0o755); err != nil {
			return err
		}
		return os.WriteFile(Page, []byte(want), 0o644)
	}
	got, err := os.ReadFile(Page)
	if err != nil {
		return fmt.Errorf("%w; write it with -update", err)
	}
	before := strings.Split(strings.TrimSuffix(string(got), "\n"), "\n")
	for _, line := range before {
		if !slices.Contains(lines, line) {
			return fmt.Errorf("%s has a message that is not printed any more (run the test with -update):\n%s", Page, line)
		}
	}
	for _, line := range lines {
		if !slices.Contains(before, line) {
			return fmt.Errorf("%s lacks a message that is printed (run the test with -update):\n%s", Page, line)
		}
	}
	return nil
}

// message is a text of the source.
type message struct {
	at      token.Position
	text    string
	pattern *regexp.Regexp
}

// inSource finds the messages in the files of a directory, tests left out.
func inSource(dir string, constructors []string) ([]message, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	s := search{fset: fset, constructors: constructors, constants: constantsOf(files)}
	for _, file := range files {
		ast.Inspect(file, s.visit)
	}
	return s.found, nil
}

// search collects messages.
type search struct {
	fset         *token.FileSet
	constructors []string
	constants    map[string]string // of the package, those that are text
	found        []message
}

func (s *search) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.CallExpr:
		if s.constructs(n.Fun) {
			s.addAll(n.Args)
		}
	case *ast.CompositeLit:
		if n.Type != nil && s.constructs(n.Type) {
			s.addAll(n.Elts)
		}
	}
	return true
}

// constructs reports whether an expression names one of the constructors.
func (s *search) constructs(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Ident:
		return slices.Contains(s.constructors, e.Name)
	case *ast.SelectorExpr:
		if x, ok := e.X.(*ast.Ident); ok && slices.Contains(s.constructors, x.Name+"."+e.Sel.Name) {
			return true
		}
		return slices.Contains(s.constructors, e.Sel.Name)
	}
	return false
}

func (s *search) addAll(args []ast.Expr) {
	for _, arg := range args {
		if field, ok := arg.(*ast.KeyValueExpr); ok {
			arg = field.Value
		}
		if call, ok := arg.(*ast.CallExpr); ok && len(call.Args) > 0 && !s.constructs(call.Fun) {
			arg = call.Args[0] // such as fmt.Sprintf of a format
		}
		text, pattern := s.text(arg)
		if !strings.Contains(strings.TrimSpace(text), " ") {
			continue
		}
		s.found = append(s.found, message{at: s.fset.Position(arg.Pos()), text: text, pattern: regexp.MustCompile(pattern)})
	}
}

// verb matches a verb of package fmt, and what a literal % is written as.
var verb = regexp.MustCompile(`%[-+# 0]*[0-9.]*(\[\d+\])?[a-zA-Z]|%%`)

// text returns the constants of an expression, and the pattern of what it prints.
func (s *search) text(e ast.Expr) (text, pattern string) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if unquoted, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return unquoted, patternOf(unquoted)
		}
	case *ast.Ident:
		if constant, ok := s.constants[e.Name]; ok {
			return constant, patternOf(constant)
		}
	case *ast.ParenExpr:
		return s.text(e.X)
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			leftText, left := s.text(e.X)
			rightText, right := s.text(e.Y)
			return leftText + rightText, left + right
		}
	}
	return "", ".*"
}

func patternOf(format string) string {
	var b strings.Builder
	end := 0
	for _, at := range verb.FindAllStringIndex(format, -1) {
		b.WriteString(regexp.QuoteMeta(format[end:at[0]]))
		if found := format[at[0]:at[1]]; found == "%%" {
			b.WriteString("%")
		} else {
			b.WriteString(".*")
		}
		end = at[1]
	}
	b.WriteString(regexp.QuoteMeta(format[end:]))
	return b.String()
}

// constantsOf returns the constants of a package whose values are plain text.
func constantsOf(files []*ast.File) map[string]string {
	constants := map[string]string{}
	for _, file := range files {
		for _, d := range file.Decls {
			decl, ok := d.(*ast.GenDecl)
			if !ok || decl.Tok != token.CONST {
				continue
			}
			for _, spec := range decl.Specs {
				values := spec.(*ast.ValueSpec)
				for i, value := range values.Values {
					if text, pattern := (&search{}).text(value); pattern == patternOf(text) && text != "" {
						constants[values.Names[i].Name] = text
					}
				}
			}
		}
	}
	return constants
}
