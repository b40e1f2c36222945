package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The changelog and the fragments of this repository.
func TestChangelogIsKept(t *testing.T) {
	root := filepath.Join("..", "..")
	c, err := readChangelog(root)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "CHANGELOG.md"))
	if err != nil {
		t.Fatal(err)
	}
	if c.String() != string(text) {
		t.Errorf("CHANGELOG.md has links or blank lines that make changelog would not write:\n%s", c)
	}
	if _, _, err := fragments(root); err != nil {
		t.Error(err)
	}
}

// sourceWith writes a changelog and fragments.
func sourceWith(t *testing.T, changelog string, changes map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "changes"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "CHANGELOG.md"), []byte(changelog), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, text := range changes {
		if err := os.WriteFile(filepath.Join(dir, "changes", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const released = "# Changelog\n\nAll versions.\n\n## [0.1.0] - 2026-11-30\n\n### Added\n\nUsher.\n\n" +
	"[0.1.0]: https://github.com/usherproxy/usher/releases/tag/v0.1.0\n"

func TestFragmentsBecomeASectionByGroup(t *testing.T) {
	dir := sourceWith(t, released, map[string]string{
		"README.md":   "# How to write a change\n",
		"commands.md": "### Fixed\n\n`usher status` ends.\n\n### Added\n\n```\n# usher new\n```\n",
		"log.md":      "A line of the log has another text.\n[Docs](../docs/support.md)\n",
		"port.md":     "### Fixed\n\nThe port closes.\n",
	})
	if err := fold(dir, "v0.2.0", "2026-12-24"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "CHANGELOG.md"))
	if err != nil {
		t.Fatal(err)
	}
	want := "# Changelog\n\nAll versions.\n\n## [0.2.0] - 2026-12-24\n\n" +
		"### Added\n\n```\n# usher new\n```\n\n" +
		"### Changed\n\nA line of the log has another text.\n[Docs](docs/support.md)\n\n" +
		"### Fixed\n\n`usher status` ends.\n\nThe port closes.\n\n" +
		"## [0.1.0] - 2026-11-30\n\n### Added\n\nUsher.\n\n" +
		"[0.2.0]: https://github.com/usherproxy/usher/releases/tag/v0.2.0\n" +
		"[0.1.0]: https://github.com/usherproxy/usher/releases/tag/v0.1.0\n"
	if string(got) != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "changes", "*")); len(left) != 1 || filepath.Base(left[0]) != "README.md" {
		t.Errorf("changes/ has %v, want README.md alone", left)
	}
	if text, err := notes(dir, "v0.1.0"); err != nil || text != "### Added\n\nUsher.\n" {
		t.Errorf("the notes of v0.1.0: %q, %v", text, err)
	}
}

func TestMistakesInTheChangelog(t *testing.T) {
	fragment := map[string]string{"a.md": "A change.\n"}
	for _, tc := range []struct {
		name, changelog, version string
		changes                  map[string]string
		want                     string
	}{
		{"no change", released, "v0.2.0", nil, "changes/ has nothing to release"},
		{"the same version", released, "v0.1.0", fragment, "0.1.0 (2026-11-30) comes after 0.1.0 (2026-12-24)"},
		{"an older version", released, "v0.0.9", fragment, "0.1.0 (2026-11-30) comes after 0.0.9 (2026-12-24)"},
		{"no version", released, "0.2.0", fragment, `version "0.2.0": use VERSION=v1.2.3`},
		{"a heading of a fragment", released, "v0.2.0", map[string]string{"a.md": "## Access logs\n"}, `a.md: "## Access logs" is no heading of a change; use one of ### Added`},
		{"another file", "# News\n", "v0.2.0", fragment, `it begins with "# Changelog"`},
		{"a heading of another form", "# Changelog\n\n## 0.1.0\n", "v0.2.0", fragment, `headings such as "## [1.2.3] - 2026-11-30"`},
		{"groups in another order", strings.Replace(released, "### Added", "### Fixed\n\nA.\n\n### Added", 1), "v0.2.0", fragment, `the heading "Added"`},
		{"an unknown group", strings.Replace(released, "### Added", "### News", 1), "v0.2.0", fragment, `the heading "News"`},
	} {
		dir := sourceWith(t, tc.changelog, tc.changes)
		if err := fold(dir, tc.version, "2026-12-24"); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
		if got, _ := os.ReadFile(filepath.Join(dir, "CHANGELOG.md")); string(got) != tc.changelog {
			t.Errorf("%s: CHANGELOG.md changed", tc.name)
		}
	}
	if _, err := notes(sourceWith(t, released, nil), "v0.2.0"); err == nil || !strings.Contains(err.Error(), "run make changelog VERSION=v0.2.0") {
		t.Errorf("notes of an unknown version: %v", err)
	}
}
