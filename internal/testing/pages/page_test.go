package pages

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const page = `# Title

Write the settings into ~/etc/usher/usher.hcl~:

~~~hcl
usher {}
~~~

## First steps

1. Start it.

   ~~~sh
   usher serve \
     --config usher.hcl
   # A comment.
   curl one |
   wc
   ~~~
2. In a second terminal:
   ~~~console
   $ usher status
   ready  ...

   ...
   $ true
   ~~~
`

// ticked is a text with a backquote for each tilde.
func ticked(text string) string { return strings.ReplaceAll(text, "~", "`") }

func TestParse(t *testing.T) {
	got := Parse("docs/page.md", ticked(page))
	want := []Block{
		{Page: "docs/page.md", Line: 6, Section: "Title", Lead: "Write the settings into `/etc/usher/usher.hcl`:", Lang: "hcl", Text: "usher {}\n"},
		{Page: "docs/page.md", Line: 14, Section: "First steps", Lead: "1. Start it.", Lang: "sh", Text: "usher serve \\\n  --config usher.hcl\n# A comment.\ncurl one |\nwc\n"},
		{Page: "docs/page.md", Line: 22, Section: "First steps", Lead: "2. In a second terminal:", Lang: "console", Text: "$ usher status\nready  ...\n\n...\n$ true\n"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	if file := got[0].file(); file != "/etc/usher/usher.hcl" {
		t.Errorf("the first block is the file %q", file)
	}
	if got[1].terminal() != "" || got[2].terminal() != "second terminal" {
		t.Errorf("the commands are for the terminals %q and %q", got[1].terminal(), got[2].terminal())
	}
}

func TestSteps(t *testing.T) {
	blocks := Parse("docs/page.md", ticked(page))
	for i, want := range [][]step{
		1: {{command: "usher serve \\\n  --config usher.hcl"}, {command: "curl one |\nwc"}},
		2: {{command: "usher status", shown: true, output: "ready  ...\n\n...\n"}, {command: "true", shown: true}},
	} {
		if want == nil {
			continue
		}
		got, err := blocks[i].steps()
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(step{})); err != nil || diff != "" {
			t.Errorf("block %d: %v (-want +got):\n%s", i, err, diff)
		}
	}
	if _, err := (Block{Lang: "console", Text: "no prompt\n"}).steps(); err == nil {
		t.Error("a console block without a command is none")
	}
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		shown, output string
		want          bool
	}{
		{"", "", true},
		{"", "text\n", false},
		{"text\n", "", false},
		{"a b\n", "a    b  \n\n", true},
		{"a b\n", "a c\n", false},
		{"a ... c\n", "a b1 b2 c\n", true},
		{"a ...\n", "a b\nc\n", false},
		{"a\n...\nc\n", "a\nb\nb\nc\n", true},
		{"a\n...\nc\n", "a\nc\n", true},
		{"a\n...\n", "a\nb", true},
		{"...\nb\n", "a\nb\nc\n", false},
		{"1.2\n", "1x2\n", false},
		{"(a)\n", "(a)\n", true},
	} {
		if got := matches(c.shown, c.output); got != c.want {
			t.Errorf("matches(%q, %q) is %v", c.shown, c.output, got)
		}
	}
}
