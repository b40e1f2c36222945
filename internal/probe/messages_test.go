package probe

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/messages"
)

// findings are all of them.
var findings = []Finding{
	Off, Permissive, Strict, Untrusted, ClosesLater, AddedHeader, NothingListens, NoRoute, ClosesAll, NoTLS, Silent, NoDecision, Other,
}

// conclusions are conclusions that have different meanings.
func conclusions() []Conclusion {
	var all []Conclusion
	for _, f := range findings {
		all = append(all, Conclusion{Finding: f})
	}
	for _, f := range []Finding{Off, Permissive, Strict} {
		all = append(all,
			Conclusion{Finding: f, HTTP: true, Envoy: true, Versions: []string{"v1", "v2"}},
			Conclusion{Finding: f, HTTP: true, Envoy: true, Versions: []string{"v1"}, TLS: true, Mode: f.Mode()},
			Conclusion{Finding: f, HTTP: true, Envoy: true, Versions: []string{"v2"}, Trust: Trusted},
			Conclusion{Finding: f, HTTP: true, Envoy: true, Versions: []string{"v1"}, Trust: Ignored, Exceptions: []string{split}},
			Conclusion{Finding: f, HTTP: true, Server: "nginx/1.26.3", Versions: []string{"v1", "v2"}},
			Conclusion{Finding: f, HTTP: true},
			Conclusion{Finding: f, HTTP: true, ClosesHeaders: f == Off},
			Conclusion{Finding: f, SpeaksFirst: true, Versions: []string{"v1"}},
		)
	}
	return all
}

// TestMessages provokes every error and every conclusion.
func TestMessages(t *testing.T) {
	var lines []string
	for _, o := range []Options{
		{},
		{Timeout: 1},
		{Timeout: 1, Target: "gateway"},
		{Timeout: 1, Target: "2001:db8::1"},
		{Timeout: 1, Target: "http://gateway:8080"},
		{Timeout: 1, Target: "gateway:http"},
		{Timeout: 1, Target: "gateway:8080", TCP: true, Path: "/"},
		{Timeout: 1, Target: "gateway:8080", Host: "a b"},
		{Timeout: 1, Target: "gateway:8080", Path: "health"},
		{Timeout: 1, Target: "gateway:8080", Path: "/a b"},
		{Timeout: 1, Target: "gateway:8080", Path: "/%zz"},
		{Timeout: 1, Target: "gateway:8080", Method: "G T"},
		{Timeout: 1, Target: "gateway:8080", Lookup: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }},
	} {
		_, err := o.Run(t.Context())
		if err == nil {
			t.Fatalf("no error for %+v", o)
		}
		lines = append(lines, err.Error())
	}
	o := Options{Target: "gateway:8080", Version: "v1.2.3"}
	for _, c := range conclusions() {
		m := o.meaning(Result{
			Address: netip.MustParseAddrPort("198.51.100.20:8080"), Source: documentation4, Conclusion: c,
			Answers: []Answer{{Reaction: HTTP, Status: http.StatusNotFound, Server: "envoy"}},
		})
		for _, line := range slices.Concat(m.Notes, []string{m.Headline, m.Without, m.With, m.Remedy}) {
			if line != "" {
				lines = append(lines, line)
			}
		}
	}
	e := connection{options: &Options{Timeout: time.Second}}
	e.notConnected(os.ErrDeadlineExceeded)
	lines = append(lines, fakeError(t), e.answer.Detail)
	messages.Check(t, lines, "fmt.Errorf", "errors.New", "add", "Meaning")
}

// fakeError is what a broken HTTP response makes.
func fakeError(t *testing.T) string {
	t.Helper()
	r := run(t, options((&fakeListener{mode: Off, serve: brokenHTTP}).start(t)))
	if !strings.Contains(r.Answers[0].Detail, "is none") {
		t.Errorf("%+v, want that it is no HTTP response", r.Answers[0])
	}
	return r.Answers[0].Detail
}
