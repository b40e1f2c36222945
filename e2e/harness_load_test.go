//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The load: half of the requests on connections of their own, half on
// connections that are kept alive.
const (
	loadPrefix   = "/load/"
	loadRate     = 200 // requests a second
	loadKept     = 10  // connections that are kept alive
	loadInFlight = 500 // new connections at once: what comes in before the first one is given up
)

// load is traffic from a host that runs beside the rest of a test.
type load struct {
	target call
	rate   int // requests a second
	cancel context.CancelFunc
	work   sync.WaitGroup
	start  time.Time
	slots  chan struct{}
	paths  atomic.Int64 // how many there are so far

	mu       sync.Mutex
	sent     int
	slowest  time.Duration
	failures []loadFailure
	answered []loadRequest
}

// loadRequest is a request that was answered 200.
type loadRequest struct {
	Path           string
	Opened, Served time.Time // of its connection: begun, and the first answer
}

// loadFailure is a request that was not answered 200.
type loadFailure struct {
	After time.Duration // since the start of the load
	Took  time.Duration
	Path  string // no other request of the load has it
	Kept  bool   // on a connection that had been used before
	Cause string
}

func (f loadFailure) String() string {
	return fmt.Sprintf("%8.3fs %s: %s", f.After.Seconds(), f.kind(), f.Cause)
}

func (f loadFailure) kind() string {
	if f.Kept {
		return "kept connection"
	}
	return "new connection"
}

// startLoad sends the call, with paths of its own, until stop or the test's
// end.
func startLoad(t *testing.T, target call) *load {
	t.Helper()
	return startLoadAt(t, target, loadRate)
}

// startLoadAt is startLoad with another number of requests a second.
func startLoadAt(t *testing.T, target call, rate int) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{target: target, rate: rate, cancel: cancel, start: time.Now(), slots: make(chan struct{}, loadInFlight)}
	l.work.Go(func() { l.newConnections(ctx) })
	for i := range loadKept {
		l.work.Go(func() { l.keptConnection(ctx, i) })
	}
	t.Cleanup(l.stop)
	return l
}

// stop ends the load and waits for the requests in flight.
func (l *load) stop() {
	l.cancel()
	l.work.Wait()
}

// waitMore waits until more requests have their answer, so that what was changed
// has been under load for a while.
func (l *load) waitMore(t *testing.T) {
	t.Helper()
	n := l.rate / 2
	begin := l.count()
	eventually(t, fmt.Sprintf("%d more requests", n), startDeadline, func() error {
		if sent := l.count() - begin; sent < n {
			return fmt.Errorf("%d so far", sent)
		}
		return nil
	})
}

// count is how many requests have their answer.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent
}

// wantNoFailures stops the load, prints every failure and fails the test if
// there was one.
func (l *load) wantNoFailures(t *testing.T) {
	t.Helper()
	l.stop()
	t.Logf("load: %d requests in %.1fs, slowest %v, %d failures",
		l.sent, time.Since(l.start).Seconds(), l.slowest.Round(time.Millisecond), len(l.failures))
	for _, failure := range l.failures {
		t.Errorf("load: %v", failure)
	}
	if l.sent == 0 {
		t.Error("load: nothing was sent")
	}
}

// newConnections sends half of the load, each request on a new connection. It
// keeps its pace however slow the answers are.
func (l *load) newConnections(ctx context.Context) {
	l.everyTick(ctx, time.Second*2/time.Duration(l.rate), 0, func() {
		select {
		case l.slots <- struct{}{}:
		default:
			l.record(l.next(), nil, time.Now(), fmt.Errorf("not sent: %d requests wait for an answer", loadInFlight))
			return
		}
		l.work.Go(func() {
			defer func() { <-l.slots }()
			c, begin := l.next(), time.Now()
			conn, err := once(c)
			l.record(c, conn, begin, err)
		})
	})
}

// next is the next request, with a path of its own.
func (l *load) next() call {
	c := l.target
	c.Path = fmt.Sprint(loadPrefix, l.paths.Add(1))
	return c
}

// once makes a request on a new connection.
func once(c call) (*clientConn, error) {
	conn, err := c.connect(context.Background())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn, conn.exchangeOK(c, "close")
}

// keptConnection sends its share of the load on one connection for as long as
// the gateway lets it. A connection that the gateway has closed between two
// requests is no failure; one that ends before the answer is.
func (l *load) keptConnection(ctx context.Context, index int) {
	share := time.Duration(l.rate / 2 / loadKept)
	var conn *clientConn
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	l.everyTick(ctx, time.Second/share, time.Duration(index)*time.Second/share/loadKept, func() {
		c, begin := l.next(), time.Now()
		if conn != nil && conn.endedByPeer() {
			conn.Close()
			conn = nil
		}
		var err error
		if conn == nil {
			conn, err = c.connect(context.Background())
		}
		if err == nil {
			err = conn.exchangeOK(c, "keep-alive")
		}
		l.record(c, conn, begin, err)
		if conn != nil && (err != nil || conn.last) {
			conn.Close()
			conn = nil
		}
	})
}

// exchangeOK makes one request; an answer other than 200 is an error.
func (conn *clientConn) exchangeOK(c call, connection string) error {
	got, err := conn.exchange(c, connection)
	if err == nil && got.Status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", got.Status, strings.TrimSpace(got.Body))
	}
	return err
}

// everyTick calls f at a fixed pace until ctx ends, the first time after delay.
func (l *load) everyTick(ctx context.Context, interval, delay time.Duration, f func()) {
	for next := l.start.Add(delay); ; next = next.Add(interval) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(next)):
			f()
		}
	}
}

// endedByPeer looks, between two requests, whether the peer has closed.
func (conn *clientConn) endedByPeer() bool {
	if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return true
	}
	_, err := conn.reader.Peek(1)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// record notes what came of a request; conn is nil where there was no connection.
func (l *load) record(c call, conn *clientConn, begin time.Time, err error) {
	took := time.Since(begin)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent++
	l.slowest = max(l.slowest, took)
	if err != nil {
		kept := conn != nil && !conn.served.IsZero() && conn.served.Before(begin)
		l.failures = append(l.failures, loadFailure{
			After: begin.Sub(l.start), Took: took, Path: c.Path, Kept: kept, Cause: err.Error(),
		})
		return
	}
	l.answered = append(l.answered, loadRequest{Path: c.Path, Opened: conn.opened, Served: conn.served})
}
