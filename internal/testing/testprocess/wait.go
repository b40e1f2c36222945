//go:build e2e

package testprocess

import (
	"errors"
	"testing"
	"time"
)

// The deadlines of a wait, generous because a machine may be slow, and met at
// once when all is well.
const (
	StartDeadline  = 60 * time.Second
	ChangeDeadline = 20 * time.Second

	PollInterval = 10 * time.Millisecond
)

// hopeless is an error that waiting longer cannot cure.
type hopeless struct{ error }

func (h hopeless) Unwrap() error { return h.error }

// Hopeless gives an error that waiting longer cannot cure: it ends Eventually.
func Hopeless(err error) error { return hopeless{err} }

// IsHopeless says whether waiting longer cannot cure an error.
func IsHopeless(err error) bool { return errors.As(err, new(hopeless)) }

// Eventually waits for what to become true: until f returns nil. It fails the
// test when the deadline has passed or f returns an error that is hopeless.
func Eventually(t *testing.T, what string, deadline time.Duration, f func() error) {
	t.Helper()
	end := time.After(deadline)
	tick := time.NewTicker(PollInterval)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if IsHopeless(err) {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-end:
			t.Fatalf("%s: not within %v: %v", what, deadline, err)
		case <-tick.C:
		}
	}
}
