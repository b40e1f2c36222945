//go:build e2e

package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/html"

	"github.com/usherproxy/usher/internal/testing/browser"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestSite builds the site of the pages as they are.
func TestSite(t *testing.T) {
	site := buildSite(t)
	t.Run("same bytes", func(t *testing.T) { sameBytes(t, site, buildSite(t)) })
	t.Run("links", func(t *testing.T) { everyLinkResolves(t, site) })
	t.Run("other hosts", func(t *testing.T) { nothingFromOtherHosts(t, site) })
	t.Run("menu", func(t *testing.T) { theMenuHasEveryPage(t, site) })
	t.Run("browser", func(t *testing.T) { inABrowser(t, site) })
}

func buildSite(t *testing.T) fs.FS {
	t.Helper()
	out := filepath.Join(t.TempDir(), "site")
	tools := filepath.Dir(filepath.Dir(testprocess.Tool(t, hugoPart, "hugo")))
	if err := build(t.Context(), options{root: "../..", out: out, tools: tools}); err != nil {
		t.Fatal(err)
	}
	return os.DirFS(out)
}

func sameBytes(t *testing.T, one, other fs.FS) {
	files, otherFiles := read(t, one), read(t, other)
	if !slices.Equal(slices.Sorted(maps.Keys(files)), slices.Sorted(maps.Keys(otherFiles))) {
		t.Error("two builds have different files")
	}
	for name, content := range files {
		if !bytes.Equal(content, otherFiles[name]) {
			t.Errorf("two builds have different bytes in %s", name)
		}
	}
}

// read returns the content of every file.
func read(t *testing.T, site fs.FS) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := fs.WalkDir(site, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files[name], err = fs.ReadFile(site, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// document is one page.
type document struct {
	links []link
	ids   map[string]bool
}

// link is a reference of a page: its element, and where it goes.
type link struct{ element, to string }

// documents returns the pages by their path: / or /settings/.
func documents(t *testing.T, site fs.FS) map[string]document {
	t.Helper()
	pages := map[string]document{}
	for name, content := range read(t, site) {
		if path.Ext(name) != ".html" {
			continue
		}
		root, err := html.Parse(bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		page := document{ids: map[string]bool{"": true}}
		for node := range root.Descendants() {
			page.add(t, name, node)
		}
		pages["/"+strings.TrimSuffix(name, "index.html")] = page
	}
	if len(pages) < 20 {
		t.Fatalf("found %d pages, want those of docs/", len(pages))
	}
	return pages
}

func (d *document) add(t *testing.T, name string, node *html.Node) {
	for _, attribute := range node.Attr {
		switch attribute.Key {
		case "href", "src":
			d.links = append(d.links, link{node.Data, attribute.Val})
		case "id":
			if d.ids[attribute.Val] {
				t.Errorf("%s has the id %q twice", name, attribute.Val)
			}
			d.ids[attribute.Val] = true
		case "style", "srcset", "poster", "action", "onclick", "onload":
			t.Errorf("%s: an element %s has the attribute %s, which this test does not follow", name, node.Data, attribute.Key)
		}
	}
}

// Every link, picture, style and script of every page is there, and every anchor.
func everyLinkResolves(t *testing.T, site fs.FS) {
	pages, files := documents(t, site), read(t, site)
	for from, page := range pages {
		for _, l := range page.links {
			to, err := url.Parse(l.to)
			if err != nil {
				t.Errorf("%s: %v", from, err)
				continue
			}
			if file, isOurs := strings.CutPrefix(l.to, "https://github.com/usherproxy/usher/blob/HEAD/"); isOurs {
				if _, err := os.Stat(filepath.Join("../..", strings.SplitN(file, "#", 2)[0])); err != nil {
					t.Errorf("%s: %v", from, err)
				}
			}
			if to.Host != "" {
				continue
			}
			target := (&url.URL{Path: from}).ResolveReference(to)
			if other, isPage := pages[target.Path]; isPage {
				if !other.ids[target.Fragment] {
					t.Errorf("%s: %s has no anchor #%s", from, target.Path, target.Fragment)
				}
			} else if files[strings.TrimPrefix(target.Path, "/")] == nil {
				t.Errorf("%s: there is no %s", from, target.Path)
			}
		}
	}
}

// reference is what a style, a script or a picture loads.
var reference = regexp.MustCompile(`(?:url\(|@import|import\(|fetch\(|(?:href|src)=)\s*["']?((?:https?:)?//[^"')]+)`)

// A page loads nothing from another host. Only links in the text go there.
func nothingFromOtherHosts(t *testing.T, site fs.FS) {
	for from, page := range documents(t, site) {
		for _, l := range page.links {
			if to, err := url.Parse(l.to); err == nil && to.Host != "" && l.element != "a" {
				t.Errorf("%s: the element %s loads %s", from, l.element, l.to)
			}
		}
	}
	for name, content := range read(t, site) {
		if ext := path.Ext(name); ext != ".css" && ext != ".js" && ext != ".svg" {
			continue
		}
		for _, found := range reference.FindAllSubmatch(content, -1) {
			t.Errorf("%s loads %s", name, found[1])
		}
	}
}

// Every page is in the menu of every other.
func theMenuHasEveryPage(t *testing.T, site fs.FS) {
	pages := documents(t, site)
	for from, page := range pages {
		linked := map[string]bool{}
		for _, l := range page.links {
			if to, err := url.Parse(l.to); err == nil && l.element == "a" {
				linked[(&url.URL{Path: from}).ResolveReference(to).Path] = true
			}
		}
		for other := range pages {
			if !linked[other] {
				t.Errorf("%s has no link to %s", from, other)
			}
		}
	}
}

// A real browser shows every page. A message on its console fails the test, as everything does that a page's
// Content-Security-Policy forbids.
func inABrowser(t *testing.T, site fs.FS) {
	var isBroken atomic.Bool // the server has no search
	files := http.FileServerFS(site)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isBroken.Load() && (r.URL.Path == "/search.json" || r.URL.Path == "/assets/minisearch.js") {
			http.Error(w, "broken", http.StatusServiceUnavailable)
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	wide := browser.View{Width: 1440, Height: 900}
	dark := browser.View{Width: 1440, Height: 900, Dark: true}
	phone := browser.View{Width: 360, Height: 780}
	b := browser.Start(t)
	tab := b.Open(t, server.URL, phone)
	for _, page := range slices.Sorted(maps.Keys(documents(t, site))) {
		tab.Go(t, server.URL+page)
		var overflows bool
		if tab.Eval(t, "document.documentElement.scrollWidth > innerWidth", &overflows); overflows {
			t.Errorf("%s is wider than a phone", page)
		}
		tab.Screenshot(t, "phone"+strings.ReplaceAll(page, "/", "-"))
	}
	tab.Look(t, wide)
	for _, page := range []string{"/", "/settings/", "/cutover/"} {
		tab.Go(t, server.URL+page)
		for name, view := range map[string]browser.View{"wide": wide, "dark": dark, "phone": phone} {
			tab.Look(t, view)
			for _, f := range tab.Findings(t) {
				t.Errorf("%s, %s: %v", page, name, f)
			}
			tab.Screenshot(t, name+strings.ReplaceAll(page, "/", "-"))
		}
		tab.Look(t, wide)
	}
	tab.Expect("the server responded with a status of 503")
	searches(t, tab, &isBroken)
	tab.Go(t, server.URL+"/quickstart-vm/")
	copiesCommands(t, tab)
	tab.Look(t, phone)
	tab.Go(t, server.URL)
	unfoldsTheMenu(t, tab)
}

// The search says that it could not be loaded, and loads once it can. It finds a setting by the beginning of its name, and
// leads to its heading.
func searches(t *testing.T, tab *browser.Tab, isBroken *atomic.Bool) {
	isBroken.Store(true)
	tab.Eval(t, `document.querySelector(".search input").focus(), 0`, nil)
	tab.Press(t, "x")
	tab.WaitFor(t, `document.querySelector("#search-results").textContent === "The search could not be loaded."`)
	isBroken.Store(false)
	tab.Eval(t, `document.querySelector(".search input").value = "", 0`, nil)
	tab.Press(t, "trusted_cid")
	tab.WaitFor(t, `document.querySelector("#search-results a")?.textContent.includes("trusted_cidrs")`)
	tab.Screenshot(t, "search")
	follow(t, tab, "#search-results a")
	tab.WaitFor(t, `location.hash && document.querySelector(decodeURIComponent(location.hash))`)
}

// The button of a console block copies its commands, without prompts and output, and says so for a while.
func copiesCommands(t *testing.T, tab *browser.Tab) {
	var copied, labels []string
	tab.Eval(t, `(async () => {
		const copied = [];
		Object.defineProperty(navigator, "clipboard", { value: { writeText: async (text) => copied.push(text) } });
		for (const code of document.querySelectorAll(".code:has([data-lang=console])")) code.querySelector("button").click();
		return copied;
	})()`, &copied)
	tab.Eval(t, `(async () => {
		const button = document.querySelector(".copy"), labels = [];
		const changes = new MutationObserver(() => labels.push(button.textContent));
		changes.observe(button, { childList: true });
		button.click();
		while (labels.at(-1) !== "Copy") await new Promise((done) => setTimeout(done, 50));
		return labels;
	})()`, &labels)
	if want := []string{"Copied", "Copy"}; !slices.Equal(labels, want) {
		t.Errorf("the button says %q after a click, want %q", labels, want)
	}
	if len(copied) == 0 || !strings.HasPrefix(copied[0], "systemctl is-active gateway\nsystemctl cat gateway ") {
		t.Errorf("the buttons copy %q, want the commands of the quickstart", copied)
	}
	for _, text := range copied {
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "$ ") || strings.HasPrefix(line, "...") || line == "active\n" {
				t.Errorf("a button copies the line %q, which is no command", line)
			}
		}
	}
}

// A phone has the menu folded up. It leads to another page.
func unfoldsTheMenu(t *testing.T, tab *browser.Tab) {
	const shown = `document.querySelector(".menu a[href$='glossary/']").checkVisibility({ contentVisibilityAuto: true })`
	tab.WaitFor(t, "!"+shown)
	tab.Eval(t, `document.querySelector(".menu summary").click(), 0`, nil)
	tab.WaitFor(t, shown)
	tab.Screenshot(t, "menu")
	follow(t, tab, ".menu a[href$='glossary/']")
	tab.WaitFor(t, `document.querySelector("h1").textContent === "Glossary" && !`+shown)
}

// follow goes where a link leads.
func follow(t *testing.T, tab *browser.Tab, link string) {
	var to string
	tab.Eval(t, fmt.Sprintf("document.querySelector(%q).href", link), &to)
	tab.Go(t, to)
}
