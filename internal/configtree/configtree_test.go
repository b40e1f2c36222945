package configtree

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/problem"
)

type badText struct{ name, file, text, want string }

func badTexts() []badText {
	return []badText{
		{"an octal escape that is too large", "f.hcl", "a = 1\nb = \"\\400\"", `f.hcl:2: this is not HCL: "\400" is neither a number nor a text that HCL understands; correct it`},
		{"a code point that is too large", "f.hcl", "\n\na = \"\\U00110000\"", `f.hcl:3: this is not HCL: "\U00110000" is neither a number nor a text that HCL understands; correct it`},
		{"such a key", "f.hcl", "\n\"\\700\" {}", `f.hcl:2: this is not HCL: "\700" is neither a number nor a text that HCL understands; correct it`},
		{"such a key of JSON", "f.json", "{\n\"a\": 1,\n\"\\u12\": 1}", `f.json:3: this is not JSON: invalid character '"' in \u hexadecimal character escape; correct it`},
		{"JSON that is cut off in an escape", "f.hcl", "{\n\"usher\": \"\\u12", "f.hcl:2: this is not JSON: invalid character ' ' in \\u hexadecimal character escape; correct it"},
		{"a number that is too large", "f.hcl", "a = 1\nb = 99999999999999999999", "f.hcl:2: this is not HCL: 99999999999999999999 is neither a number nor a text that HCL understands; correct it"},
		{"a number that is too large, in JSON", "f.json", "{\n\"b\": 1e999}", "f.json:2: the number 1e999 is too large; correct it"},
		{"a number that is too large, in YAML", "f.yaml", "a: 1\nb: 9999999999999999999", "f.yaml:2: the number 9999999999999999999 is too large; correct it"},
		{"an octal number that is none", "f.hcl", "b = 09", "f.hcl:1: this is not HCL: 09 is neither a number nor a text that HCL understands; correct it"},
		{"a heredoc that is cut off", "f.hcl", "a {\n b = <<E", "f.hcl:2: this is not HCL: heredoc not terminated; correct it"},
		{"a key that is assigned twice", "f.hcl", "a = 1\n\na = 2", "f.hcl:3: a: this key is already given at f.hcl:1; remove one of the two"},
		{"a block and an assignment", "f.hcl", "a {}\na = {}", "f.hcl:2: a: this key is already given at f.hcl:1; remove one of the two"},
		{"a block that is not closed", "f.hcl", "a {\n b = 1\n", "f.hcl:1: this is not HCL: the { in this line is not closed; add a }"},
		{"one of two blocks that is not closed", "f.hcl", "a {\n}\nb {\n c {\n}\n", "f.hcl:3: this is not HCL: the { in this line is not closed; add a }"},
		{"lists in lists", "f.hcl", "a = " + strings.Repeat("[", 200) + strings.Repeat("]", 200), "f.hcl:1: nested more than 100 levels deep; use fewer levels"},
		{"more lists in lists than a stack can take", "f.hcl", "a = " + strings.Repeat("[", 1<<20), "f.hcl:1: the file has 1048576 brackets; the limit is 50000; check the file for generated or repeated content"},
		{"more objects in objects than a stack can take", "f.hcl", strings.Repeat("a{", 1<<19), "f.hcl:1: the file has 524288 brackets; the limit is 50000; check the file for generated or repeated content"},
		{"the same in JSON", "f.json", strings.Repeat(`{"":`, 1<<18), "f.json:1: this is not JSON: invalid character '{' exceeded max depth; correct it"},
		{"the same in YAML", "f.yaml", strings.Repeat(`{a: `, 1<<18), "f.yaml:1: this is not YAML: exceeded max depth of 10000; correct it"},
		{"blocks with very many labels", "f.hcl", strings.Repeat("a ", 1<<19) + "{}", "f.hcl:1: nested more than 100 levels deep; use fewer levels"},
		{"an alias of what it is in", "f.yaml", "a: &a\n  b: *a", "f.yaml:1: nested more than 100 levels deep; use fewer levels"},
		{"aliases that grow", "f.yaml", growing(), "f.yaml:1: the file has more than 250000 values, those behind aliases counted each time; split it"},
		{"a key that is no string", "f.yaml", "a: 1\n? [b]\n: c", "f.yaml:2: merge keys (<<) and keys that are not text are not supported; copy the keys here"},
		{"a merge", "f.yaml", "a: &a {b: 1}\nc:\n  <<: *a", "f.yaml:3: merge keys (<<) and keys that are not text are not supported; copy the keys here"},
		{"a TAB", "f.yaml", "a:\n\tb: 1", "f.yaml:2: this line begins with a TAB, and tabs cannot indent YAML; use spaces"},
		{"a tag that does not fit", "f.yaml", "a: !!int x", `f.yaml:1: "x" is not understood; put it in quotes if it is text`},
		{"no key", "f.hcl", "a = 1\n}", "f.hcl:2: this is not HCL: expected: IDENT | STRING | ASSIGN | LBRACE got: RBRACE; correct it"},
		{"no YAML", "f.yaml", "a: b\n c: d", "f.yaml:2: this is not YAML: mapping values are not allowed in this context; correct it"},
	}
}

func TestABadTextIsAProblemWithItsLine(t *testing.T) {
	for _, tc := range badTexts() {
		t.Run(tc.name, func(t *testing.T) {
			_, bad := parse(tc.file, tc.text)
			if bad == nil || bad.String() != tc.want {
				t.Errorf("got  %v\nwant %s", bad, tc.want)
			}
		})
	}
}

// growing is a list of lists of lists, each ten times the one before.
func growing() string {
	lines := []string{"a0: &a0 [x, x, x, x, x, x, x, x, x, x]"}
	for i := range 8 {
		lines = append(lines, fmt.Sprintf("a%d: &a%[1]d [%s]", i+1, strings.Repeat(fmt.Sprintf("*a%d, ", i), 10)))
	}
	return "{" + strings.Join(lines, ", ") + "}"
}

func parse(file, text string) ([]*yaml.Node, *problem.Problem) {
	if filepath.Ext(file) == ".yaml" {
		return ParseYAML(file, []byte(text))
	}
	root, bad := Parse(file, []byte(text))
	return []*yaml.Node{root}, bad
}

func TestTheLanguagesResultInEqualTrees(t *testing.T) {
	want := map[string]any{
		"text": "a\t\"b\" \U0001F600", "on": "on", "no": false, "null": "", "day": "2026-01-02", "i": 31, "big": 1e19, "f": 1.5, "e": 1000.0, "<<": 1,
		"list": []any{1, []any{}, map[string]any{}}, "blocks": []any{map[string]any{"a": map[string]any{"x": 1}}, map[string]any{"80": "y"}},
	}
	for file, text := range map[string]string{
		"f.hcl": `text = "a\t\"b\" 😀" on = "on" no = false null = "" day = "2026-01-02" i = 0x1F big = 1e19 f = 1.5 e = 1e3 "<<" = 1 list = [1, [], {}]` +
			"\nblocks \"a\" { x = 1 }\nblocks { \"80\" = \"y\" }",
		"f.json": "{\n\t\"text\": \"a\\t\\\"b\\\" \\ud83d\\ude00\", \"on\": \"on\", \"no\"\n:\tfalse, \"null\": \"\", \"day\": \"2026-01-02\", \"i\": 31, \"big\": 10000000000000000000," +
			` "f": 1.5, "e": 1e3, "<<": 1, "list": [1, [], {}], "blocks": [{"a": {"x": 1}}, {"80": "y"}]}`,
		"f.yaml": "text: \"a\\t\\\"b\\\" 😀\"\non: on\nno: false\n\"null\": ''\nday: 2026-01-02\ni: 0x1F\nbig: 1e19\nf: 1.5\ne: 1e3\n\"<<\": 1\nlist: [1, [], {}]\nblocks: [{a: &a {x: 1}}, {80: y}]",
	} {
		docs, bad := parse(file, text)
		if bad != nil {
			t.Errorf("%s: %v", file, bad)
			continue
		}
		if diff := cmp.Diff(want, Plain(docs[0])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
}

func TestAValueBehindAnObjectOrAListHasItsPlace(t *testing.T) {
	for _, text := range []string{
		"{\n  \"a\": {\"b\": {}},\n  \"key\": 1}", "{\n  \"a\": [[1], []],\n  \"key\": 1}", "{\n  \"a\": [\n],\"key\": 1}", "{\n\n\"a\": {\n}, \"key\": 1}",
	} {
		docs, bad := parse("f.json", text)
		if bad != nil {
			t.Fatal(bad)
		}
		key := docs[0].Content[2]
		before, _, _ := strings.Cut(text, `"key"`)
		if line, column := strings.Count(before, "\n")+1, len(before)-strings.LastIndex(before, "\n"); key.Line != line || key.Column != column {
			t.Errorf("the key of %q is at %d:%d, want %d:%d", text, key.Line, key.Column, line, column)
		}
	}
}

func TestNullIsNothing(t *testing.T) {
	for file, text := range map[string]string{"f.json": `{"a": null, "b": 0.0, "c": [{"d": ""}, false], "e": {}}`, "f.yaml": "a: ~\nb: 0\nc: [{d: ''}, no, false]\n---\n---\n~\n"} {
		docs, bad := parse(file, text)
		if bad != nil || len(docs) != 1 {
			t.Fatalf("%s: %d documents, problem %v", file, len(docs), bad)
		}
		if want := file == "f.yaml"; IsSet(docs[0]) != want { // YAML's no is a string
			t.Errorf("%s: set: %v, want %v", file, !want, want)
		}
	}
}

// read does everything that Usher does with a text, and checks that a problem is fit for an operator: it is one line
// and names a line of the text.
func read(t *testing.T, file, text string) {
	t.Helper()
	docs, bad := parse(file, text)
	if bad != nil {
		var line int
		_, err := fmt.Sscanf(bad.Where, file+":%d", &line)
		if lines := strings.Count(text, "\n") + 1; err != nil || line < 1 || line > lines || bad.What == "" || strings.ContainsFunc(bad.String(), unicode.IsControl) {
			t.Errorf("%q, want a line of %d, and text of one line", bad, lines)
		}
		return
	}
	for _, doc := range docs {
		Plain(doc)
		IsSet(doc)
		Describe(doc)
		(&Decoder{}).Locate(doc, "usher", 0, "a")
	}
}

// text is the content of a file.
type text struct{ file, text string }

// texts are the texts in the documents, and some with each feature of their language.
func texts(t testing.TB) []text {
	t.Helper()
	out := []text{
		{"f.hcl", "a \"b\" {\n  c = [1, 2.5, 0x1F, true, \"\\u00e9\\n${x}\"]\n  d = <<-E\n    text\n    E\n} # comment\n/* more */ e = {f = -1e3}\n"},
		{"f.json", "{\"usher\": {\"proxy_protocol\": [{\"mode\": \"\\u0073trict\", \"versions\": [\"v1\", null, 1.5e3]}]}}"},
		{"f.yaml", "a: &a [b, {c: d}]\ne: *a\n---\nf: |\n  text\n"},
	}
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	block := regexp.MustCompile("(?s)```(hcl|json|yaml)\n(.*?)```")
	for _, name := range append(pages, "../../README.md") {
		page, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range block.FindAllStringSubmatch(string(page), -1) {
			out = append(out, text{"f." + found[1], found[2]})
		}
	}
	return out
}

func TestATextThatIsCutOffOrDamagedAnywhereIsReadOrAProblem(t *testing.T) {
	damages := []string{"\x00", "\"", "\\", "{", "}", "9", "\n", "\xff", "\\400", "\\u12", "<<"}
	for _, tc := range texts(t) {
		for i := range tc.text {
			read(t, tc.file, tc.text[:i])
			read(t, tc.file, tc.text[:i]+damages[i%len(damages)]+tc.text[i+1:])
		}
	}
}

// FuzzParse checks that every text results in a valid tree or in a problem of one line.
func FuzzParse(f *testing.F) {
	for _, tc := range texts(f) {
		f.Add(tc.file, tc.text)
	}
	for _, text := range []string{`a = "\400"`, `a = "\U00110000"`, `"\700"{}`, `{"usher": "\u12`, "a = <<E", "a = <<E\nE\n", "a = 08", "a = [{b = 1}, <<-E\n x\n E\n]", "a.b = 1", "a = \"${\"b\"}\""} {
		f.Add("f.hcl", text)
	}
	for _, text := range []string{"a: &a [b, {c: *a}]", "? [a]\n: b\n", "a: !!int x", "!!set {a}", "a: .inf", "[!!float 99999999999999999999]", "!!null x", "- !!binary ="} {
		f.Add("f.yaml", text)
	}
	f.Fuzz(func(t *testing.T, file, text string) {
		if file == "f.hcl" || file == "f.json" || file == "f.yaml" {
			read(t, file, text)
		}
	})
}

// TestProblemsNameTheirColumn has one text for each parser and for each way in which a problem gets its place.
func TestProblemsNameTheirColumn(t *testing.T) {
	at := func(line, column int) problem.Position { return problem.Position{Line: line, Column: column} }
	for _, tc := range []struct {
		name, file, text string
		want             problem.Position
	}{
		{"HCL that is broken", "f.hcl", "a = 1\nö = \"x\" }", at(2, 9)},
		{"a brace", "f.hcl", "a = 1\n  b {\n", at(2, 5)},
		{"a key of HCL", "f.hcl", "a = 1\n  a = 2", at(2, 3)},
		{"JSON that is broken", "f.json", "{\n  \"ö\": x}", at(2, 8)},
		{"a key of JSON", "f.json", "{\"ö\": [1, {}],\n \"b\": 1, \"b\" : 2}", at(2, 10)},
		{"a number of JSON", "f.json", "{\n \"a\" : 1e999}", at(2, 8)},
		{"a TAB", "f.yaml", "a:\n \tb: 1", at(2, 2)},
		{"a key of YAML", "f.yaml", "{a: 1, a: 2}", at(1, 8)},
		{"YAML that is broken", "f.yaml", "a: b\n c: d", at(2, 0)},
	} {
		_, bad := Parse(tc.file, []byte(tc.text))
		if filepath.Ext(tc.file) == ".yaml" {
			_, bad = ParseYAML(tc.file, []byte(tc.text))
		}
		tc.want.File = tc.file
		if bad == nil || bad.At != tc.want {
			t.Errorf("%s: %+v, want it at %+v", tc.name, bad, tc.want)
		}
	}
}

func TestAValueIsLocatedWithItsColumn(t *testing.T) {
	for file, text := range map[string]string{
		"f.hcl":  "list = [\n  { key = 1 }\n]",
		"f.json": "{\"list\": [\n  { \"key\": 1 }\n]}",
		"f.yaml": "list:\n  - {key: 1}",
	} {
		root, bad := Parse(file, []byte(text))
		if filepath.Ext(file) == ".yaml" {
			docs, _ := ParseYAML(file, []byte(text))
			root, bad = docs[0], nil
		}
		if bad != nil {
			t.Fatal(bad)
		}
		d := Decoder{File: file}
		mark, _ := d.Locate(root, "list", 0, "key")
		if column := strings.Index(strings.Split(text, "\n")[1], "key") + 1; mark.Line != 2 || mark.Column != column && mark.Column != column-1 {
			t.Errorf("%s: at %+v, want line 2, column %d", file, mark, column)
		}
	}
}
