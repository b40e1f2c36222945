package main

import (
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/loadbalancer"
)

// A note of no provider, or about no annotation, would not be on the page, or wrong.
func TestNotesAreAboutProvidersAndTheirAnnotations(t *testing.T) {
	annotations := map[string]string{} // of each provider, as Markdown
	for _, p := range loadbalancer.Providers {
		for _, a := range p.Annotations {
			annotations[p.Name] += "- `" + a.Key + "`: "
		}
	}
	provider := ""
	for line := range strings.Lines(notes) {
		if name, ok := strings.CutPrefix(line, "# "); ok {
			provider = strings.TrimSpace(name)
			if annotations[provider] == "" {
				t.Errorf("the table has no provider %q", provider)
			}
		}
		if key, _, ok := strings.Cut(line, "`: "); ok && !strings.Contains(annotations[provider], key+"`: ") {
			t.Errorf("%s has no annotation %s`", provider, key)
		}
	}
}
