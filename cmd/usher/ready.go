package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// readiness decides what /readyz answers. Usher is ready while it can serve Envoys: its
// source answers, or at least one gateway has a set. An outage of the source must not
// make all Ushers unready at once: each of them still has what Envoys need.
type readiness struct {
	readinessChecker // of the source, with the warnings of others
	plane            interface{ HasSet() bool }

	mu        sync.Mutex
	downSince time.Time // when the source stopped answering; zero while it answers
	draining  bool
}

var errShuttingDown = errors.New("usher is shutting down")

// Ready implements readinessChecker.
func (r *readiness) Ready() error {
	_, err := r.checkSource()
	switch {
	case r.isDraining():
		return errShuttingDown
	case err != nil && !r.plane.HasSet():
		return err
	}
	return nil
}

// Warning implements readinessChecker. It starts with the reason why the source does not
// answer.
func (r *readiness) Warning() string {
	warning := r.readinessChecker.Warning()
	if since, err := r.checkSource(); err != nil {
		outage := fmt.Sprintf("%v (since %s); Envoys keep the last valid configuration", err, since.UTC().Format(time.RFC3339))
		warning = strings.Trim(outage+"\n"+warning, "\n")
	}
	return warning
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
	err := r.readinessChecker.Ready()
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

// setDraining makes Usher unready until the process ends.
func (r *readiness) setDraining() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining = true
}

func (r *readiness) isDraining() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.draining
}
