package statuspage

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/usherproxy/usher/internal/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server serves a page until the test ends. change changes the server before it starts.
func server(t *testing.T, state func() status.State, change ...func(*http.Server)) *httptest.Server {
	t.Helper()
	return serverOf(t, New(state), change...)
}

func serverOf(t *testing.T, p *Page, change ...func(*http.Server)) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	p.AddTo(mux)
	s := httptest.NewUnstartedServer(mux)
	for _, f := range change {
		f(s.Config)
	}
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		s.Client().CloseIdleConnections()
	})
	return s
}

// answer is what the server answers to a request.
type answer struct {
	code int
	http.Header
	body string
}

// get asks for a path; tag is for If-None-Match.
func get(t *testing.T, s *httptest.Server, path, tag string) answer {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("If-None-Match", tag)
	response, err := s.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(body)}
}

// stream is an open stream of changes.
type stream struct {
	*http.Response
	lines *bufio.Scanner
}

func open(t *testing.T, s *httptest.Server) *stream {
	t.Helper()
	return openBy(t, s.Client(), s)
}

func openBy(t *testing.T, client *http.Client, s *httptest.Server) *stream {
	t.Helper()
	response, err := client.Get(s.URL + eventsPath)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 16<<20)
	return &stream{response, lines}
}

// next returns the next message.
func (s *stream) next(t *testing.T) (m message) {
	t.Helper()
	for s.lines.Scan() {
		if data, ok := strings.CutPrefix(s.lines.Text(), "data: "); ok {
			if err := json.Unmarshal([]byte(data), &m); err != nil {
				t.Fatal(err)
			}
			return m
		}
	}
	t.Fatalf("the stream has ended: %v", s.lines.Err())
	return m
}

// TestPageHasOnlyItsOwnFiles compares what the page refers to with what is served, and what its policy allows.
func TestPageHasOnlyItsOwnFiles(t *testing.T) {
	s := server(t, incident)
	page := get(t, s, "/", "")
	html := page.body
	for name, want := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
			"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
		"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
		"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
	} {
		if got := page.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if found := regexp.MustCompile(`(?i)<script>|<style|\sstyle=|\son\w+=|https?://`).FindString(strings.ReplaceAll(html, "&lt;", "")); found != "" {
		t.Errorf("the page has %q", found)
	}
	files := regexp.MustCompile(`(?:src|href)="([^"#]+)"`).FindAllStringSubmatch(html, -1)
	if len(files) < 3 {
		t.Errorf("the page refers to %q", files)
	}
	for _, file := range files {
		wantFile(t, s, "/"+file[1])
	}
}

func wantFile(t *testing.T, s *httptest.Server, path string) {
	t.Helper()
	file := get(t, s, path, "")
	kind := map[string]string{".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}[path[strings.LastIndex(path, "."):]]
	if file.code != http.StatusOK || !strings.HasPrefix(file.Get("Content-Type"), kind) || kind == "" || file.body == "" {
		t.Errorf("%s: %d, %s, %d bytes", path, file.code, file.Get("Content-Type"), len(file.body))
	}
	for _, imported := range regexp.MustCompile(`from "\./([^"]+)"`).FindAllStringSubmatch(file.body, -1) {
		wantFile(t, s, status.Path+"/"+imported[1])
	}
	if again := get(t, s, path, file.Get("ETag")); again.code != http.StatusNotModified {
		t.Errorf("%s again: %d, want 304", path, again.code)
	}
}

func TestSummaryWithoutScripts(t *testing.T) {
	state := incident()
	state.Problems[0].What = injection
	html := get(t, server(t, func() status.State { return state }), "/", "").body
	if strings.Contains(html, "<img src=x") {
		t.Error("a name is an element of the page")
	}
	for _, want := range []string{"&lt;img src=x", "is ready", "<strong>outage</strong> (edge)", "<li>listener 8080, http: strict, set in /etc/usher/usher.hcl:3</li>", "3 Envoys are connected"} {
		if !strings.Contains(html, want) {
			t.Errorf("no %q in\n%s", want, html)
		}
	}
}

func TestEventsHaveWhatChanges(t *testing.T) {
	var state atomic.Pointer[status.State]
	set := func(s status.State) { state.Store(&s) }
	first := incident()
	set(first)
	events := open(t, server(t, func() status.State { return *state.Load() }))
	if kind := events.Header.Get("Content-Type"); kind != "text/event-stream" || events.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers: %v", events.Header)
	}
	all := events.next(t)
	keys := func(m message) (keys []string) {
		for key := range m.Parts {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		return keys
	}
	want := []string{
		"changes", "envoy/edge/edge-1/vm-1/10.0.0.2/1", "envoy/edge/edge-2/vm-2/10.0.0.3/1", "envoy/edge/edge-3/vm-3/10.0.0.4/1",
		"envoy/internal/internal-1/vm-1/10.0.0.2/1", "envoy/internal/internal-2/vm-2/10.0.0.3/1", "gateway/edge", "gateway/internal", "gateway/partners", "problems", "usher",
	}
	if got := keys(all); !all.All || !slices.Equal(got, want) {
		t.Errorf("the first message has %v %q", all.All, got)
	}
	next := first
	next.Time = first.Time.Add(time.Second) // alone, it is no change
	next.Envoys = slices.Clone(first.Envoys)
	next.Envoys[0] = with(next.Envoys[0], status.Type{Type: "route", Sync: status.Pending})
	next.Envoys = append(slices.Delete(next.Envoys, 3, 4), next.Envoys[0]) // of the first there are two streams
	set(next)
	m := events.next(t)
	if got := keys(m); m.All || !slices.Equal(got, []string{want[1], "envoy/edge/edge-1/vm-1/10.0.0.2/2"}) || !slices.Equal(m.Removed, []string{"envoy/internal/internal-1/vm-1/10.0.0.2/1"}) {
		t.Errorf("the second message has %v %q, without %q", m.All, got, m.Removed)
	}
}

// The admin server gives each request some seconds. A stream lasts longer.
func TestEventsOutliveTheDeadlinesOfTheServer(t *testing.T) {
	var number atomic.Int64
	state := func() status.State {
		s := incident()
		s.Usher.Version = time.Duration(number.Add(1)).String()
		return s
	}
	events := open(t, server(t, state, func(s *http.Server) {
		s.ReadTimeout, s.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
	}))
	for range 4 {
		events.next(t)
	}
}

// The time for a message is not one for the quiet after it: over HTTP/2, a deadline ends the stream even if nothing is written.
func TestEventsOutliveAQuietTime(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		t.Run(name, func(t *testing.T) {
			protocols := new(http.Protocols)
			protocols.SetHTTP1(!http2)
			protocols.SetUnencryptedHTTP2(http2)
			p := New(incident)
			p.times = streamTimes{write: 100 * time.Millisecond, heartbeat: 300 * time.Millisecond}
			s := serverOf(t, p, func(s *http.Server) { s.Protocols, s.WriteTimeout = protocols, 100*time.Millisecond })
			transport := &http.Transport{Protocols: protocols}
			t.Cleanup(transport.CloseIdleConnections)
			events := openBy(t, &http.Client{Transport: transport, Timeout: 10 * time.Second}, s)
			if events.Proto != name {
				t.Fatalf("the protocol is %s", events.Proto)
			}
			events.next(t)
			for range 2 { // heartbeats
				if m := events.next(t); m.All || len(m.Parts) > 0 {
					t.Errorf("without a change: %v", m)
				}
			}
		})
	}
}

// A page that does not read does not hold Usher's memory.
func TestEventsEndIfNothingReadsThem(t *testing.T) {
	w := &stuckWriter{ResponseRecorder: httptest.NewRecorder()}
	p := New(large)
	p.serveEvents(w, httptest.NewRequest(http.MethodGet, eventsPath, nil))
	if left := time.Until(w.deadline); left <= 0 || left > p.times.write {
		t.Errorf("a write may take until %v, want %v", w.deadline, p.times.write)
	}
	if len(p.streams) != 0 {
		t.Error("the stream still counts")
	}
}

// stuckWriter is a connection whose writes reach their deadline.
type stuckWriter struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (w *stuckWriter) SetReadDeadline(time.Time) error { return nil }

func (w *stuckWriter) SetWriteDeadline(at time.Time) error {
	w.deadline = at
	return nil
}

func (w *stuckWriter) Write([]byte) (int, error) { return 0, errors.New("i/o timeout") }

func TestStreamsAreLimited(t *testing.T) {
	var reads atomic.Int64
	s := server(t, func() status.State {
		reads.Add(1)
		return incident()
	})
	var streams []*stream
	for range maxStreams {
		streams = append(streams, open(t, s))
		streams[len(streams)-1].next(t)
	}
	if n := reads.Load(); n > maxStreams/2 {
		t.Errorf("the state was read %d times for %d pages at the same time", n, maxStreams)
	}
	refused := get(t, s, eventsPath, "")
	if refused.code != http.StatusServiceUnavailable || refused.Get("Retry-After") == "" || !strings.Contains(refused.body, "20 open status pages") {
		t.Errorf("one more: %d %q", refused.code, refused.body)
	}
	streams[0].Body.Close()
	for deadline := time.After(10 * time.Second); ; {
		response, err := s.Client().Get(s.URL + eventsPath)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return
		}
		select {
		case <-deadline:
			t.Fatal("a stream that has ended still counts")
		default:
		}
	}
}

// However many ask, the state is read some times a second.
func TestAStateIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		p := New(func() status.State {
			reads++
			return incident()
		})
		for range 100 {
			p.State()
			p.serve(httptest.NewRecorder(), nil)
			p.feed.divide()
		}
		if reads != 1 {
			t.Errorf("the state was read %d times at the same time, want once", reads)
		}
		time.Sleep(interval)
		if p.State(); reads != 2 {
			t.Errorf("the state was read %d times after an interval, want twice", reads)
		}
	})
}

func TestNoStateIsReadWithoutAPage(t *testing.T) {
	var reads atomic.Int64
	s := server(t, func() status.State {
		reads.Add(1)
		return incident()
	})
	wantFile(t, s, status.Path+"/page.js")
	if n := reads.Load(); n != 0 {
		t.Errorf("the state was read %d times", n)
	}
}

// The stream ends with the server; goleak sees that its handler ends, too.
func TestStreamsEndWithTheServer(t *testing.T) {
	s := server(t, incident)
	events := open(t, s)
	events.next(t)
	if err := s.Config.Close(); err != nil {
		t.Error(err)
	}
	for events.lines.Scan() { // it ends
	}
}
