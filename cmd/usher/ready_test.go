package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/problem"
)

// fakePlane is a plane with or without a set.
type fakePlane bool

func (s *fakePlane) HasSet() bool { return bool(*s) }

// fakeProblems are the problems that there are.
type fakeProblems []controlplane.Reported

func (p *fakeProblems) Current() []controlplane.Reported { return slices.Clone(*p) }

func TestReadyzHasTheWorstProblems(t *testing.T) {
	problems := fakeProblems{
		{Gateway: "edge", Problem: problem.Problem{Where: "gateway edge: listener 8080", What: "it is held back", Severity: problem.Outage}},
		{Problem: problem.Problem{Where: "usher.hcl:3", What: "wrong"}},
		{Gateway: "edge", Problem: problem.Problem{Where: "a", What: "meant", Severity: problem.Notice}},
	}
	r := &readiness{source: &fakeChecker{}, plane: new(fakePlane), problems: &problems}
	want := "outage (gateway edge): gateway edge: listener 8080: it is held back\ndegraded: usher.hcl:3: wrong"
	if got := r.Warning(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	problems = slices.Repeat(problems[1:2], maxProblemLines+2)
	got := strings.Split(r.Warning(), "\n")
	if len(got) != maxProblemLines+1 || got[maxProblemLines] != "and 2 more problems; the log has all" {
		t.Errorf("of %d problems it has %q", len(problems), got)
	}
}

// TestReadyzHasTheProblemsWithA503 wants what an administrator has to correct beside the reason, which is not
// repeated.
func TestReadyzHasTheProblemsWithA503(t *testing.T) {
	file := problem.Problem{Where: "edge.hcl:3", What: "wrong", Severity: problem.Outage}
	problems := fakeProblems{
		{Problem: file},
		{Problem: problem.Problem{Where: "tls.pem", What: "the certificate expired"}},
	}
	const restOfIt = "degraded: tls.pem: the certificate expired\n"
	for name, tc := range map[string]struct {
		reason   error
		hasSet   bool
		draining bool
		want     string
	}{
		"the source does not answer": {errors.New("connection refused"), false, false, "not ready: connection refused\noutage: edge.hcl:3: wrong\n" + restOfIt},
		"a problem is the reason":    {errors.New("edge.hcl:3: wrong"), false, false, "not ready: edge.hcl:3: wrong\n" + restOfIt},
		"shutting down":              {nil, true, true, "not ready: usher is shutting down\noutage: edge.hcl:3: wrong\n" + restOfIt},
	} {
		t.Run(name, func(t *testing.T) {
			plane := fakePlane(tc.hasSet)
			r := &readiness{source: &fakeChecker{why: tc.reason}, plane: &plane, problems: &problems}
			r.draining.Store(tc.draining)
			answer, err := http.Get("http://" + startAdmin(t, io.Discard, r) + "/readyz")
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			got, err := io.ReadAll(answer.Body)
			if err != nil || answer.StatusCode != http.StatusServiceUnavailable || string(got) != tc.want {
				t.Errorf("%v, %s: %q, want 503: %q", err, answer.Status, got, tc.want)
			}
		})
	}
}

func TestUsherIsReadyWhileItHasWhatEnvoysNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, plane := &fakeChecker{}, new(fakePlane)
		r := &readiness{source: source, plane: plane, problems: new(fakeProblems)}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.run(ctx) }()
		refused := errors.New("consul at http://127.0.0.1:8500: connection refused")
		is := func(when string, want error, warning string) {
			t.Helper()
			synctest.Wait()
			if err := r.Ready(); !errors.Is(err, want) {
				t.Errorf("%s: not ready because of %v, want %v", when, err, want)
			}
			if got := r.Warning(); got != warning {
				t.Errorf("%s: warning %q, want %q", when, got, warning)
			}
		}
		is("the source answers", nil, "")
		source.set(refused, "")
		time.Sleep(10 * time.Second) // the first look after the change is one second later
		const away = "consul at http://127.0.0.1:8500: connection refused (since 2000-01-01T00:00:01Z); Envoys keep the last valid configuration"
		if err := r.Ready(); !errors.Is(err, refused) {
			t.Errorf("away, without a set: %v, want %v", err, refused)
		}
		r.saved = func() bool { return true }
		is("away, with a saved state", nil, away)
		r.saved = nil
		*plane = true
		is("away, with a set", nil, away)
		source.set(refused, "slow")
		is("away, with a warning", nil, away+"\nslow")
		source.set(nil, "slow")
		is("it answers again", nil, "slow")
		*plane = false
		source.set(nil, "")
		is("it answers, without a set", nil, "")
		*plane = true
		r.draining.Store(true)
		is("draining", errShuttingDown, "")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
