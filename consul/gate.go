package consul

import (
	"context"
	"sync"
	"time"
)

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
