package main

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestPagesAreThoseOfTheNavigation makes a docs/ with each mistake.
func TestPagesAreThoseOfTheNavigation(t *testing.T) {
	for _, c := range []struct {
		what, navigation, want string
		files                  map[string]string
	}{
		{"right", "[index.md, a.md, ../SECURITY.md]", "", nil},
		{"missing in the navigation", "[index.md, a.md, ../SECURITY.md]", "docs/new.md is not in docs/navigation.yaml: add it to a group", map[string]string{"docs/new.md": "# New\n"}},
		{"missing in docs/", "[index.md, a.md, b.md]", "docs/b.md", nil},
		{"without a title", "[index.md, a.md]", "docs/a.md has to begin with its title: # Title", map[string]string{"docs/a.md": "text\n"}},
		{"twice", "[index.md, a.md, a.md]", "docs/a.md and docs/a.md would be the same page", nil},
		{"of the same name", "[index.md, a.md, security-policy.md, ../SECURITY.md]", "docs/security-policy.md and SECURITY.md would be the same page", map[string]string{"docs/security-policy.md": "# Security\n"}},
		{"without a home page", "[a.md]", "docs/index.md is not in docs/navigation.yaml", nil},
	} {
		t.Run(c.what, func(t *testing.T) {
			root := t.TempDir()
			files := map[string]string{
				"docs/index.md": "# Usher\n", "docs/a.md": "# A\n\ntext\n", "SECURITY.md": "# Security policy\n",
				"docs/navigation.yaml": "- group: Start\n  pages: " + c.navigation + "\n",
			}
			maps.Copy(files, c.files)
			for file, content := range files {
				if err := write(root+"/"+file, []byte(content)); err != nil {
					t.Fatal(err)
				}
			}
			groups, err := readNavigation(root + "/docs/navigation.yaml")
			if err != nil {
				t.Fatal(err)
			}
			pages, err := readPages(root, groups)
			switch {
			case c.want == "" && (err != nil || len(pages) != 3 || pages[1].title != "A" || pages[2].name != "security-policy"):
				t.Errorf("got %+v, %v", pages, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got the error %v, want %q", err, c.want)
			}
		})
	}
}

// TestTheHomePageHasTheNavigation wants the groups of docs/navigation.yaml, with their pages, in the list of all pages.
func TestTheHomePageHasTheNavigation(t *testing.T) {
	want, err := readNavigation("../../docs/navigation.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want[0].Pages = want[0].Pages[1:] // the home page itself
	text, err := os.ReadFile("../../docs/index.md")
	if err != nil {
		t.Fatal(err)
	}
	_, all, _ := strings.Cut(string(text), "## All pages\n")
	var got []group
	for _, paragraph := range regexp.MustCompile(`(?s)\*\*([^*]+)\*\*:\n(.*?)(?:\n\n|$)`).FindAllStringSubmatch(all, -1) {
		g := group{Group: paragraph[1]}
		for _, link := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(paragraph[2], -1) {
			g.Pages = append(g.Pages, link[1])
		}
		got = append(got, g)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/navigation.yaml and the list of docs/index.md differ (-navigation +index):\n%s", diff)
	}
}

// A Hugo that fails leaves the last valid site, and nothing else. The caller's settings of Hugo have no effect.
func TestTheLastValidSiteStays(t *testing.T) {
	t.Setenv("HUGO_BASEURL", "https://elsewhere.example/")
	tools, parent := t.TempDir(), t.TempDir()
	for _, file := range []string{"dist/es/index.js", "LICENSE.txt"} {
		if err := write(filepath.Join(tools, miniSearchPart, "package", file), nil); err != nil {
			t.Fatal(err)
		}
	}
	o := options{root: "../..", out: filepath.Join(parent, "site"), tools: tools}
	buildWith := func(script string) error {
		hugo := filepath.Join(tools, hugoPart, "hugo")
		if err := write(hugo, []byte("#!/bin/sh\nwhile [ \"$1\" != --destination ]; do shift; done\nmkdir \"$2\"\n"+script)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(hugo, 0o755); err != nil {
			t.Fatal(err)
		}
		return build(t.Context(), o)
	}
	want := func(content string) {
		t.Helper()
		page, err := os.ReadFile(filepath.Join(o.out, "index.html"))
		if entries, _ := os.ReadDir(parent); err != nil || string(page) != content || len(entries) != 1 {
			t.Errorf("the site says %q (%v), want %q; beside it are %v", page, err, content, entries)
		}
	}
	if err := buildWith("echo \"one $HUGO_BASEURL\" >\"$2/index.html\"\n"); err != nil {
		t.Fatal(err)
	}
	want("one \n")
	if err := buildWith("echo two >\"$2/index.html\"\necho refused >&2\nexit 1\n"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("the error is %v, want what hugo says", err)
	}
	want("one \n")
	if err := buildWith("echo three >\"$2/index.html\"\n"); err != nil {
		t.Fatal(err)
	}
	want("three\n")
}
