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
	// What is asked often, such as the configuration of an Envoy, costs more than what is tested.
	longestPollInterval = 100 * time.Millisecond
)

// permanent is an error that a longer wait cannot change.
type permanent struct{ error }

func (h permanent) Unwrap() error { return h.error }

// Permanent marks an error that a longer wait cannot change. It ends Eventually.
func Permanent(err error) error { return permanent{err} }

// IsPermanent reports whether an error is marked by Permanent.
func IsPermanent(err error) bool { return errors.As(err, new(permanent)) }

// Eventually waits for what to become true: until f returns nil. It fails the test when the deadline has passed or f returns
// a permanent error. It sees the change at most 10 ms, or a twentieth of the time that it waited, after it has happened.
func Eventually(t *testing.T, what string, deadline time.Duration, f func() error) {
	t.Helper()
	begin, end := time.Now(), time.After(deadline)
	for {
		err := f()
		if err == nil {
			return
		}
		if IsPermanent(err) {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-end:
			t.Fatalf("%s: not within %v: %v", what, deadline, err)
		case <-time.After(min(max(time.Since(begin)/20, PollInterval), longestPollInterval)):
		}
	}
}
