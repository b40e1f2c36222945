package configfile

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/usherproxy/usher/internal/settings"
)

// examples are the files in the documents, and files that contain each setting.
func examples(t testing.TB) []string {
	t.Helper()
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	out := []string{strict, `{"gateway": {"edge": {"usher": {"proxy_protocol": {"mode": "strict", "trusted_cidrs": ["10.0.0.0/8"]}}}}}`}
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range hclBlock.FindAllStringSubmatch(string(text), -1) {
			out = append(out, found[1])
		}
	}
	return out
}

// readAfterGood reads a text after a good one, as Usher does when a watched file changes. It checks that each
// problem is one line, and that the last valid content stays if the file cannot be understood.
func readAfterGood(t *testing.T, text string) {
	t.Helper()
	f := &File{path: "usher.hcl", log: slog.New(slog.DiscardHandler)}
	f.setText([]byte(strict))
	good := f.content
	_, problems := parse(f.path, []byte(text))
	f.setText([]byte(text))
	for _, p := range f.content.Problems {
		if !atLine.MatchString(p.Where) || strings.ContainsFunc(p.String(), unicode.IsControl) {
			t.Errorf("problem %q", p)
		}
	}
	if len(problems) > 0 && !reflect.DeepEqual(f.content, settings.File{All: good.All, Gateways: good.Gateways, Problems: problems}) {
		t.Errorf("the last valid content did not stay: %+v", f.content)
	}
	if l, kept := f.content.Gateways["edge"]; kept && l.NeverValid {
		t.Errorf("the last valid settings did not stay: %+v", f.content)
	}
}

var atLine = regexp.MustCompile(`^usher\.hcl(:[1-9]\d*)?(: |$)`)

func TestAFileThatIsCutOffAnywhereKeepsTheLastValid(t *testing.T) {
	for _, text := range examples(t) {
		for i := range text {
			readAfterGood(t, text[:i])
		}
	}
}

// FuzzFile checks that no text of the file makes Usher panic, or lose the last valid content.
func FuzzFile(f *testing.F) {
	for _, text := range examples(f) {
		f.Add(text)
	}
	for _, text := range []string{
		`usher { a = "\400" }`, `gateway "\700" {}`, `{"usher": "\u12`, "usher = <<E\nx\nE\n", "usher { listeners { \"80\" { proxy_protocol { mode = 1 } } } }", "gateway a b {}", "gateway \"a\" = 1",
		`usher { access_log { format { json { a = "%REQ(A)%" } } sinks { file { path = "/x" } } } }`, `{"usher": [], "gateway": [{"a": {}}, {"b": null}]}`, `gateway "edge" { a = 1, b = 2 }`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { readAfterGood(t, text) })
}
