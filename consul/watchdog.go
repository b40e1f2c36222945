package consul

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// A blocking query to a dead Consul looks like one that waits for a change. So the watchdog sends a small non-blocking
// query every few seconds, over a separate connection. It detects an outage within watchdogPause plus watchdogTimeout.
const (
	watchdogPause   = 4 * time.Second
	watchdogTimeout = 5 * time.Second
	watchdogRetry   = time.Second // the pause while Consul does not answer
)

// heartbeat is the watchdog's query. Its response has 2 KiB and needs no permission. Any server that knows a leader can
// answer it.
var heartbeat = query{queryType: rootsType}

// watchdog checks whether Consul answers at all.
type watchdog struct {
	client  *Client
	manager *watchManager
	// recovered receives when Consul answers again. Its capacity is 1.
	recovered chan struct{}
	// err points to the reason why Consul does not answer, or to nil. Only the goroutine of run writes it.
	err atomic.Pointer[error]
}

var errNoAnswerYet = errors.New("no answer yet")

func newWatchdog(c *Client, m *watchManager) *watchdog {
	d := &watchdog{client: c, manager: m, recovered: make(chan struct{}, 1)}
	d.err.Store(&errNoAnswerYet)
	return d
}

// failure returns why Consul does not answer, or nil if it does.
func (d *watchdog) failure() error { return *d.err.Load() }

// run sends the queries until ctx ends.
func (d *watchdog) run(ctx context.Context) {
	defer d.client.watchdogHTTP.CloseIdleConnections()
	for ctx.Err() == nil {
		err := d.query(ctx)
		if ctx.Err() != nil {
			return
		}
		d.record(err)
		pause := watchdogPause
		if err != nil {
			pause = watchdogRetry
		}
		sleep(ctx, pause)
	}
}

func (d *watchdog) query(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, watchdogTimeout, fmt.Errorf("no answer within %s", watchdogTimeout))
	defer cancel()
	_, err := d.client.send(ctx, d.client.watchdogHTTP, heartbeat, 0, 0)
	return err
}

func (d *watchdog) record(err error) {
	was := d.failure()
	d.err.Store(&err)
	d.client.metrics.up.Set(0)
	if err == nil {
		d.client.metrics.up.Set(1)
	}
	if was == errNoAnswerYet { //nolint:errorlint // it is never wrapped
		was = nil
	} else if was != nil && err == nil {
		notify(d.recovered)
	}
	d.manager.mu.Lock()
	defer d.manager.mu.Unlock()
	d.manager.logFailure(heartbeat, was, err)
}

// notify sends on a channel of capacity 1. It never blocks.
func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // a notification is pending already
	}
}
