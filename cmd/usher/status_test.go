package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/yaml"

	"github.com/usherproxy/usher/internal/configdir"
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/status"
	"github.com/usherproxy/usher/xds"
)

// usherWith answers with a state at status.Path until the test ends. It returns its admin address.
func usherWith(t *testing.T, s status.State) string {
	t.Helper()
	return adminServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != status.Path {
			http.NotFound(w, r)
			return
		}
		writeJSON(w, s)
	})
}

func adminServer(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		server.Close()
	})
	return strings.TrimPrefix(server.URL, "http://")
}

func TestStatusExitStatus(t *testing.T) {
	with := func(s ...problem.Severity) string {
		state := status.State{Time: time.Now(), Usher: status.Usher{Version: "v1", Ready: true}}
		for _, severity := range s {
			state.Problems = append(state.Problems, status.Problem{Severity: severity, Where: "here", What: "wrong"})
		}
		return usherWith(t, state)
	}
	none := adminServer(t, http.NotFound)
	text := adminServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	for _, tc := range []struct {
		name  string
		addrs []string
		want  int
		shows string
	}{
		{"no problem", []string{with()}, 0, "no problems"},
		{"a notice", []string{with(problem.Notice)}, 0, "notice: here: wrong"},
		{"degraded", []string{with(), with(problem.Degraded)}, 1, "degraded: here: wrong"},
		{"an outage", []string{with(problem.Notice, problem.Outage)}, 1, "outage: here: wrong"},
		{"one does not answer", []string{with(problem.Outage), "127.0.0.1:1"}, 2, "no Usher answers at http://127.0.0.1:1: connect: connection refused; start it, or correct the address"},
		{"a password in the address", []string{"http://user:s3cret@127.0.0.1:1"}, 2, "http://[redacted]@127.0.0.1:1: no Usher answers at http://127.0.0.1:1: connect"},
		{"an old one", []string{none}, 2, "/status answers 404 Not Found; give the address of the admin port of an Usher of this release"},
		{"something else", []string{text}, 2, "/status answers what this Usher cannot read: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := []string{"status"}
			for _, addr := range tc.addrs {
				args = append(args, "--admin-addr", addr)
			}
			out, err := usher(t, args...)
			got := 0
			if e, ok := errors.AsType[exitError](err); ok && e.error == nil {
				got = e.status
			} else if err != nil {
				t.Fatal(err)
			}
			if got != tc.want || !strings.Contains(out, tc.shows) {
				t.Errorf("exit status %d, want %d, and %q in\n%s", got, tc.want, tc.shows, out)
			}
		})
	}
}

func TestABadFlagOfStatusIsNoProblemOfUsher(t *testing.T) {
	cmd := rootCommand()
	cmd.SetArgs([]string{"status", "-o", "xml"})
	found, err := cmd.ExecuteContextC(t.Context())
	if got, silent := statusOf(found, err); got != statusUnknown || silent {
		t.Errorf("exit status %d, silent %v; want %d and a message", got, silent, statusUnknown)
	}
}

func TestStatusAsJSONAndYAML(t *testing.T) {
	addr := usherWith(t, status.State{Usher: status.Usher{Version: "v1"}, Gateways: []status.Gateway{{Name: "edge"}}})
	for format, decode := range map[string]func([]byte, any) error{
		"json": json.Unmarshal,
		"yaml": func(text []byte, into any) error { return yaml.UnmarshalStrict(text, into) },
	} {
		out, err := usher(t, "status", "-o", format, "--admin-addr", addr, "--admin-addr", "127.0.0.1:1")
		if e, ok := errors.AsType[exitError](err); !ok || e.status != statusUnknown {
			t.Errorf("%s: %v", format, err)
		}
		var answers []status.Answer
		if err := decode([]byte(out), &answers); err != nil {
			t.Fatal(err)
		}
		if len(answers) != 2 || answers[0].Address != addr || answers[0].State.Gateways[0].Name != "edge" || answers[1].State != nil || answers[1].Error == "" {
			t.Errorf("%s: got %s", format, out)
		}
	}
}

// TestStatusIsWatched ends the watch when it has printed the second state.
func TestStatusIsWatched(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := 0
	addr := adminServer(t, func(w http.ResponseWriter, _ *http.Request) {
		asked++
		writeJSON(w, status.State{Usher: status.Usher{Version: map[int]string{1: "first", 2: "second"}[asked]}, Problems: []status.Problem{{Severity: problem.Outage}}})
		if asked > 2 {
			cancel()
		}
	})
	var out bytes.Buffer
	o := statusOptions{addrs: []string{addr}, output: "table", watch: true, timeout: 10 * time.Second, interval: time.Millisecond}
	if err := o.run(ctx, &out); err != nil {
		t.Errorf("the end of a watch: %v", err)
	}
	if got := out.String(); !strings.Contains(got, "usher first") || !strings.Contains(got, "usher second") || strings.Contains(got, "\x1b") {
		t.Errorf("printed %q, want both states and no control characters", got)
	}
}

// newAdminSources returns sources without gateways and Envoys, with two problems, and what decides about the source.
func newAdminSources() (adminSources, *fakeChecker) {
	log, metrics := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	problems := controlplane.NewProblems(log, metrics)
	problems.Report("a file", []problem.Problem{{Where: "usher.hcl:2", What: "wrong"}, {Where: "here", What: "down", Severity: problem.Outage}})
	plane := controlplane.New(controlplane.Options{Problems: problems, Metrics: controlplane.NewMetrics(metrics), Logger: log})
	source := &fakeChecker{warning: "waits"}
	ready := &readiness{source: source, balancers: &fakeChecker{warning: "in grace"}, plane: plane, problems: problems}
	return adminSources{plane: plane, problems: problems, servers: &servers{xds: xds.NewServer(xds.Options{})}, ready: ready}, source
}

func TestStatusPage(t *testing.T) {
	sources, source := newAdminSources()
	get := func() status.State {
		t.Helper()
		a, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &fakeChecker{})
		if err != nil {
			t.Fatal(err)
		}
		defer a.stop()
		a.addPages(sources)
		answer := httptest.NewRecorder()
		a.mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, status.Path, nil)) // from 192.0.2.1
		if got := answer.Header().Get("Content-Type"); answer.Code != http.StatusOK || got != "application/json" {
			t.Errorf("%d, %s", answer.Code, got)
		}
		var state status.State
		if err := json.Unmarshal(answer.Body.Bytes(), &state); err != nil {
			t.Fatal(err)
		}
		return state
	}
	got := get()
	want := status.State{
		Time: got.Time, Usher: status.Usher{Version: thisBuild().Version, Commit: thisBuild().Commit, GoVersion: thisBuild().GoVersion, Started: got.Usher.Started, Ready: true, Warnings: []string{"waits", "in grace"}},
		Source: status.Source{Type: status.Consul, Answers: true}, Gateways: []status.Gateway{}, Envoys: []status.Envoy{},
		Problems: []status.Problem{{Severity: problem.Outage, Where: "here", What: "down"}, {Severity: problem.Degraded, Where: "usher.hcl:2", What: "wrong"}},
		Changes:  []status.Change{},
	}
	if diff := cmp.Diff(want, got); diff != "" || time.Since(got.Time) > time.Minute || got.Usher.Started.After(got.Time) {
		t.Errorf("want -, got +\n%s", diff)
	}
	source.why = errors.New("consul at 127.0.0.1:8500: connection refused")
	if got := get(); got.Usher.Ready || got.Usher.Reason != source.why.Error() || got.Source.Answers || got.Source.Error != source.why.Error() || got.Source.Since.IsZero() {
		t.Errorf("without Consul: %+v, %+v", got.Usher, got.Source)
	}
	dir := t.TempDir()
	sources.ready.source = configdir.NewSource(dir, configdir.Options{Logger: slog.New(slog.DiscardHandler), Report: func([]problem.Problem) {}})
	if got := get(); got.Source.Type != status.Files {
		t.Errorf("of files: %+v", got.Source)
	}
}
