package configfile

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/settings"
)

var (
	hclBlock  = regexp.MustCompile("(?s)```hcl\n(.*?)```")
	inlineHCL = regexp.MustCompile("`([a-z_]+) = ([^`]+)`")
)

// TestSettingsInDocumentsAreRead reads every setting that the documents show, whole files and single keys, as an
// operator would copy them.
func TestSettingsInDocumentsAreRead(t *testing.T) {
	groups := map[string]string{} // of keys
	for _, group := range settings.Groups {
		for _, s := range group.Settings {
			groups[s.Key] = group.Key
		}
	}
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range hclBlock.FindAllStringSubmatch(string(text), -1) {
			if strings.HasPrefix(found[1], "usher") || strings.HasPrefix(found[1], "gateway") {
				wantRead(t, page, found[1])
				read++
			}
		}
		for _, found := range inlineHCL.FindAllStringSubmatch(string(text), -1) {
			if group := groups[found[1]]; group != "" {
				wantRead(t, page, fmt.Sprintf("usher {\n%s {\n%s = %s\n}\n}\n", group, found[1], found[2]))
				read++
			}
		}
	}
	if read == 0 {
		t.Error("the documents have no settings")
	}
}

func wantRead(t *testing.T, page, text string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "usher.hcl")
	write(t, path, text)
	if _, err := Open(path, slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("%s has settings that are refused: %v\n%s", page, err, text)
	}
}
