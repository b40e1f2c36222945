package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/probe"
)

// probeReport is a report about addresses with these findings.
func probeReport(findings ...probe.Finding) *probe.Report {
	r := &probe.Report{Target: "gateway:8080"}
	for _, f := range findings {
		r.Results = append(r.Results, probe.Result{
			Conclusion: probe.Conclusion{Finding: f, Mode: f.Mode()}, Meaning: probe.Meaning{Headline: "It is " + string(f) + "."},
		})
	}
	return r
}

// probeErrors returns the errors of usher probe after a probe.
func probeErrors() []error {
	return []error{
		(&probeOptions{expect: "strict"}).compare(probeReport(probe.Off)),
		(&probeOptions{}).compare(probeReport(probe.NothingListens)),
		(&probeOptions{}).compare(probeReport(probe.Off, probe.Strict)),
	}
}

func TestProbeExitStatus(t *testing.T) {
	for _, tc := range []struct {
		name     string
		expect   string
		findings []probe.Finding
		want     int
	}{
		{"a mode", "", []probe.Finding{probe.Off}, 0},
		{"the expected mode", "off", []probe.Finding{probe.Off}, 0},
		{"strict for others", "strict", []probe.Finding{probe.Untrusted}, 0},
		{"another mode", "strict", []probe.Finding{probe.Permissive}, 2},
		{"nothing listens", "", []probe.Finding{probe.NothingListens}, 1},
		{"nothing listens, although strict is expected", "strict", []probe.Finding{probe.NothingListens}, 1},
		{"no mode", "strict", []probe.Finding{probe.Other}, 1},
		{"one address answers", "strict", []probe.Finding{probe.NoRoute, probe.Strict, probe.NothingListens}, 0},
		{"the addresses differ", "", []probe.Finding{probe.Off, probe.Strict}, 1},
		{"one address has another mode", "strict", []probe.Finding{probe.Strict, probe.Off}, 2},
		{"the mode of one address is not known", "strict", []probe.Finding{probe.Strict, probe.Silent}, 1},
	} {
		err := (&probeOptions{expect: tc.expect}).compare(probeReport(tc.findings...))
		if got, silent := statusOf(probeCommand(), err); got != tc.want || silent != (err == nil) {
			t.Errorf("%s: exit status %d, want %d", tc.name, got, tc.want)
		}
	}
	if got, silent := statusOf(probeCommand(), errors.New("another command")); got != 1 || silent {
		t.Errorf("exit status %d of another error, want 1", got)
	}
}

// TestProbe probes a server of Go, which does not know PROXY headers.
func TestProbe(t *testing.T) {
	paths := make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		paths <- r.Method + " " + r.Host + r.URL.Path + " " + r.UserAgent()
	}))
	defer server.Close()
	target := server.Listener.Addr().String()
	text, err := usher(t, "probe", target, "--host", "www.example.com", "--path", "/health", "--method", "HEAD")
	if err != nil || !strings.HasPrefix(text, target+" does not look for PROXY headers: its mode is off.\n") {
		t.Errorf("%v, %q", err, text)
	}
	if got, want := <-paths, "HEAD www.example.com/health usher-probe/"+thisBuild().Version; got != want {
		t.Errorf("the server got %q, want %q", got, want)
	}
	text, err = usher(t, "probe", target, "-o", "json", "--expect", "strict")
	var report probe.Report
	if json.Unmarshal([]byte(text), &report) != nil || len(report.Results) != 1 || report.Results[0].Conclusion.Mode != "off" {
		t.Errorf("it prints %q", text)
	}
	if status, silent := statusOf(probeCommand(), err); status != 2 || silent || err.Error() != "--expect strict: "+target+" does not look for PROXY headers: its mode is off." {
		t.Errorf("%v, want exit status 2", err)
	}
}
