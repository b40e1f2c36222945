package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/xds"
)

// readiness decides what /readyz answers. Usher is ready while it can serve Envoys: its source answers, or at least one
// gateway has a set, or is saved in the state directory so that a new Envoy can be served. An outage of the source must not
// make all Ushers unready at once: each of them still has what Envoys need.
type readiness struct {
	source    readinessChecker
	saved     func() bool // reports whether new Envoys can be served from a saved state now; nil without a state directory
	balancers warner      // nil outside Kubernetes
	plane     interface{ HasSet() bool }
	problems  interface {
		Current() []controlplane.Reported
	}
	draining atomic.Bool // Usher is not ready until the process ends

	mu        sync.Mutex
	downSince time.Time // when the source stopped answering; zero while it answers
}

func newReadiness(
	source configSource, authorizer xds.Authorizer, balancers balancerSource, plane *controlplane.Plane, problems *controlplane.Problems,
) *readiness {
	r := &readiness{source: source, balancers: balancers, plane: plane, problems: problems}
	w, isWatcher := source.(*consul.Watcher)
	a, asksConsul := authorizer.(consulAuthorizer)
	if isWatcher && asksConsul {
		r.saved = func() bool { return w.HasSaved() && a.consul.RemembersAny() }
	}
	return r
}

var errShuttingDown = errors.New("usher is shutting down")

// Ready implements readinessChecker.
func (r *readiness) Ready() error {
	_, err := r.checkSource()
	switch {
	case r.draining.Load():
		return errShuttingDown
	case err != nil && !r.canServe():
		return err
	}
	return nil
}

// canServe reports whether there is something to serve while the source does not answer.
func (r *readiness) canServe() bool { return r.plane.HasSet() || r.saved != nil && r.saved() }

// Warning implements readinessChecker, with a line for each warning. It starts with the reason why the source does
// not answer, and leaves out what Ready returns.
func (r *readiness) Warning() string {
	var warnings []string
	if since, err := r.checkSource(); err != nil && r.canServe() {
		warnings = append(warnings,
			fmt.Sprintf("%v (since %s); Envoys keep the last valid configuration", err, since.UTC().Format(time.RFC3339)))
	}
	warnings = append(warnings, r.warnings()...)
	warnings = append(warnings, r.problemLines()...)
	return strings.Join(warnings, "\n")
}

// warnings returns the warnings of the source and of the load balancers, a line for each.
func (r *readiness) warnings() []string {
	text := r.source.Warning()
	if r.balancers != nil {
		text += "\n" + r.balancers.Warning()
	}
	return slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool { return line == "" })
}

// maxProblemLines is how many problems /readyz has. The log has all.
const maxProblemLines = 10

// problemLines returns a line for each of the worst problems that are more than notices, and not the reason why Usher is
// not ready.
func (r *readiness) problemLines() (lines []string) {
	var reason []string
	if err := r.Ready(); err != nil {
		reason = strings.Split(err.Error(), "\n")
	}
	current := slices.DeleteFunc(r.problems.Current(), func(p controlplane.Reported) bool {
		return p.Severity == problem.Notice || slices.Contains(reason, p.String())
	})
	for _, p := range current[:min(len(current), maxProblemLines)] {
		lines = append(lines, problemStatus(p).String())
	}
	if more := len(current) - maxProblemLines; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more problems; the log has all", more))
	}
	return lines
}

// run checks the source every second until ctx ends, to know when an outage began.
func (r *readiness) run(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		_, _ = r.checkSource()
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// checkSource returns why the source does not answer, and when a check first found that.
func (r *readiness) checkSource() (time.Time, error) {
	err := r.source.Ready()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.downSince = time.Time{}
	case r.downSince.IsZero():
		r.downSince = time.Now()
	}
	return r.downSince, err
}
