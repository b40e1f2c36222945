package consul

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/usherproxy/usher/internal/inflight"
)

// Over plain HTTP every open query holds a connection. A default agent refuses more than 200 of them from one address,
// which other processes on the machine may use, too
// (https://developer.hashicorp.com/consul/docs/reference/agent/configuration-file/general#http_max_conns_per_client).
// If a client closes the connection of a query, the agent keeps it until the query's wait ends. So there has to be room
// for those of an Usher that was restarted.
const (
	plainConnections    = 90
	plainReserved       = 8 // for queries that do not block
	plainAuthorizations = 8 // for ACL checks of Envoys' tokens, so that they never delay the watches
	plainWatchdog       = 1
	plainShared         = plainConnections - plainReserved - plainAuthorizations - plainWatchdog // for queries that block
	plainWait           = 30 * time.Second
)

const (
	// maxStaleness is how late a change is seen, at most, while queries take turns.
	maxStaleness = 5 * time.Second
	// shortestTurn bounds the load on Consul. If maxStaleness needs shorter turns than that, it does not hold.
	shortestTurn = 100 * time.Millisecond
)

// rotationTime is how long it may take until each query has had a turn. It leaves some of the bound for a busy machine.
func rotationTime(bound time.Duration) time.Duration { return bound * 8 / 10 }

// maxConnections returns how many connections the client may have open at once; 0 means any number. With TLS, HTTP/2
// sends all queries over a few connections. Consul does not limit those of a unix socket. It does not change with the
// address in use: one that is plain HTTP is enough.
func (c *Client) maxConnections() int {
	if c.targets.any(isPlain) {
		return plainConnections
	}
	return 0
}

// newConnectionLimiter returns a limiter for a client whose queries wait for longWait at most.
func newConnectionLimiter(c *Client, longWait time.Duration) *connectionLimiter {
	l := &connectionLimiter{
		longWait: longWait, onDelay: c.logDelay,
		onSharing: func(queries int) { c.metrics.sharing.Set(float64(queries)) },
	}
	if c.maxConnections() > 0 {
		l.shared.size, l.reserved.size = plainShared, plainReserved
	}
	return l
}

// httpsHint is what to do about queries that take turns.
const httpsHint = "use https:// for Consul to see every change at once"

// logDelay logs that queries take turns, and how late a change may be seen because of that; 0: they no longer do.
func (c *Client) logDelay(delay time.Duration) {
	if delay == 0 {
		c.logger.Info("every query to consul has its own connection again", "consul", c.Address())
		return
	}
	c.logger.Warn("too few connections for all queries over plain HTTP, so queries take turns: changes may be seen late; "+httpsHint,
		"consul", c.Address(), "connections", plainConnections, "late", delay)
}

// errPreempted cancels a query whose connection another one needs. It is not a failure.
var errPreempted = interruption("another query needs the connection")

// connectionLimiter shares a number of connections among more queries. As long as there are enough, every query keeps
// its own and waits for a change for longWait. If not, the queries take turns in the order in which they come, so that
// none is without a connection for longer than the bound that onDelay was called with.
type connectionLimiter struct {
	shared    pool                // for queries that block; of size 0: any number
	reserved  pool                // for first reads, which do not block
	longWait  time.Duration       // how long a query waits if none takes turns
	onDelay   func(time.Duration) // called when delay changes
	onSharing func(int)           // called with the number of queries that take turns

	mu          sync.Mutex
	users       int           // queries that use the shared connections
	delay       time.Duration // how late a change may be seen because of turns; 0: there are none
	waitOverrun time.Duration // how much longer than its wait a turn takes, on average
	waiters     list.List     // of *waiter
	blocking    list.List     // of context.CancelCauseFunc: open queries that wait for longWait
}

// pool is a number of connections.
type pool struct{ size, open int }

func (p *pool) full() bool { return p.open >= p.size }

// waiter is a query that waits for a connection.
type waiter struct {
	first   bool
	granted chan *pool // receives the pool of its connection; of capacity 1
}

// addUsers adds n queries to the users of the shared connections, or removes them if n is negative.
func (l *connectionLimiter) addUsers(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users += n
	delay := l.maxDelay()
	// One query more and one less must not end all turns and begin them again: each query that is preempted costs a
	// connection that the agent keeps for a while.
	if delay == 0 && l.delay > 0 && l.users > l.shared.size*9/10 {
		delay = maxStaleness
	}
	if delay != l.delay {
		l.onDelay(delay)
	}
	l.delay = delay
	sharing := 0
	if delay > 0 {
		sharing = l.users
	}
	l.onSharing(sharing)
}

// maxDelay returns how late a change may be seen: 0, or maxStaleness or a doubling of it.
func (l *connectionLimiter) maxDelay() time.Duration {
	if l.shared.size == 0 || l.users <= l.shared.size {
		return 0
	}
	rotation := shortestTurn * time.Duration(l.users+l.shared.size) / time.Duration(l.shared.size)
	delay := maxStaleness
	for rotationTime(delay) < rotation {
		delay *= 2
	}
	return delay
}

// warning returns a line for the status if queries take turns, else "".
func (l *connectionLimiter) warning() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.delay == 0 {
		return ""
	}
	return fmt.Sprintf("%d queries to Consul share %d connections over plain HTTP, so changes may be seen up to %v late: %s",
		l.users, l.shared.size, l.delay, httpsHint)
}

// do calls send when a connection is free, with the time that the query may wait for a change. A first read does not
// wait for a change, and so for no turn of others.
func (l *connectionLimiter) do(
	ctx context.Context, first bool, send func(context.Context, time.Duration) (response, error),
) (response, error) {
	for {
		p, err := l.acquire(ctx, first)
		if err != nil {
			return response{}, err
		}
		turn, cancel := context.WithCancelCause(ctx)
		wait, end := l.begin(first, cancel)
		began := time.Now()
		r, err := send(turn, wait)
		l.recordOverrun(wait, time.Since(began))
		preempted := errors.Is(context.Cause(turn), errPreempted)
		cancel(nil)
		end()
		l.release(p)
		if err == nil || !preempted {
			return r, err
		}
	}
}

// acquire waits for a connection. A query that has to wait preempts the blocking one that has been open for longest.
func (l *connectionLimiter) acquire(ctx context.Context, first bool) (*pool, error) {
	l.mu.Lock()
	if p := l.freePool(first); p != nil {
		p.open++
		l.mu.Unlock()
		return p, nil
	}
	w := &waiter{first: first, granted: make(chan *pool, 1)}
	place := l.waiters.PushBack(w)
	if oldest := l.blocking.Front(); oldest != nil {
		l.blocking.Remove(oldest)
		oldest.Value.(context.CancelCauseFunc)(errPreempted)
	}
	l.mu.Unlock()
	select {
	case p := <-w.granted:
		return p, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	l.waiters.Remove(place)
	l.mu.Unlock()
	select {
	case p := <-w.granted: // at the same moment
		l.release(p)
	default:
	}
	return nil, context.Cause(ctx)
}

// freePool returns the pool that has a connection for a new query; nil if there is none, or if others wait for it.
func (l *connectionLimiter) freePool(first bool) *pool {
	switch {
	case l.shared.size == 0:
		return &l.shared
	case first && !l.reserved.full():
		return &l.reserved
	case !l.shared.full() && l.waiters.Len() == 0:
		return &l.shared
	}
	return nil
}

// release gives a connection to the query that has waited for longest.
func (l *connectionLimiter) release(p *pool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.open--
	for e := l.waiters.Front(); e != nil; e = e.Next() {
		if w := e.Value.(*waiter); w.first || p == &l.shared {
			l.waiters.Remove(e)
			p.open++
			w.granted <- p
			return
		}
	}
}

// begin returns how long a query may wait. One that takes no turns can be preempted by cancel, until end is called.
func (l *connectionLimiter) begin(first bool, cancel context.CancelCauseFunc) (wait time.Duration, end func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case first:
		return l.longWait, func() {}
	case l.delay > 0:
		return l.turnTime(), func() {}
	}
	place := l.blocking.PushBack(cancel)
	// Queries that began together would otherwise end together, again and again.
	return l.longWait - rand.N(l.longWait/2), func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.blocking.Remove(place)
	}
}

// turnTime returns how long a query that begins now may hold its connection. While the number of queries stays the
// same, all turns are equal. If it grows, a new query may also have to wait for turns that began when there were fewer.
func (l *connectionLimiter) turnTime() time.Duration {
	rotation, connections, users := rotationTime(maxStaleness), time.Duration(l.shared.size), time.Duration(l.users)
	turn := min(rotation*connections/(users+connections), maxStaleness-rotation)
	return min(max(turn-l.waitOverrun, shortestTurn), l.longWait)
}

// recordOverrun records how much longer than its wait a turn took: Consul adds up to a sixteenth, and it and the machine
// may be slow. A query that was answered before its wait was over shows nothing.
func (l *connectionLimiter) recordOverrun(wait, took time.Duration) {
	const turns = 32 // that the average is over
	if took < wait || wait > maxStaleness {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waitOverrun += (took - wait - l.waitOverrun) / turns
}

// readLimiter bounds how many queries that do not block run at a time. A gateway with thousands of services sends
// thousands of them when its watch begins. HTTP/2 carries hundreds of them on a connection. But while there is none
// yet, Go's client dials one for every query that waits, and the handshakes take longer than all the responses.
type readLimiter chan struct{}

const (
	maxConcurrentReads = 16
	// readSlotTime is after how long a query no longer counts: it most likely waits for something other than Consul's
	// agent, such as another datacenter.
	readSlotTime = 100 * time.Millisecond
)

// acquire waits until a query may run. After readSlotTime its place is free again, even without release.
func (l readLimiter) acquire(ctx context.Context) (release func(), err error) {
	release, err = inflight.Limit(l).Acquire(ctx)
	if err == nil {
		time.AfterFunc(readSlotTime, release)
	}
	return release, err
}
