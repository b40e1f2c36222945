package consul

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pollers repeat queries until stop, and record for each how long it was without a
// connection at most. As with Consul, a query that waits is answered a sixteenth later.
type pollers struct {
	budget *connectionLimiter
	cancel context.CancelFunc
	wait   sync.WaitGroup
	slow   time.Duration   // that every answer takes
	delays []time.Duration // of the calls of onDelay

	mu      sync.Mutex
	open    int
	maxOpen int // that were open at once
	queries int
	maxGap  map[int]time.Duration // of every query that was asked
	waits   []time.Duration
	reads   map[int]time.Duration // how long each waited for its first answer
}

const (
	longWait = 5 * time.Minute
	readTime = time.Millisecond // that a first read takes
)

// newPollers shares slots for waiting, and a tenth of that for first reads.
func newPollers(t *testing.T, slots, queries int) (*pollers, context.Context) {
	return newSlowPollers(t, slots, queries, 0)
}

// newSlowPollers is newPollers with a Consul that takes so long for every answer.
func newSlowPollers(t *testing.T, slots, queries int, slow time.Duration) (*pollers, context.Context) {
	ctx, cancel := context.WithCancel(t.Context())
	c := &pollers{cancel: cancel, slow: slow, maxGap: map[int]time.Duration{}, reads: map[int]time.Duration{}}
	c.budget = &connectionLimiter{
		shared: pool{size: slots}, reserved: pool{size: slots / 10}, longWait: longWait,
		onSharing: func(int) {},
		onDelay:   func(late time.Duration) { c.delays = append(c.delays, late) },
	}
	for i := range queries {
		c.add(ctx, i)
	}
	return c, ctx
}

func (c *pollers) add(ctx context.Context, i int) {
	c.budget.addUsers(1)
	c.wait.Go(func() {
		defer c.budget.addUsers(-1)
		for first := true; ctx.Err() == nil; first = false {
			begin := time.Now()
			_, _ = c.budget.do(ctx, first, func(ctx context.Context, wait time.Duration) (response, error) {
				if first {
					wait = readTime
				}
				c.opened(i, first, time.Since(begin), wait)
				defer c.closed()
				timer := time.NewTimer(wait + wait/16 + c.slow)
				defer timer.Stop()
				select {
				case <-ctx.Done():
					return response{}, ctx.Err()
				case <-timer.C:
					return response{}, nil
				}
			})
		}
	})
}

func (c *pollers) opened(i int, first bool, unseen, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open++
	c.maxOpen = max(c.maxOpen, c.open)
	if first {
		c.reads[i] = unseen
		return
	}
	c.queries++
	c.maxGap[i] = max(c.maxGap[i], unseen)
	c.waits = append(c.waits, wait)
}

func (c *pollers) closed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
}

func (c *pollers) stop() {
	c.cancel()
	c.wait.Wait()
}

// wantMaxGap checks that so many queries were sent, none after more than the bound.
func (c *pollers) wantMaxGap(t *testing.T, queries int, bound time.Duration) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.maxGap) != queries {
		t.Errorf("%d queries were asked, want %d", len(c.maxGap), queries)
	}
	for i, unseen := range c.maxGap {
		if unseen > bound {
			t.Fatalf("%d queries: number %d went unasked for %v, want at most %v", queries, i, unseen, bound)
		}
	}
}

func TestQueriesThatFitKeepTheirConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newPollers(t, 160, 160)
		time.Sleep(time.Minute)
		c.stop()
		if c.queries != 160 || len(c.delays) != 0 {
			t.Errorf("%d queries, delays %v, want 160 queries that wait", c.queries, c.delays)
		}
	})
}

// Queries that begin together do not come back together.
func TestLongWaitsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newPollers(t, 0, 1000)
		time.Sleep(time.Second)
		c.stop()
		const parts = 10
		var ending [parts]int // how many waits end in each part of the second half
		for _, wait := range c.waits {
			if wait <= longWait/2 || wait > longWait {
				t.Fatalf("a query waits for %v, want up to %v and more than half of it", wait, longWait)
			}
			ending[(wait-1-longWait/2)*parts/(longWait/2)]++
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
			c, _ := newPollers(t, 160, queries)
			time.Sleep(time.Minute)
			c.stop()
			if c.maxOpen > 176 {
				t.Errorf("%d queries were open at once, want at most 176", c.maxOpen)
			}
			c.wantMaxGap(t, queries, maxStaleness)
			if len(c.delays) != 2 || c.delays[0] != maxStaleness || c.delays[1] != 0 {
				t.Errorf("delays %v, want one for turns and one for their end", c.delays)
			}
		})
	}
}

// A Consul that takes its time for every answer is asked for shorter waits.
func TestSlowAnswersAreReckonedWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newSlowPollers(t, 80, 500, 500*time.Millisecond)
		time.Sleep(time.Minute)
		c.stop()
		c.wantMaxGap(t, 500, maxStaleness)
	})
}

// If the turns would be too short for Consul, the bound is longer.
func TestAHugeCrowdIsSeenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newPollers(t, 20, 2000)
		time.Sleep(time.Minute)
		if remark := c.budget.warning(); remark == "" {
			t.Error("there is no warning that queries take turns")
		}
		c.stop()
		if want := []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second}; len(c.delays) < 3 ||
			c.delays[0] != want[0] || c.delays[1] != want[1] || c.delays[2] != want[2] {
			t.Errorf("delays %v, want %v first", c.delays, want)
		}
		c.wantMaxGap(t, 2000, 20*time.Second)
		if remark := c.budget.warning(); remark != "" {
			t.Errorf("the warning is %q while no query takes turns", remark)
		}
	})
}

func TestTurnsAreAsLongAsTheBoundAllows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const queries = 2000
		c, _ := newPollers(t, 80, queries)
		time.Sleep(time.Minute)
		c.stop()
		if most := 60 * queries / 3; c.queries > most {
			t.Errorf("%d queries were asked %d times in a minute, want at most %d", queries, c.queries, most)
		}
	})
}

func TestACrowdThatGrowsIsStillSeenInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const few, many = 81, 2500
		c, ctx := newPollers(t, 80, few)
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
		c.wantMaxGap(t, many, maxStaleness)
	})
}

func TestALateQueryPreemptsALongPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ctx := newPollers(t, 3, 3)
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
		if c.maxOpen > 3 || c.maxGap[3] > maxStaleness {
			t.Errorf("%d open at once, the late one unasked for %v", c.maxOpen, c.maxGap[3])
		}
	})
}

// One query more and one less, again and again, must not make those that wait
// long give way each time.
func TestTurnsDoNotFlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, ctx := newPollers(t, 80, 80)
		for i := range 10 {
			time.Sleep(10 * time.Second)
			one, leave := context.WithCancel(ctx)
			c.add(one, 80+i)
			time.Sleep(10 * time.Second)
			leave()
		}
		if len(c.delays) != 1 {
			t.Errorf("delays %v, want that turns began once", c.delays)
		}
		c.stop()
	})
}

func TestManyConnectionsNeedNoTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newPollers(t, 0, 1000)
		time.Sleep(time.Second)
		c.stop()
		if c.maxOpen != 1000 || c.queries != 1000 {
			t.Errorf("%d open at once, asked %d times, want all of them, patient", c.maxOpen, c.queries)
		}
	})
}

func TestTheGateLetsSoManyThroughAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := make(readLimiter, maxConcurrentReads)
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
			t.Errorf("entered %s after a place was free", took)
		}
		(<-entered)()
		for _, leave := range leaves[1:] {
			leave()
		}
	})
}

func TestASlowQuestionGivesItsPlaceBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := make(readLimiter, maxConcurrentReads)
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
		g := make(readLimiter, maxConcurrentReads)
		for range maxConcurrentReads {
			if _, err := g.acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		gone := errors.New("not needed any more")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		if _, err := g.acquire(ctx); !errors.Is(err, gone) {
			t.Errorf("%v, want %v", err, gone)
		}
		time.Sleep(readSlotTime) // the places come back
	})
}
