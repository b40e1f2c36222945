package hcl

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/hashicorp/hcl/hcl/ast"
)

func TestWhatTheLibraryPanicsOnIsAnErrorWithItsLine(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		line       int
	}{
		{"an octal escape that is too large", "a = 1\nb = \"\\400\"", 2},
		{"a code point that is too large", "\n\na = \"\\U00110000\"", 3},
		{"such a key", "\n\"\\700\" {}", 2},
		{"such a key of JSON", "{\n\"a\": 1,\n\"\\u12\": 1}", 3},
		{"JSON that is cut off in an escape", "{\n\"usher\": \"\\u12", 2},
		{"a number that is too large", "a = 1\nb = 99999999999999999999", 2},
		{"a number that is too large, in JSON", "{\n\"b\": 99999999999999999999}", 2},
		{"an octal number that is none", "b = 09", 1},
		{"a heredoc that is cut off", "a {\n b = <<E", 2},
		{"a key that is assigned twice", "a = 1\n\na = 2", 3},
		{"a block that is not closed", "a {\n b = 1\n", 3},
		{"lists in lists", "a = " + strings.Repeat("[", 200) + strings.Repeat("]", 200), 1},
		{"more lists in lists than a stack can take", "a = " + strings.Repeat("[", 1<<20), 1},
		{"more objects in objects than a stack can take", strings.Repeat("a{", 1<<19), 1},
		{"the same in JSON", strings.Repeat(`{"":`, 1<<18), 1},
		{"blocks with very many labels", strings.Repeat("a ", 1<<19) + "{}", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(tc.text), Unique)
			wantError(t, tc.text, err)
			if caught, ok := errors.AsType[*Error](err); ok && caught.Line != tc.line {
				t.Errorf("the error is in line %d, want %d: %v", caught.Line, tc.line, err)
			}
		})
	}
}

// wantError checks that an error is fit for an operator: it is one line, and names a
// line of the text.
func wantError(t *testing.T, text string, err error) {
	t.Helper()
	caught, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("got %v, want an *Error", err)
	}
	if lines := strings.Count(text, "\n") + 1; caught.Line < 1 || caught.Line > lines || caught.What == "" || strings.ContainsFunc(caught.What, unicode.IsControl) {
		t.Errorf("line %d: %q, want a line of %d, and text of one line", caught.Line, caught.What, lines)
	}
}

// read does everything that Usher does with a text: it reads the values and decodes
// the tree.
func read(t *testing.T, text string) {
	t.Helper()
	for _, keys := range []Keys{Unique, Repeated} {
		tree, err := Parse([]byte(text), keys)
		if err != nil {
			wantError(t, text, err)
			continue
		}
		ast.Walk(tree, func(n ast.Node) (ast.Node, bool) {
			switch n := n.(type) {
			case *ast.ObjectKey:
				n.Token.Value()
			case *ast.LiteralType:
				n.Token.Value()
			}
			return n, true
		})
		for _, item := range tree.Items {
			var object map[string]any
			var anything any
			_ = Decode(&object, item.Val) // fails for a literal
			if err := Decode(&anything, item.Val); err != nil && strings.Contains(err.Error(), "runtime error") {
				t.Errorf("the library panics: %v", err)
			}
		}
	}
}

// texts are the texts in the documents, and some with each feature of the language.
func texts(t testing.TB) []string {
	t.Helper()
	out := []string{
		"a \"b\" {\n  c = [1, 2.5, 0x1F, true, \"\\u00e9\\n${x}\"]\n  d = <<-E\n    text\n    E\n} # comment\n/* more */ e = {f = -1e3}\n",
		"{\"usher\": {\"proxy_protocol\": [{\"mode\": \"\\u0073trict\", \"versions\": [\"v1\", null, 1.5e3]}]}}",
	}
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	block := regexp.MustCompile("(?s)```(?:hcl|json)\n(.*?)```")
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range block.FindAllStringSubmatch(string(text), -1) {
			out = append(out, found[1])
		}
	}
	return out
}

func TestAFileThatIsCutOffOrDamagedAnywhereIsReadOrAnError(t *testing.T) {
	damages := []string{"\x00", "\"", "\\", "{", "}", "9", "\n", "\xff", "\\400", "\\u12", "<<"}
	for _, text := range texts(t) {
		for i := range text {
			read(t, text[:i])
			read(t, text[:i]+damages[i%len(damages)]+text[i+1:])
		}
	}
}

// FuzzParse checks that every text results in a valid tree or in an error of one
// line.
func FuzzParse(f *testing.F) {
	for _, text := range texts(f) {
		f.Add(text)
	}
	for _, text := range []string{`a = "\400"`, `a = "\U00110000"`, `"\700"{}`, `{"usher": "\u12`, "a = <<E", "a = <<E\nE\n", "a = 08", "a = [{b = 1}, <<-E\n x\n E\n]", "a.b = 1", "a = \"${\"b\"}\""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { read(t, text) })
}
