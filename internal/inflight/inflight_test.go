package inflight

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A caller with many requests leaves room for those of others.
func TestRequestsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const all, perCaller = 5, 2
		l := NewCallerLimit[string](all, perCaller)
		var requests sync.WaitGroup
		var began, ended atomic.Int32
		end := make(chan struct{})
		begin := func(callers ...string) {
			for _, caller := range callers {
				for range 20 {
					requests.Go(func() {
						release, err := l.Acquire(t.Context(), caller)
						if err != nil {
							t.Error(err)
							return
						}
						began.Add(1)
						<-end
						ended.Add(1)
						release()
					})
				}
			}
			synctest.Wait()
		}
		begin("a")
		if n := began.Load(); n != perCaller {
			t.Errorf("%d requests of one caller run, want %d", n, perCaller)
		}
		begin("b", "c", "d")
		if n := began.Load(); n != all {
			t.Errorf("%d requests run, want %d", n, all)
		}
		for ended.Load() < 80 {
			end <- struct{}{}
			synctest.Wait()
			if running := began.Load() - ended.Load(); running > all {
				t.Errorf("%d requests run, want at most %d", running, all)
			}
		}
		requests.Wait()
		if n := len(l.callers); n != 0 {
			t.Errorf("%d callers are remembered without a request", n)
		}
	})
}

// A request that does not wait any more leaves nothing behind, whatever it waited for.
func TestARequestThatEndsWhileItWaits(t *testing.T) {
	gone := errors.New("the caller is gone")
	for name, other := range map[string]string{"for its caller's": "a", "for others'": "b"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := NewCallerLimit[string](1, 1)
				acquire := func(ctx context.Context, caller string, want error) (release func()) {
					release, err := l.Acquire(ctx, caller)
					if !errors.Is(err, want) {
						t.Errorf("the request got %v, want %v", err, want)
					}
					return release
				}
				release := acquire(t.Context(), other, nil)
				ctx, cancel := context.WithCancelCause(t.Context())
				var waiting sync.WaitGroup
				waiting.Go(func() { acquire(ctx, "a", gone) })
				synctest.Wait()
				waiting.Go(func() { acquire(t.Context(), "a", nil)() })
				synctest.Wait()
				cancel(gone)
				synctest.Wait()
				release()
				waiting.Wait()
				if n := len(l.callers); n != 0 || len(l.all) != 0 {
					t.Errorf("%d callers and %d requests are left", n, len(l.all))
				}
			})
		})
	}
}

func TestTheEndOfARequestCountsOnce(t *testing.T) {
	l := make(Limit, 2)
	first, _ := l.Acquire(t.Context())
	_, _ = l.Acquire(t.Context())
	first()
	first()
	if n := len(l); n != 1 {
		t.Errorf("%d requests run, want 1", n)
	}
}

func TestTryAcquire(t *testing.T) {
	l := make(Limit, 1)
	release, ok := l.TryAcquire()
	if !ok {
		t.Fatal("the first request may not run")
	}
	if _, ok := l.TryAcquire(); ok {
		t.Error("two requests run")
	}
	release()
	release()
	if _, ok := l.TryAcquire(); !ok {
		t.Error("a request that has ended still counts")
	}
}
