package consul

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// A blocking query that gets no answer looks like one that waits for a change.
// So a small question that does not wait is asked every few seconds, over a
// connection of its own: what it finds is known within the sum of the pause and
// the time that its answer may take.
const (
	watchdogPause   = 4 * time.Second
	watchdogTimeout = 5 * time.Second
	// watchdogRetry is the pause while Consul does not answer.
	watchdogRetry = time.Second
)

// watchdog tells whether Consul answers at all.
type watchdog struct {
	client *Client
	hub    *hub
	// back has a place for the news that Consul answers again.
	back chan struct{}
	// err is why Consul does not answer, nil in it when it does. It is the
	// goroutine's that runs run; others read it.
	err atomic.Pointer[error]
}

var errNotAsked = errors.New("no answer yet")

func newWatchdog(c *Client, h *hub) *watchdog {
	d := &watchdog{client: c, hub: h, back: make(chan struct{}, 1)}
	d.err.Store(&errNotAsked)
	return d
}

// failure returns why Consul does not answer; nil when it does.
func (d *watchdog) failure() error { return *d.err.Load() }

// run asks until ctx ends.
func (d *watchdog) run(ctx context.Context) {
	defer d.client.aside.CloseIdleConnections()
	for ctx.Err() == nil {
		err := d.ask(ctx)
		if ctx.Err() != nil {
			return
		}
		d.learn(err)
		pause := watchdogPause
		if err != nil {
			pause = watchdogRetry
		}
		sleep(ctx, pause)
	}
}

// heartbeat is the watchdog's question: its answer of 2 KiB needs no right.
// Any server may give it, if only it knows a leader.
var heartbeat = query{kind: rootsKind}

func (d *watchdog) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, watchdogTimeout, fmt.Errorf("no answer within %s", watchdogTimeout))
	defer cancel()
	_, err := d.client.send(ctx, d.client.aside, heartbeat, 0, 0)
	return err
}

func (d *watchdog) learn(err error) {
	was := d.failure()
	d.err.Store(&err)
	d.client.metrics.answers(err == nil)
	if was == errNotAsked { //nolint:errorlint // it is the very one
		was = nil
	} else if was != nil && err == nil {
		notify(d.back)
	}
	d.hub.mu.Lock()
	defer d.hub.mu.Unlock()
	d.hub.tell(heartbeat, was, err)
}

// notify puts news into a channel with a place for one.
func notify(news chan<- struct{}) {
	select {
	case news <- struct{}{}:
	default: // the same news is there already
	}
}
