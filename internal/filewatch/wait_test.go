package filewatch

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
)

// waiting is a follower of /dir/file whose events the test makes.
func waiting() *Watcher {
	return &Watcher{
		logger:  slog.New(slog.DiscardHandler),
		watcher: &fsnotify.Watcher{Events: make(chan fsnotify.Event), Errors: make(chan error)},
		watched: watched{names: map[string]bool{"/dir/file": true}},
		again:   NewTrigger(),
	}
}

// every makes an event of name at once and after each pause, until ctx ends.
func every(ctx context.Context, f *Watcher, pause time.Duration, name string) {
	for ctx.Err() == nil {
		select {
		case f.watcher.Events <- fsnotify.Event{Name: name}:
			time.Sleep(pause)
		case <-ctx.Done():
		}
	}
}

func TestWaitEnds(t *testing.T) {
	const own, other = "/dir/file", "/dir/other"
	for _, tc := range []struct {
		name   string
		during func(context.Context, *Watcher)
		after  time.Duration
		change bool
	}{
		{"when it is quiet after an event", func(_ context.Context, f *Watcher) {
			f.watcher.Events <- fsnotify.Event{Name: own}
		}, Quiet, true},
		{"when it is quiet after two events", func(_ context.Context, f *Watcher) {
			f.watcher.Events <- fsnotify.Event{Name: own}
			time.Sleep(Quiet - 1)
			f.watcher.Events <- fsnotify.Event{Name: own}
		}, 2*Quiet - 1, true},
		{"though events do not stop", func(ctx context.Context, f *Watcher) {
			every(ctx, f, Quiet-1, own)
		}, AtMost, true},
		{"after an error of the watcher", func(_ context.Context, f *Watcher) {
			f.watcher.Errors <- fsnotify.ErrEventOverflow
		}, Quiet, true},
		{"at once when it is asked to", func(_ context.Context, f *Watcher) {
			f.again.Fire()
			f.again.Fire()
		}, 0, true},
		{"when doubt ends", func(context.Context, *Watcher) {}, Doubt, false},
		{"when doubt ends amid other files' events", func(ctx context.Context, f *Watcher) {
			every(ctx, f, time.Millisecond, other)
		}, Doubt, false},
		{"when it is quiet amid other files' events", func(ctx context.Context, f *Watcher) {
			f.watcher.Events <- fsnotify.Event{Name: own}
			every(ctx, f, time.Millisecond, other)
		}, Quiet, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := waiting()
				ctx, cancel := context.WithCancel(t.Context())
				var events sync.WaitGroup
				defer events.Wait()
				defer cancel()
				start := time.Now()
				events.Go(func() { tc.during(ctx, f) })
				change := f.wait(ctx, time.After(Doubt))
				if took := time.Since(start); took != tc.after || change != tc.change {
					t.Errorf("ended after %v with %v, want %v with %v", took, change, tc.after, tc.change)
				}
			})
		})
	}
}
