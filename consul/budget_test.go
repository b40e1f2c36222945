package consul

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// crowd runs queries that ask again and again until stop, and notes for each
// how long it went unasked at most.
type crowd struct {
	budget *budget
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu     sync.Mutex
	open   int
	most   int // that were open at once
	asked  int
	unseen map[int]time.Duration // of every query that was asked
	waits  map[time.Duration]int
}

func newCrowd(t *testing.T, slots, queries int) (*crowd, context.Context) {
	ctx, cancel := context.WithCancel(t.Context())
	c := &crowd{
		budget: &budget{slots: slots, long: 5 * time.Minute},
		cancel: cancel, unseen: map[int]time.Duration{}, waits: map[time.Duration]int{},
	}
	for i := range queries {
		c.add(ctx, i)
	}
	return c, ctx
}

func (c *crowd) add(ctx context.Context, i int) {
	c.budget.join()
	c.wait.Go(func() {
		defer c.budget.leave()
		for ctx.Err() == nil {
			begin := time.Now()
			_, _ = c.budget.ask(ctx, func(ctx context.Context, wait time.Duration) (answer, error) {
				c.opened(i, time.Since(begin), wait)
				defer c.closed()
				timer := time.NewTimer(wait)
				defer timer.Stop()
				select {
				case <-ctx.Done():
					return answer{}, ctx.Err()
				case <-timer.C:
					return answer{}, nil
				}
			})
		}
	})
}

func (c *crowd) opened(i int, unseen, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open++
	c.asked++
	c.most = max(c.most, c.open)
	c.unseen[i] = max(c.unseen[i], unseen)
	c.waits[wait]++
}

func (c *crowd) closed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
}

func (c *crowd) stop() {
	c.cancel()
	c.wait.Wait()
}

func TestQueriesThatFitKeepTheirConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newCrowd(t, 160, 160)
		time.Sleep(time.Minute)
		c.stop()
		if c.asked != 160 || c.waits[5*time.Minute] != 160 {
			t.Errorf("asked %d times with waits %v, want 160 long ones", c.asked, c.waits)
		}
	})
}

func TestQueriesThatDoNotFitTakeTurns(t *testing.T) {
	for _, queries := range []int{161, 500, 2006} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := newCrowd(t, 160, queries)
			time.Sleep(time.Minute)
			c.stop()
			if c.most > 160 {
				t.Errorf("%d queries were open at once, want at most 160", c.most)
			}
			if len(c.unseen) != queries {
				t.Errorf("%d queries were asked, want %d", len(c.unseen), queries)
			}
			for i, unseen := range c.unseen {
				if unseen > staleBound {
					t.Fatalf("%d queries: number %d went unasked for %v, want at most %v", queries, i, unseen, staleBound)
				}
			}
		})
	}
}

func TestALateQueryDoesNotWaitForPatientOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ctx := newCrowd(t, 3, 3)
		time.Sleep(time.Minute)
		c.add(ctx, 3)
		synctest.Wait()
		c.mu.Lock()
		_, asked := c.unseen[3]
		c.mu.Unlock()
		if !asked {
			t.Error("the late query has not been asked")
		}
		time.Sleep(time.Minute)
		c.stop()
		if c.most > 3 || c.unseen[3] > staleBound {
			t.Errorf("%d open at once, the late one unasked for %v", c.most, c.unseen[3])
		}
	})
}

func TestManyConnectionsNeedNoTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newCrowd(t, 0, 1000)
		synctest.Wait()
		c.stop()
		if c.most != 1000 || c.waits[5*time.Minute] != 1000 {
			t.Errorf("%d open with waits %v, want all of them, patient", c.most, c.waits)
		}
	})
}
