package consul

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// crowd runs queries that ask again and again until stop, and notes for each
// how long it went unasked at most. As with Consul, a query that waits is
// answered a sixteenth later.
type crowd struct {
	budget *budget
	cancel context.CancelFunc
	wait   sync.WaitGroup
	slow   time.Duration   // that every answer takes
	bounds []time.Duration // what the budget has told

	mu     sync.Mutex
	open   int
	most   int // that were open at once
	asked  int
	unseen map[int]time.Duration // of every query that was asked
	waits  []time.Duration
	reads  map[int]time.Duration // how long each waited for its first answer
}

const (
	long     = 5 * time.Minute
	readTime = time.Millisecond // that a first read takes
)

// newCrowd shares slots for waiting, and a tenth of that for first reads.
func newCrowd(t *testing.T, slots, queries int) (*crowd, context.Context) {
	return newSlowCrowd(t, slots, queries, 0)
}

// newSlowCrowd is newCrowd with a Consul that takes so long for every answer.
func newSlowCrowd(t *testing.T, slots, queries int, slow time.Duration) (*crowd, context.Context) {
	ctx, cancel := context.WithCancel(t.Context())
	c := &crowd{cancel: cancel, slow: slow, unseen: map[int]time.Duration{}, reads: map[int]time.Duration{}}
	c.budget = &budget{
		slots: pool{size: slots}, lanes: pool{size: slots / 10}, long: long,
		told: func(late time.Duration) { c.bounds = append(c.bounds, late) },
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
		for first := true; ctx.Err() == nil; first = false {
			begin := time.Now()
			_, _ = c.budget.ask(ctx, first, func(ctx context.Context, wait time.Duration) (answer, error) {
				if first {
					wait = readTime
				}
				c.opened(i, first, time.Since(begin), wait)
				defer c.closed()
				timer := time.NewTimer(wait + wait/16 + c.slow)
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

func (c *crowd) opened(i int, first bool, unseen, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open++
	c.most = max(c.most, c.open)
	if first {
		c.reads[i] = unseen
		return
	}
	c.asked++
	c.unseen[i] = max(c.unseen[i], unseen)
	c.waits = append(c.waits, wait)
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

// wantNoneUnasked says that so many queries were asked, none after more than the
// bound.
func (c *crowd) wantNoneUnasked(t *testing.T, queries int, bound time.Duration) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.unseen) != queries {
		t.Errorf("%d queries were asked, want %d", len(c.unseen), queries)
	}
	for i, unseen := range c.unseen {
		if unseen > bound {
			t.Fatalf("%d queries: number %d went unasked for %v, want at most %v", queries, i, unseen, bound)
		}
	}
}

func TestQueriesThatFitKeepTheirConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newCrowd(t, 160, 160)
		time.Sleep(time.Minute)
		c.stop()
		if c.asked != 160 || len(c.bounds) != 0 {
			t.Errorf("asked %d times, told of %v, want 160 queries that wait", c.asked, c.bounds)
		}
	})
}

// Queries that begin together do not come back together.
func TestLongWaitsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newCrowd(t, 0, 1000)
		time.Sleep(time.Second)
		c.stop()
		const parts = 10
		var ending [parts]int // how many waits end in each part of the second half
		for _, wait := range c.waits {
			if wait <= long/2 || wait > long {
				t.Fatalf("a query waits for %v, want up to %v and more than half of it", wait, long)
			}
			ending[(wait-1-long/2)*parts/(long/2)]++
		}
		for part, n := range ending {
			if n > 1000/parts*2 {
				t.Errorf("%d of 1000 waits end in part %d of %d", n, part, parts)
			}
		}
	})
}

func TestQueriesThatDoNotFitTakeTurns(t *testing.T) {
	for _, queries := range []int{161, 500, 2006, 6000} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := newCrowd(t, 160, queries)
			time.Sleep(time.Minute)
			c.stop()
			if c.most > 176 {
				t.Errorf("%d queries were open at once, want at most 176", c.most)
			}
			c.wantNoneUnasked(t, queries, staleBound)
			if len(c.bounds) != 2 || c.bounds[0] != staleBound || c.bounds[1] != 0 {
				t.Errorf("told of %v, want once of turns and once of their end", c.bounds)
			}
		})
	}
}

// A Consul that takes its time for every answer is asked for shorter waits.
func TestSlowAnswersAreReckonedWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newSlowCrowd(t, 80, 500, 500*time.Millisecond)
		time.Sleep(time.Minute)
		c.stop()
		c.wantNoneUnasked(t, 500, staleBound)
	})
}

// Where the turns would be too short for Consul, the bound is another one, and
// is told.
func TestAHugeCrowdIsSeenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newCrowd(t, 20, 2000)
		time.Sleep(time.Minute)
		if remark := c.budget.remark(); remark == "" {
			t.Error("the status does not remark that queries take turns")
		}
		c.stop()
		if want := []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second}; len(c.bounds) < 3 ||
			c.bounds[0] != want[0] || c.bounds[1] != want[1] || c.bounds[2] != want[2] {
			t.Errorf("told of %v, want %v first", c.bounds, want)
		}
		c.wantNoneUnasked(t, 2000, 20*time.Second)
		if remark := c.budget.remark(); remark != "" {
			t.Errorf("the status remarks %q when nobody takes turns", remark)
		}
	})
}

func TestTurnsAreAsLongAsTheBoundAllows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const queries = 2000
		c, _ := newCrowd(t, 80, queries)
		time.Sleep(time.Minute)
		c.stop()
		if most := 60 * queries / 3; c.asked > most {
			t.Errorf("%d queries were asked %d times in a minute, want at most %d", queries, c.asked, most)
		}
	})
}

func TestACrowdThatGrowsIsStillSeenInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const few, many = 81, 2500
		c, ctx := newCrowd(t, 80, few)
		time.Sleep(2 * readTime) // all have just begun a turn, which is long
		for i := few; i < many; i++ {
			c.add(ctx, i)
		}
		time.Sleep(20 * time.Second)
		c.stop()
		for i, waited := range c.reads {
			if waited > time.Second {
				t.Fatalf("the first read of number %d waited for %v behind those that take turns", i, waited)
			}
		}
		c.wantNoneUnasked(t, many, staleBound)
	})
}

func TestALateQueryDoesNotWaitForPatientOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ctx := newCrowd(t, 3, 3)
		time.Sleep(time.Minute)
		c.add(ctx, 3)
		synctest.Wait()
		c.mu.Lock()
		_, asked := c.reads[3]
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

// One query more and one less, again and again, must not make those that wait
// long give way each time.
func TestTurnsDoNotFlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ctx := newCrowd(t, 80, 80)
		for i := range 10 {
			time.Sleep(10 * time.Second)
			one, leave := context.WithCancel(ctx)
			c.add(one, 80+i)
			time.Sleep(10 * time.Second)
			leave()
		}
		if len(c.bounds) != 1 {
			t.Errorf("told of %v, want that turns began once", c.bounds)
		}
		c.stop()
	})
}

func TestManyConnectionsNeedNoTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newCrowd(t, 0, 1000)
		time.Sleep(time.Second)
		c.stop()
		if c.most != 1000 || c.asked != 1000 {
			t.Errorf("%d open at once, asked %d times, want all of them, patient", c.most, c.asked)
		}
	})
}
