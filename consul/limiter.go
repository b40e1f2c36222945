package consul

import (
	fifo "container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Over plain HTTP every open query holds a connection, and a default agent
// refuses more than 200 of them from one address
// (https://developer.hashicorp.com/consul/docs/reference/agent/configuration-file/general#http_max_conns_per_client),
// which others on the machine share. An agent keeps the connection of a query
// whose client has gone until the query's wait ends, so there has to be room for
// those of an Usher that was restarted, too.
const (
	plainConnections = 90
	// plainLanes of them are for non-blocking queries.
	plainReserved = 8
	// plainAuthorizations are for ACL checks of Envoys' tokens. Unknown callers
	// cannot delay the watches by such checks.
	plainAuthorizations = 8
	// plainWatchdog is for the watchdog.
	plainWatchdog = 1
	// plainSlots are for blocking queries.
	plainShared = plainConnections - plainReserved - plainAuthorizations - plainWatchdog
	plainWait   = 30 * time.Second
)

const (
	// staleBound is how long a change may go unseen, at most, where queries
	// have to take turns.
	delayBound = 5 * time.Second
	// shortestTurn bounds the load on Consul instead, where that would need
	// turns shorter than this.
	shortestTurn = 100 * time.Millisecond
)

// within is how long a round of turns may take for a bound to be kept also when
// the machine is busy.
func roundTime(bound time.Duration) time.Duration { return bound * 8 / 10 }

// connections says how many connections the client may hold open at once; 0
// means any number: over TLS, HTTP/2 carries the queries over a few, and Consul
// does not count those of a unix socket.
func (c *Client) connections() int {
	if c.address.scheme == "http" {
		return plainConnections
	}
	return 0
}

// newBudget makes the budget of a client whose queries wait for at most so long.
func newConnectionLimiter(c *Client, long time.Duration) *connectionLimiter {
	b := &connectionLimiter{longWait: long, onDelay: c.logDelay, onSharing: c.metrics.setSharing}
	if c.connections() > 0 {
		b.shared.size, b.reserved.size = plainShared, plainReserved
	}
	return b
}

// cure is what the log and the status say of queries that take turns.
const httpsHint = "reach Consul over https:// to see every change at once"

// sayLate tells the operator that queries take turns, and how late a change may
// be seen because of that; 0 says that they no longer do.
func (c *Client) logDelay(late time.Duration) {
	if late == 0 {
		c.logger.Info("there are connections enough for every query again", "consul", c.Address())
		return
	}
	c.logger.Warn("there are more queries than connections that Consul's agent allows over plain HTTP, so they take turns: "+
		"a change may be seen late; "+httpsHint,
		"consul", c.Address(), "connections", plainConnections, "late", late)
}

// errGaveWay is why a query was cut off that another one needed the connection
// of. It is no failure.
var errPreempted = errors.New("gave way to another query")

// budget shares a number of connections among more queries. As long as there
// are enough, every query keeps its own and waits for a change as long as it
// likes. When there are not, the queries take turns, in the order in which they
// asked, and none goes unasked for longer than the bound that the log was told.
type connectionLimiter struct {
	shared    pool                // for queries that wait for a change; of size 0: any number
	reserved  pool                // for first reads, which do not wait
	longWait  time.Duration       // how long a query waits when it need not take turns
	onDelay   func(time.Duration) // told when late changes; may be nil
	onSharing func(int)           // told how many queries take turns; may be nil

	mu        sync.Mutex
	users     int           // queries that share the slots
	delay     time.Duration // how late a change may be seen because of turns; 0: there are none
	overshoot time.Duration // how much longer than its wait a turn takes, on average
	waiters   fifo.List     // of *ticket
	longPolls fifo.List     // of context.CancelCauseFunc: open queries that wait long
}

// pool is a number of connections.
type pool struct{ size, open int }

func (p *pool) full() bool { return p.open >= p.size }

// ticket is a query's place in the queue.
type waiter struct {
	first   bool
	granted chan *pool // of capacity 1: the pool that it got a connection of
}

// join adds a query to those that share, leave removes it.
func (b *connectionLimiter) join()  { b.addUsers(1) }
func (b *connectionLimiter) leave() { b.addUsers(-1) }

func (b *connectionLimiter) addUsers(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.users += n
	late := b.maxDelay()
	// One query more and one less must not end all turns and begin them again:
	// what gives way costs a connection that the agent keeps for a while.
	if late == 0 && b.delay > 0 && b.users > b.shared.size*9/10 {
		late = delayBound
	}
	if late != b.delay && b.onDelay != nil {
		b.onDelay(late)
	}
	b.delay = late
	if b.onSharing != nil {
		b.onSharing(b.sharing())
	}
}

// bound says how late a change may be seen, in doublings of staleBound.
func (b *connectionLimiter) maxDelay() time.Duration {
	if b.shared.size == 0 || b.users <= b.shared.size {
		return 0
	}
	round := shortestTurn * time.Duration(b.users+b.shared.size) / time.Duration(b.shared.size)
	late := delayBound
	for roundTime(late) < round {
		late *= 2
	}
	return late
}

// takers gives how many queries take turns.
func (b *connectionLimiter) sharing() int {
	if b.delay == 0 {
		return 0
	}
	return b.users
}

// remark says, for the status, that queries take turns; "" if they do not.
func (b *connectionLimiter) warning() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.delay == 0 {
		return ""
	}
	return fmt.Sprintf("%d queries to Consul share %d connections over plain HTTP, so a change may be seen up to %v late: %s",
		b.users, b.shared.size, b.delay, httpsHint)
}

// ask asks when it is the query's turn, and tells it how long it may wait. A
// first read does not wait for a change, and so for no turn of others.
func (b *connectionLimiter) do(ctx context.Context, first bool, ask func(context.Context, time.Duration) (answer, error)) (answer, error) {
	for {
		from, err := b.acquire(ctx, first)
		if err != nil {
			return answer{}, err
		}
		turn, cancel := context.WithCancelCause(ctx)
		wait, forget := b.waitTime(first, cancel)
		begin := time.Now()
		a, err := ask(turn, wait)
		b.recordOvershoot(wait, time.Since(begin))
		gaveWay := errors.Is(context.Cause(turn), errPreempted)
		cancel(nil)
		forget()
		b.release(from)
		if err == nil || !gaveWay {
			return a, err
		}
	}
}

// acquire waits for a connection. Whoever waits makes the query that has been
// patient for longest give way.
func (b *connectionLimiter) acquire(ctx context.Context, first bool) (*pool, error) {
	b.mu.Lock()
	if p := b.freePool(first); p != nil {
		p.open++
		b.mu.Unlock()
		return p, nil
	}
	t := &waiter{first: first, granted: make(chan *pool, 1)}
	place := b.waiters.PushBack(t)
	if oldest := b.longPolls.Front(); oldest != nil {
		b.longPolls.Remove(oldest)
		oldest.Value.(context.CancelCauseFunc)(errPreempted)
	}
	b.mu.Unlock()
	select {
	case p := <-t.granted:
		return p, nil
	case <-ctx.Done():
		b.cancelWaiter(place)
		return nil, context.Cause(ctx)
	}
}

// free gives the pool that has a connection for who comes now; nil if others
// wait for it or there is none.
func (b *connectionLimiter) freePool(first bool) *pool {
	switch {
	case b.shared.size == 0:
		return &b.shared
	case first && !b.reserved.full():
		return &b.reserved
	case !b.shared.full() && b.waiters.Len() == 0:
		return &b.shared
	}
	return nil
}

// abandon leaves the queue, and gives a connection back that came at the same
// moment.
func (b *connectionLimiter) cancelWaiter(place *fifo.Element) {
	b.mu.Lock()
	t := b.waiters.Remove(place).(*waiter)
	b.mu.Unlock()
	select {
	case p := <-t.granted:
		b.release(p)
	default:
	}
}

// release gives a connection to who has waited for it for longest.
func (b *connectionLimiter) release(p *pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p.open--
	for e := b.waiters.Front(); e != nil; e = e.Next() {
		if t := e.Value.(*waiter); t.first || p == &b.shared {
			b.waiters.Remove(e)
			p.open++
			t.granted <- p
			return
		}
	}
}

// terms gives how long an open query may wait. One that waits long can be made
// to give way by cancel, until forget is called.
func (b *connectionLimiter) waitTime(first bool, cancel context.CancelCauseFunc) (wait time.Duration, forget func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case first:
		return b.longWait, func() {}
	case b.delay > 0:
		return b.turnTime(), func() {}
	}
	place := b.longPolls.PushBack(cancel)
	return withJitter(b.longWait), func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.longPolls.Remove(place)
	}
}

// turn gives how long a query may hold its connection that begins now. In a crowd
// that stays as it is, all turns are equal. Whoever joins one that grows may also
// have to wait for turns that were given when it was small.
func (b *connectionLimiter) turnTime() time.Duration {
	round, slots, users := roundTime(delayBound), time.Duration(b.shared.size), time.Duration(b.users)
	turn := min(round*slots/(users+slots), delayBound-round)
	return min(max(turn-b.overshoot, shortestTurn), b.longWait)
}

// learn takes note of how much longer than its wait a turn took: Consul adds up to
// a sixteenth, and it and the machine may be slow. A query that was answered before
// its wait was over tells nothing.
func (b *connectionLimiter) recordOvershoot(wait, took time.Duration) {
	const memory = 32 // turns
	if took < wait || wait > delayBound {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.overshoot += (took - wait - b.overshoot) / memory
}

// spreadOut gives a wait of at most so long, and at least half of it. Queries that
// began together would otherwise end together, too, again and again.
func withJitter(long time.Duration) time.Duration { return long - rand.N(long/2) }

// A gateway with thousands of services asks thousands of questions when it
// begins to be watched. Over HTTP/2 a connection carries hundreds at a time, but
// while there is none yet, Go's client dials one for every question that waits:
// the handshakes took longer than all the answers.
const (
	// questionsAtOnce is how many questions that do not block are under way at
	// a time.
	maxConcurrentReads = 16
	// questionTime is after how long a question counts no more: it waits for
	// something else than Consul's agent, such as another datacenter.
	readSlotTime = 100 * time.Millisecond
)

// gate lets a number of questions through at a time.
type readLimiter chan struct{}

func newReadLimiter() readLimiter { return make(readLimiter, maxConcurrentReads) }

// enter waits for a place, and gives what gives it back. That may be called at
// any time; after a while the place is given back without it.
func (g readLimiter) acquire(ctx context.Context) (leave func(), err error) {
	select {
	case g <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	once := sync.OnceFunc(func() { <-g })
	late := time.AfterFunc(readSlotTime, once)
	return func() {
		late.Stop()
		once()
	}, nil
}
