//go:build e2e

package statuspage

import (
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/status"
	"github.com/usherproxy/usher/internal/testing/browser"
)

// usher serves the page with a state that a test replaces.
type usher struct {
	server *httptest.Server
	url    string

	mu    sync.Mutex
	state status.State
}

func startUsher(t *testing.T, s status.State) *usher {
	t.Helper()
	u := &usher{state: s}
	u.server = server(t, u.read)
	u.url = u.server.URL + "/"
	return u
}

func (u *usher) read() status.State {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.state
}

func (u *usher) set(s status.State) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.state = s
}

var (
	wide      = browser.View{Width: 1440, Height: 900}
	dark      = browser.View{Width: 1440, Height: 900, Dark: true}
	narrow    = browser.View{Width: 360, Height: 780}
	noScripts = browser.View{Width: 1000, Height: 800, NoScript: true}
)

// shown is true as soon as the page has shown a state.
const shown = `performance.getEntriesByName("render").length > 0`

// Keys of a keyboard.
const (
	tabKey = "\t"
	enter  = "\r"
	escape = "\u001b"
)

// show opens the page with a state.
func show(t *testing.T, b *browser.Browser, s status.State, v browser.View) (*usher, *browser.Tab) {
	t.Helper()
	u := startUsher(t, s)
	tab := b.Open(t, u.url, v)
	tab.WaitFor(t, shown)
	return u, tab
}

func wantText(t *testing.T, tab *browser.Tab, selector, want string) {
	t.Helper()
	var text string
	tab.Eval(t, fmt.Sprintf("document.querySelector(%q)?.textContent ?? 'nothing'", selector), &text)
	if !strings.Contains(text, want) {
		t.Errorf("%s is %q, want %q", selector, text, want)
	}
}

// TestPageInABrowser opens the page in a real browser. A message on the browser's console fails it.
func TestPageInABrowser(t *testing.T) {
	b := browser.Start(t)
	for name, test := range map[string]func(*testing.T, *browser.Browser){
		"accessible": accessible, "names are text": namesAreText, "live": live, "keyboard": keyboard, "picture": drawsThePicture,
		"large": isFast, "without scripts": withoutScripts, "reconnects": reconnects, "silence": noticesSilence,
	} {
		t.Run(name, func(t *testing.T) { test(t, b) })
	}
}

// axe-core finds nothing, in light and dark, wide and narrow.
func accessible(t *testing.T, b *browser.Browser) {
	_, tab := show(t, b, incident(), wide)
	for name, view := range map[string]browser.View{"light": wide, "dark": dark, "narrow": narrow} {
		tab.Look(t, view)
		for _, f := range tab.Findings(t) {
			t.Errorf("%s: %v", name, f)
		}
		var overflows bool
		if tab.Eval(t, "document.documentElement.scrollWidth > innerWidth", &overflows); overflows {
			t.Errorf("%s: the page is wider than the window", name)
		}
		tab.Screenshot(t, name)
	}
}

// What comes from Consul and from Envoys is never markup.
func namesAreText(t *testing.T, b *browser.Browser) {
	s := incident()
	s.Usher.Warnings, s.Usher.Reason = []string{injection}, injection
	s.Source.Answers, s.Source.Error = false, injection
	for i := range s.Problems {
		s.Problems[i].Where, s.Problems[i].What = injection, injection
	}
	s.Changes[0].Resources[0].Names[0] = injection
	g := &s.Gateways[0]
	g.Name = injection
	for i := range g.Listeners {
		l := &g.Listeners[i]
		l.Services, l.Reason, l.Place = []status.Service{{Name: injection, Hosts: []string{injection}}}, injection, injection
		l.Settings = []status.Setting{{Setting: "proxy_protocol.trusted_cidrs", Value: injection, Place: injection}}
	}
	for i := range s.Envoys[:3] {
		e := &s.Envoys[i]
		e.Gateway, e.ServiceID, e.Node, e.Address, e.Release = injection, injection, injection, injection, injection
		e.Types[0].Sync, e.Types[0].Error, e.Types[0].Refused = status.Refused, injection, []string{injection}
	}
	_, tab := show(t, b, s, wide)
	tab.Eval(t, `location.hash = "#/" + encodeURIComponent("`+strings.ReplaceAll(injection, `"`, `\"`)+`")`, nil)
	for _, section := range []string{"#problems", "#gateways", "#gateway .services", "#gateway .envoys", "#gateway .picture", "#changes", "#summary"} {
		tab.WaitFor(t, fmt.Sprintf("document.querySelector(%q)?.textContent.includes('<img src=x')", section))
	}
	var images int
	if tab.Eval(t, `document.querySelectorAll("main img").length`, &images); images > 0 {
		t.Error("a name has become an element")
	}
	var title string
	if tab.Eval(t, "document.title", &title); title == "injected" {
		t.Error("a name has become a script")
	}
}

// A change is there within a second, and leaves alone what a user does meanwhile.
func live(t *testing.T, b *browser.Browser) {
	u, tab := show(t, b, incident(), wide)
	tab.Eval(t, `document.querySelector("#gateways a[href='#/internal']").focus(), document.querySelector(".notices").open = true, 0`, nil)
	s := u.read()
	s.Problems = slices.Concat([]status.Problem{{Gateway: "internal", Severity: problem.Outage, Where: "gateway internal: listener 8080", What: "it has just been held back"}}, s.Problems)
	s.Gateways = append([]status.Gateway{{Name: "another", Listeners: []status.Listener{}}}, s.Gateways...)
	begin := time.Now()
	u.set(s)
	tab.WaitFor(t, `document.querySelector("#problems").textContent.includes("it has just been held back")`)
	took := time.Since(begin)
	t.Logf("a change was on the page after %v", took.Round(time.Millisecond))
	if took > time.Second {
		t.Errorf("a change was on the page after %v, want a second", took)
	}
	wantText(t, tab, "title", "(3) Usher")
	wantText(t, tab, ":focus", "internal")
	tab.WaitFor(t, `document.querySelector(".notices").open`)
}

// Everything works with the keyboard alone.
func keyboard(t *testing.T, b *browser.Browser) {
	_, tab := show(t, b, incident(), wide)
	wantText(t, tab, "#gateway h2", "edge")
	filterBy(t, tab, "internal")
	tab.WaitFor(t, `document.querySelectorAll("#gateways li").length === 1`)
	tab.Press(t, escape)
	tab.WaitFor(t, `document.querySelectorAll("#gateways li").length === 3`)

	press := func(until string) { // Tab until the focus is there
		t.Helper()
		for range 60 {
			var is bool
			if tab.Eval(t, fmt.Sprintf("document.activeElement.matches(%q)", until), &is); is {
				var outline string
				if tab.Eval(t, "getComputedStyle(document.activeElement).outlineStyle", &outline); outline == "none" {
					t.Errorf("the focus on %s cannot be seen", until)
				}
				return
			}
			tab.Press(t, tabKey)
		}
		t.Fatalf("Tab does not lead to %s", until)
	}
	press(`#gateways a[href="#/internal"]`)
	tab.Press(t, enter)
	tab.WaitFor(t, `document.querySelector("#gateway h2").textContent.startsWith("internal")`)
	tab.Eval(t, "history.back()", nil)
	tab.WaitFor(t, `document.querySelector("#gateway h2").textContent.startsWith("edge")`)
	press(`#gateway a[href="#/edge/8443"]`)
	tab.Press(t, enter)
	tab.WaitFor(t, `document.querySelector("[aria-pressed=true]").textContent === "permissive, in force"`)
	press(`[data-action=mode][data-value=strict]`)
	tab.Press(t, enter)
	press(`[data-action=header][data-value=no]`)
	tab.Press(t, " ")
	tab.WaitFor(t, `document.querySelector(".outcome").textContent.startsWith("Envoy closes the connection")`)
}

// filterBy types into the filter. Chromium's protocol sends the character of a key even if the page has handled the key, which
// a keyboard does not.
func filterBy(t *testing.T, tab *browser.Tab, text string) {
	t.Helper()
	tab.Press(t, "/")
	tab.WaitFor(t, `document.activeElement.id === "filter"`)
	tab.Eval(t, `document.querySelector("#filter").value = ""`, nil)
	tab.Press(t, text)
}

// drawsThePicture compares what the picture says with the table in docs/client-address.md.
func drawsThePicture(t *testing.T, b *browser.Browser) {
	_, tab := show(t, b, incident(), wide)
	const none, header = "no", "yes"
	for _, c := range []struct {
		listener, mode, header string
		gateway, service       string
		outcome                string
	}{
		{"8080", "off", none, "connection from 10.0.0.5access log 10.0.0.5", "gets no X-Forwarded-For", "warn"},
		{"8080", "off", header, "connection from 10.0.0.5then it answers 400", "gets nothing", "bad"},
		{"8080", "permissive", none, "connection from 10.0.0.5access log 10.0.0.5", "gets X-Forwarded-For: 10.0.0.5", "warn"},
		{"8080", "permissive", header, "connection from 10.0.0.5access log 203.0.113.7", "gets X-Forwarded-For: 203.0.113.7", "good"},
		{"8080", "strict", none, "connection from 10.0.0.5then it closes it", "gets nothing", "bad"},
		{"8080", "strict", header, "connection from 10.0.0.5access log 203.0.113.7", "gets X-Forwarded-For: 203.0.113.7", "good"},
		{"9000", "off", header, "connection from 10.0.0.5access log 10.0.0.5", "gets the PROXY header, as data", "bad"},
		{"9000", "strict", header, "connection from 10.0.0.5access log 203.0.113.7", "gets no address of a client", "good"},
	} {
		tab.Eval(t, fmt.Sprintf(`location.hash = "#/edge/%s"`, c.listener), nil)
		tab.WaitFor(t, fmt.Sprintf(`document.querySelector(".hop.gateway").textContent.includes(":%s")`, c.listener))
		tab.Eval(t, fmt.Sprintf(`for (const [name, value] of [["mode", %q], ["header", %q]]) document.querySelector("[data-action=" + name + "][data-value=" + value + "]").click()`, c.mode, c.header), nil)
		tab.WaitFor(t, fmt.Sprintf(`[["mode", %q], ["header", %q]].every(([name, value]) => document.querySelector("[data-action=" + name + "][aria-pressed=true]").dataset.value === value)`, c.mode, c.header))
		wantText(t, tab, ".hop.gateway", c.gateway)
		wantText(t, tab, ".hop.service", c.service)
		wantText(t, tab, ".outcome."+c.outcome, ".")
	}
}

// plainRender shows a copy of what the page shows, which is the least that a browser can do. It returns the median of the
// times in ms.
const plainRender = `(() => {
	const times = [];
	for (let i = 0; i < 5; i++) {
		const begin = performance.now(), copy = document.createElement("div");
		copy.append(...[...document.body.children].map((child) => child.cloneNode(true)));
		document.body.append(copy);
		copy.getBoundingClientRect();
		times.push(performance.now() - begin);
		copy.remove();
	}
	return times.sort((a, b) => a - b)[2];
})()`

// isFast shows 1,000 services and 500 Envoys. The times are compared with what the same browser takes at the same time to
// show all of them without any script of the page.
func isFast(t *testing.T, b *browser.Browser) {
	u, tab := show(t, b, large(), wide)
	type rendering struct {
		what string
		took float64 // in ms
		most float64 // as a multiple of plainRender
	}
	var all []rendering
	rendered := func(what string, most float64) {
		t.Helper()
		r := rendering{what: what, most: most}
		tab.Eval(t, `performance.getEntriesByName("render")[0].duration`, &r.took)
		all = append(all, r)
	}
	rendered("the first time", 2)
	tab.Screenshot(t, "large")
	var rows int
	if tab.Eval(t, `document.querySelectorAll(".envoys tbody tr").length`, &rows); rows != 25 {
		t.Errorf("%d Envoys are shown, want the first 25", rows)
	}
	wantText(t, tab, ".envoys tbody tr", "edge-321") // the one that is behind

	tab.Eval(t, `document.querySelector("[data-value=envoys]").click()`, nil)
	tab.Eval(t, `document.querySelector("[data-value=services]").click()`, nil)
	tab.WaitFor(t, `document.querySelectorAll(".envoys tbody tr").length === 500 && document.querySelectorAll(".services li").length === 1000`)
	rendered("everything", 4)
	var plain float64
	tab.Eval(t, plainRender, &plain)

	s := u.read()
	s.Envoys = slices.Clone(s.Envoys)
	for i := range s.Envoys { // each of them has got something
		s.Envoys[i] = with(s.Envoys[i], status.Type{Type: "endpoint", Sync: status.Synced, Since: now, Version: "7d20", Resources: 1001})
	}
	begin := time.Now()
	u.set(s)
	tab.WaitFor(t, `document.querySelector("#summary").textContent.includes("500 synced") && [...document.querySelectorAll(".envoys tbody tr")].every((row) => row.textContent.includes("1,001"))`)
	t.Logf("a change of all 500 Envoys was on the page after %v", time.Since(begin).Round(time.Millisecond))
	rendered("a change of everything", 4)

	filterBy(t, tab, "service-0999")
	tab.WaitFor(t, `document.querySelectorAll(".services li").length === 1`)
	rendered("the filter", 1)
	for _, r := range all {
		t.Logf("%s: rendered in %.1f ms, %.1f × a plain page", r.what, r.took, r.took/plain)
		if r.took > r.most*plain {
			t.Errorf("%s: rendered in %.1f × a plain page, want at most %v", r.what, r.took/plain, r.most)
		}
	}
}

// withoutScripts has a summary.
func withoutScripts(t *testing.T, b *browser.Browser) {
	tab := b.Open(t, startUsher(t, incident()).url, noScripts)
	var text string
	tab.Eval(t, "document.body.innerText", &text)
	for _, want := range []string{"outage (edge)", "listener 8080, http: strict"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	tab.Screenshot(t, "without-scripts")
}

// reconnects is for an Usher that restarts.
func reconnects(t *testing.T, b *browser.Browser) {
	u, tab := show(t, b, incident(), wide)
	wantText(t, tab, "#live", "live")
	tab.Expect("net::ERR_")
	u.server.CloseClientConnections()
	tab.WaitFor(t, `document.querySelector("#live").textContent.startsWith("not connected")`)
	wantText(t, tab, "#gateway h2", "edge") // the last state stays
	s := u.read()
	s.Problems = []status.Problem{}
	u.set(s)
	tab.WaitFor(t, `document.querySelector("#live").textContent === "live" && document.title === "Usher"`)
}

// noticesSilence is for a connection that is dead without an error. The address of the page is damaged, too.
func noticesSilence(t *testing.T, b *browser.Browser) {
	u := &usher{state: incident()}
	p := New(u.read)
	p.times.heartbeat = 100 * time.Millisecond
	u.server = serverOf(t, p)
	tab := b.Open(t, u.server.URL+"/#/%", wide)
	tab.WaitFor(t, shown)
	wantText(t, tab, "#gateway h2", "edge")
	u.mu.Lock()
	resume := sync.OnceFunc(u.mu.Unlock)
	defer resume() // if the test fails: the server ends with its requests
	tab.WaitFor(t, `document.querySelector("#live").textContent.startsWith("not connected")`)
	resume()
	tab.WaitFor(t, `document.querySelector("#live").textContent === "live"`)
}
