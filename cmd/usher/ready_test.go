package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// fakePlane is a plane with or without a set.
type fakePlane bool

func (s *fakePlane) HasSet() bool { return bool(*s) }

func TestUsherIsReadyWhileItHasWhatEnvoysNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, plane := &fakeChecker{}, new(fakePlane)
		r := &readiness{source: source, plane: plane}
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
