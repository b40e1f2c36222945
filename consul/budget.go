package consul

import (
	fifo "container/list"
	"context"
	"errors"
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
	plainWait        = 30 * time.Second
)

const (
	// staleBound is how long a change may go unseen, at most, where queries
	// have to take turns.
	staleBound = 5 * time.Second
	// shortestTurn bounds the load on Consul instead, where that would need
	// turns shorter than this.
	shortestTurn = 100 * time.Millisecond
)

// connections says how many connections the client may hold open at once; 0
// means any number: over TLS, HTTP/2 carries the queries over a few, and Consul
// does not count those of a unix socket.
func (c *Client) connections() int {
	if c.address.scheme == "http" {
		return plainConnections
	}
	return 0
}

// sayCrowded tells the operator that queries take turns.
func (c *Client) sayCrowded(crowded bool) {
	if !crowded {
		c.logger.Info("there are connections enough for every query again", "consul", c.Address())
		return
	}
	c.logger.Warn("there are more queries than connections that Consul's agent allows over plain HTTP, so they take turns: "+
		"a change may be seen late; reach Consul over https:// to see every change at once",
		"consul", c.Address(), "connections", plainConnections, "late", staleBound)
}

// errGaveWay is why a query was cut off that another one needed the connection
// of. It is no failure.
var errGaveWay = errors.New("gave way to another query")

// budget shares a number of connections among more queries. As long as there
// are enough, every query keeps its own and waits for a change as long as it
// likes. When there are not, the queries take turns, in the order in which they
// asked, and none goes unasked for longer than about staleBound.
type budget struct {
	slots int           // how many queries may be open; 0: any number
	long  time.Duration // how long a query waits when it need not take turns

	mu      sync.Mutex
	users   int        // queries that share the slots
	open    int        // queries that have one
	queue   fifo.List  // of chan struct{}, closed when its owner gets a slot
	patient fifo.List  // of context.CancelCauseFunc: open queries that wait long
	crowded func(bool) // told when turns begin and end
}

// join adds a query to those that share, leave removes it.
func (b *budget) join()  { b.share(1) }
func (b *budget) leave() { b.share(-1) }

func (b *budget) share(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.takesTurns()
	b.users += n
	if after := b.takesTurns(); after != before && b.crowded != nil {
		b.crowded(after)
	}
}

func (b *budget) takesTurns() bool { return b.slots > 0 && b.users > b.slots }

// ask asks when it is the query's turn, and tells it how long it may wait.
func (b *budget) ask(ctx context.Context, ask func(context.Context, time.Duration) (answer, error)) (answer, error) {
	for {
		if err := b.acquire(ctx); err != nil {
			return answer{}, err
		}
		turn, cancel := context.WithCancelCause(ctx)
		wait, forget := b.terms(cancel)
		a, err := ask(turn, wait)
		gaveWay := errors.Is(context.Cause(turn), errGaveWay)
		cancel(nil)
		forget()
		b.release()
		if err == nil || !gaveWay {
			return a, err
		}
	}
}

// acquire waits for a slot. Whoever waits makes the query that has been patient
// for longest give way.
func (b *budget) acquire(ctx context.Context) error {
	b.mu.Lock()
	if b.slots == 0 || b.open < b.slots && b.queue.Len() == 0 {
		b.open++
		b.mu.Unlock()
		return nil
	}
	granted := make(chan struct{})
	place := b.queue.PushBack(granted)
	if oldest := b.patient.Front(); oldest != nil {
		b.patient.Remove(oldest)
		oldest.Value.(context.CancelCauseFunc)(errGaveWay)
	}
	b.mu.Unlock()
	select {
	case <-granted:
		return nil
	case <-ctx.Done():
		b.abandon(place, granted)
		return context.Cause(ctx)
	}
}

// abandon leaves the queue, and gives a slot back that came at the same moment.
func (b *budget) abandon(place *fifo.Element, granted chan struct{}) {
	b.mu.Lock()
	b.queue.Remove(place)
	b.mu.Unlock()
	select {
	case <-granted:
		b.release()
	default:
	}
}

// release gives a slot to who has waited for longest.
func (b *budget) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := b.queue.Front()
	if next == nil {
		b.open--
		return
	}
	close(b.queue.Remove(next).(chan struct{}))
}

// terms gives how long an open query may wait. One that waits long can be made
// to give way by cancel, until forget is called.
func (b *budget) terms(cancel context.CancelCauseFunc) (wait time.Duration, forget func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.takesTurns() {
		// Half of the bound: whoever comes to a crowd that grows also waits
		// for turns that began when they were longer.
		turn := staleBound / 2 * time.Duration(b.slots) / time.Duration(b.users)
		return min(b.long, max(turn, shortestTurn)), func() {}
	}
	place := b.patient.PushBack(cancel)
	return b.long, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.patient.Remove(place)
	}
}
