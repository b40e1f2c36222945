package consul

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheGateLetsSoManyThroughAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newReadLimiter()
		var leaves []func()
		for range maxConcurrentReads {
			leave, err := g.acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		begin := time.Now()
		entered := make(chan func())
		for range 2 {
			go func() {
				leave, err := g.acquire(t.Context())
				if err != nil {
					t.Error(err)
				}
				entered <- leave
			}()
		}
		synctest.Wait()
		select {
		case <-entered:
			t.Fatal("one more has entered")
		default:
		}
		leaves[0]()
		leaves[0]() // only the first counts
		(<-entered)()
		if took := time.Since(begin); took != 0 {
			t.Errorf("entered %s after somebody had left", took)
		}
		(<-entered)()
		for _, leave := range leaves[1:] {
			leave()
		}
	})
}

func TestASlowQuestionGivesItsPlaceBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newReadLimiter()
		for range maxConcurrentReads {
			if _, err := g.acquire(t.Context()); err != nil { // never leaves
				t.Fatal(err)
			}
		}
		begin := time.Now()
		leave, err := g.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		leave()
		if took := time.Since(begin); took != readSlotTime {
			t.Errorf("entered after %s, want %s", took, readSlotTime)
		}
	})
}

func TestTheGateEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newReadLimiter()
		for range maxConcurrentReads {
			if _, err := g.acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		gone := errors.New("nobody needs it any more")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		if _, err := g.acquire(ctx); !errors.Is(err, gone) {
			t.Errorf("%v, want %v", err, gone)
		}
		time.Sleep(readSlotTime) // the places come back
	})
}
