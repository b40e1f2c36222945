package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/testing/logbuffer"
)

// startDebug serves the admin port until the test ends, with time limits that are shorter than a profile takes.
func startDebug(t *testing.T, timeout time.Duration, prepare func(*admin)) (url string) {
	t.Helper()
	a, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &fakeChecker{})
	if err != nil {
		t.Fatal(err)
	}
	a.server.ReadTimeout, a.server.WriteTimeout = timeout, timeout
	prepare(a)
	runAdmin(t, a)
	return "http://" + a.address()
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return response.StatusCode, string(text)
}

// TestAProfileMayTakeLongerThanARequest takes profiles over more time than the server gives to requests and answers. The
// server must not end them early either.
func TestAProfileMayTakeLongerThanARequest(t *testing.T) {
	url := startDebug(t, time.Second, func(*admin) {})
	for _, path := range []string{"profile?seconds=2", "trace?seconds=2", "heap?seconds=2"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			if status, body := get(t, url+"/debug/pprof/"+path); status != http.StatusOK || body == "" {
				t.Errorf("%d: %s", status, body)
			}
			if took := time.Since(begin); took < 2*time.Second {
				t.Errorf("it took %v, want 2s", took)
			}
		})
	}
}

func TestTheCommandLineHasNoPassword(t *testing.T) {
	url := startDebug(t, time.Second, func(*admin) {})
	before := os.Args
	t.Cleanup(func() { os.Args = before })
	os.Args = []string{"usher", "serve", "--consul-http-addr", "http://admin:s3cret@127.0.0.1:8500"}
	want := "usher\x00serve\x00--consul-http-addr\x00http://[redacted]@127.0.0.1:8500"
	if _, text := get(t, url+"/debug/pprof/cmdline"); text != want {
		t.Errorf("got %q, want %q", text, want)
	}
}

func TestEveryPageOfPprof(t *testing.T) {
	url := startDebug(t, time.Second, func(*admin) {})
	for _, page := range []string{
		"", "allocs?debug=1", "block?debug=1", "cmdline", "goroutine?debug=2", "heap?debug=1", "mutex?debug=1", "symbol", "threadcreate?debug=1",
	} {
		if status, body := get(t, url+"/debug/pprof/"+page); status != http.StatusOK || body == "" {
			t.Errorf("%s: %d: %s", page, status, body)
		}
	}
}

// TestADebugPageMayTakeLongerThanOthers has a page that is written after the server's time for others.
func TestADebugPageMayTakeLongerThanOthers(t *testing.T) {
	const timeout = 100 * time.Millisecond
	url := startDebug(t, timeout, func(a *admin) {
		a.handleDebug("GET /debug/slow", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			<-time.After(2 * timeout)
			fmt.Fprint(w, strings.Repeat("x", 1<<20))
		}))
	})
	if status, body := get(t, url+"/debug/slow"); status != http.StatusOK || len(body) != 1<<20 {
		t.Errorf("%d, %d bytes", status, len(body))
	}
}

func TestOnlyLocalCallersGetDebugPages(t *testing.T) {
	a, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &fakeChecker{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	d := debugHandlers{plane: fakeStates{}, log: &recentLog{}}
	a.addDebug(d)
	for _, p := range append(append(debugPages(d), pprofPages...), debugPage{path: "/debug/"}) {
		answer := httptest.NewRecorder()
		a.mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, p.path, nil)) // from 192.0.2.1
		if answer.Code != http.StatusForbidden {
			t.Errorf("%s: %d, want %d", p.path, answer.Code, http.StatusForbidden)
		}
	}
}

// TestHalfAPageIsNoPage has a page that ends with an error after its first part.
func TestHalfAPageIsNoPage(t *testing.T) {
	url := startDebug(t, time.Second, func(a *admin) {
		a.handleDebug("GET /debug/half", redactedPage(func(*http.Request) (any, *pageError) {
			return lazyObject(func(yield func(string, any) bool) {
				_ = yield("whole", strings.Repeat("x", 1<<20)) && yield("broken", func() {}) // JSON has no functions
			}), nil
		}))
	})
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/debug/half", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err == nil {
		defer response.Body.Close()
		_, err = io.ReadAll(response.Body)
	}
	if err == nil {
		t.Error("the caller takes the half for the whole")
	}
}

// fakeStates are the states of a plane.
type fakeStates []controlplane.GatewayState

func (f fakeStates) States() []controlplane.GatewayState { return f }

func (f fakeStates) State(id gateway.ID) (controlplane.GatewayState, bool) {
	for _, s := range f {
		if s.ID == id {
			return s, true
		}
	}
	return controlplane.GatewayState{}, false
}

// secretFiles are a gateway with a secret in each kind of place, and what the pages below /debug must have in spite of that.
func secretFiles(t *testing.T) {
	t.Helper()
	files := gatewayFiles()
	headers := `services { request_headers { set { Authorization = "Bearer s3cret-1" X-Client = "harmless" } } name = "web"`
	files["gateways/edge.hcl"] = strings.Replace(files["gateways/edge.hcl"], `services { name = "web"`, headers, 1)
	files["usher.hcl"] = `usher {
  proxy_protocol { mode = "strict" }
  access_log { request_header = { name = "cookie" value = "s3cret-2" } sinks = [{ type = "stdout" }] }
} # s3cret-3
`
	newFiles(t, files)
}

// debugOf serves the pages of a gateway "edge" with two Envoys, which share all, and of one that nothing is known of.
func debugOf(t *testing.T) (url string) {
	t.Helper()
	secretFiles(t)
	o := viewOptions{id: gateway.ID{Name: "edge"}, timeout: 10 * time.Second}
	o.serve.configDir, o.serve.configFile, o.serve.balancerGrace = "gateways", "usher.hcl", time.Minute
	o.mode = "off"
	v, err := o.view(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	set := controlplane.SetState{ServiceID: "edge-1", Envoy: gateway.EnvoyVersion{Major: 1, Minor: 36}, Set: v.instance.Set}
	set.Connected = []netip.Addr{netip.MustParseAddr("192.0.2.7"), {}}
	other := set
	other.ServiceID, other.Connected = "edge-2", nil
	recent := &recentLog{}
	fmt.Fprintln(recent, "level=INFO msg=serving")
	return startDebug(t, 10*time.Second, func(a *admin) {
		a.addDebug(debugHandlers{
			plane: fakeStates{
				{ID: v.snapshot.ID, Snapshot: v.snapshot, Sets: []controlplane.SetState{set, other}},
				{ID: gateway.ID{Name: "new", Namespace: "team"}},
			},
			log: recent,
			options: serveOptions{
				configFile: "usher.hcl", configDir: "gateways",
				flags: map[string]flagValue{
					"consul-http-addr":             {"http://admin:s3cret-4@127.0.0.1:8500", true},
					"authorization-stale-if-error": {"24h0m0s", false},
				},
			},
		})
	})
}

func TestDebugPages(t *testing.T) {
	t.Setenv("CONSUL_HTTP_TOKEN", "s3cret-5")
	t.Setenv("CONSUL_HTTP_AUTH", "admin:s3cret-6")
	t.Setenv("CONSUL_NAMESPACE", "team")
	t.Setenv("CONSUL_HTTP_TOKEN_FILE", "/run/token")
	t.Setenv("USHER_SOMETHING", "s3cret-7")
	t.Setenv("HOME_OF_ANOTHER", "s3cret-8")
	t.Setenv("HOME_OF_ANOTHER_WITHOUT_A_VALUE", "")
	url := debugOf(t)
	for _, tc := range []struct {
		page   string
		status int
		want   []string
	}{
		{"", 200, []string{"/debug/snapshot?gateway=NAME", "/debug/pprof/"}},
		{"none", 404, nil},
		{"gateways", 200, []string{
			`{"envoys":2,"gateway":"edge","has_snapshot":true,"instances":1,"listeners":1}`,
			`{"envoys":0,"gateway":"default/team/new","has_snapshot":false,"instances":0,"listeners":0}`,
		}},
		{"snapshot?gateway=edge", 200, []string{
			`"Authorization":"[redacted]"`, `"X-Client":"harmless"`, `"RequestHeader":{"Name":"cookie","Value":"[redacted]"}`,
			`"Mode":"strict"`, `"chains":`, `"endpoints":`, `"10.1.0.7"`,
		}},
		{"snapshot?gateway=default/team/new", 404, []string{`nothing is known of the gateway "default/team/new" yet`}},
		{"snapshot?gateway=egde", 404, []string{`does not watch a gateway "egde" (did you mean "edge"?)`}},
		{"snapshot", 400, []string{`gateway="": add ?gateway= with the NAME of a gateway`}},
		{"snapshot?gateway=a/b", 400, []string{`gateway="a/b"`}},
		{"resources?gateway=edge", 200, []string{
			`"service_id":"edge-1"`, `"release":"1.36.0"`, `"connected":["192.0.2.7","unix socket"]`, `"name":"http:0.0.0.0:8080"`,
			`"key":"Authorization","value":"[redacted]"`, `"held_back":[]`, `"listeners":{"same_as":"edge-1"}`,
		}},
		{"resources?gateway=edge&envoy=edge-2", 200, []string{`"service_id":"edge-2"`, `"connected":[]`, `"name":"http:0.0.0.0:8080"`}},
		{"resources?gateway=edge&envoy=egde-2", 404, []string{`with the service ID "egde-2" has got anything (did you mean "edge-2"?)`}},
		{"process", 200, []string{
			`"consul-http-addr":{"is_set":true,"value":"http://[redacted]@127.0.0.1:8500"}`, `"goVersion":"go`,
			`"authorization-stale-if-error":{"is_set":false,"value":"24h0m0s"}`,
			`"CONSUL_HTTP_TOKEN":"[redacted]"`, `"CONSUL_HTTP_AUTH":"[redacted]"`, `"USHER_SOMETHING":"[redacted]"`,
			`"CONSUL_NAMESPACE":"team"`, `"CONSUL_HTTP_TOKEN_FILE":"/run/token"`,
		}},
		{"config", 200, []string{`"config":"usher.hcl"`, `"mode":"strict"`, `"name":"cookie","value":"[redacted]"`, `"config_dir":"gateways"`, `"name":"edge.hcl"`}},
		{"log", 200, []string{"level=INFO msg=serving\n"}},
	} {
		status, text := get(t, url+"/debug/"+tc.page)
		if status != tc.status {
			t.Errorf("%s: %d, want %d: %s", tc.page, status, tc.status, text)
		}
		for _, want := range tc.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s has no %s:\n%s", tc.page, want, text)
			}
		}
		if strings.Contains(text, "s3cret") || strings.Contains(text, "HOME_OF_ANOTHER") {
			t.Errorf("%s has a secret:\n%s", tc.page, text)
		}
		if tc.status == 200 && (text[0] == '{' || text[0] == '[') && !json.Valid([]byte(text)) {
			t.Errorf("%s is no JSON:\n%s", tc.page, text)
		}
	}
}

// TestABrokenConfigFileIsNotShown has a file that cannot be read, so that Usher does not know what in it is secret.
func TestABrokenConfigFileIsNotShown(t *testing.T) {
	url := debugOf(t)
	if err := os.WriteFile("usher.hcl", []byte("usher {\n  token = s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	status, text := get(t, url+"/debug/config")
	if status != 200 || strings.Contains(text, "s3cret") || !strings.Contains(text, `"content":{"error":"the file cannot be read`) {
		t.Errorf("%d: %s", status, text)
	}
}

func TestTheLastLinesOfTheLogAreKept(t *testing.T) {
	var out logbuffer.Buffer
	log, recent, flush, err := serveOptions{logOut: &out, logFormat: "json", logLevel: "info"}.logger(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("left out")
	log.Info("serving")
	flush()
	if all := recent.all(); len(all) != 1 || string(all[0]) != out.String() || !strings.Contains(out.String(), `"msg":"serving"`) {
		t.Errorf("%q is kept, and the log is %q", all, out.String())
	}
}

func TestTheLogIsKeptWithinItsLimits(t *testing.T) {
	for name, tc := range map[string]struct{ line, lines, size int }{
		"many lines": {10, maxRecentLines, 10 * maxRecentLines},
		"long lines": {maxRecentLine, maxRecentSize / maxRecentLine, maxRecentSize},
	} {
		var l recentLog
		for i := range 3 * maxRecentLines {
			fmt.Fprintf(&l, "%0*d\n", tc.line-1, i)
		}
		all := l.all()
		size := 0
		for _, line := range all {
			size += len(line)
		}
		if len(all) != tc.lines || size != tc.size || l.size != tc.size {
			t.Errorf("%s: %d lines, %d bytes (%d), want %d and %d", name, len(all), size, l.size, tc.lines, tc.size)
		}
		if last := strings.TrimLeft(string(all[len(all)-1]), "0"); last != fmt.Sprintln(3*maxRecentLines-1) {
			t.Errorf("%s: the last line is %s", name, last)
		}
	}
	var l recentLog
	fmt.Fprintln(&l, strings.Repeat("x", 2*maxRecentLine))
	if got := string(l.all()[0]); got != strings.Repeat("x", maxRecentLine)+" (cut)\n" {
		t.Errorf("a line has %d bytes", len(got))
	}
}
