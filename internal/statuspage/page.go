// Package statuspage is the page on the admin port that shows what an Usher knows, and follows its changes.
//
//	status.State ──parts──> GET /status/events ──those that changed──> assets/page.js ──> the page
//
// The page has no other assets than those in this package, and its Content-Security-Policy allows no others. What it shows
// comes from Consul and from Envoys, and is only ever text.
package statuspage

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"html/template"
	"net/http"
	"time"

	"github.com/usherproxy/usher/internal/inflight"
	"github.com/usherproxy/usher/internal/status"
)

//go:embed assets
var assets embed.FS

var page = template.Must(template.ParseFS(assets, "assets/page.html"))

// policy allows the page its own files and its stream of changes. Scripts cannot turn text into elements.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// eventsPath has the changes as server-sent events.
const eventsPath = status.Path + "/events"

// maxStreams is how many pages may follow the changes at the same time, so that most of the connections of the admin port
// stay for probes and Prometheus.
const maxStreams = 20

// Page serves the page. Use New.
type Page struct {
	feed    feed
	streams inflight.Limit
	times   streamTimes
}

// New returns a page that shows the states that state returns. It calls state only while the page is open somewhere, some
// times a second, however many ask.
func New(state func() status.State) *Page {
	return &Page{
		feed: feed{read: state}, streams: make(inflight.Limit, maxStreams),
		times: streamTimes{write: 10 * time.Second, heartbeat: 15 * time.Second},
	}
}

// State returns the state that the page shows. The caller only reads it: all share it.
func (p *Page) State() status.State { return p.feed.state() }

// AddTo adds the page and what belongs to it.
func (p *Page) AddTo(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", p.serve)
	mux.HandleFunc("GET "+eventsPath, p.serveEvents)
	for _, name := range []string{"page.css", "page.js", "view.js", "picture.js", "dom.js", "icon.svg"} {
		mux.HandleFunc("GET "+status.Path+"/"+name, asset(name))
	}
}

// serve answers with the page. Browsers without JavaScript show a summary of the state.
func (p *Page) serve(w http.ResponseWriter, _ *http.Request) {
	var html bytes.Buffer
	content := struct {
		status.State
		Quiet int64 // after so many milliseconds without a message, the page takes its connection for dead
	}{p.feed.state(), 5 * p.times.heartbeat.Milliseconds() / 2}
	if err := page.ExecuteTemplate(&html, "page.html", content); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	header := w.Header()
	setHeaders(header)
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	_, _ = html.WriteTo(w)
}

func setHeaders(header http.Header) {
	header.Set("Content-Security-Policy", policy)
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Referrer-Policy", "no-referrer")
}

// asset returns a handler for a file. Browsers ask each time whether it has changed.
func asset(name string) http.HandlerFunc {
	content, err := assets.ReadFile("assets/" + name)
	if err != nil {
		panic(err) // the file is in the binary
	}
	sum := sha256.Sum256(content)
	tag := `"` + hex.EncodeToString(sum[:16]) + `"`
	return func(w http.ResponseWriter, r *http.Request) {
		setHeaders(w.Header())
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("ETag", tag)
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
	}
}
