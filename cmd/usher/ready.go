package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// readiness decides what /readyz tells. Usher is ready while it can serve
// Envoys: its source of facts answers, or some gateway has a set from when it
// did. A source that is away takes the Ushers out of their Service all at once,
// while each of them has what Envoys need.
type readiness struct {
	condition // of the source, with the remarks of others
	plane     interface{ HasSet() bool }

	mu       sync.Mutex
	away     time.Time // since when the source does not answer; zero while it does
	draining bool
}

var errShuttingDown = errors.New("usher is shutting down")

// Ready implements condition.
func (r *readiness) Ready() error {
	_, err := r.look()
	switch {
	case r.isDraining():
		return errShuttingDown
	case err != nil && !r.plane.HasSet():
		return err
	}
	return nil
}

// Remark implements condition. It says first why the source does not answer.
func (r *readiness) Remark() string {
	remark := r.condition.Remark()
	if since, err := r.look(); err != nil {
		away := fmt.Sprintf("%v; it is so since %s, and Envoys keep the last good configuration", err, since.UTC().Format(time.RFC3339))
		remark = strings.Trim(away+"\n"+remark, "\n")
	}
	return remark
}

// run looks at the source now and then until ctx ends, to know since when it is
// away.
func (r *readiness) run(ctx context.Context) error {
	const often = time.Second
	tick := time.NewTicker(often)
	defer tick.Stop()
	for {
		_, _ = r.look()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look returns why the source does not answer and since when, as far as it was
// looked at.
func (r *readiness) look() (time.Time, error) {
	err := r.condition.Ready()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil:
		r.away = time.Time{}
	case r.away.IsZero():
		r.away = time.Now()
	}
	return r.away, err
}

// drain makes Usher not ready for good.
func (r *readiness) drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining = true
}

func (r *readiness) isDraining() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.draining
}
