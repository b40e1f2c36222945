//go:build e2e

package lab

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

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The load: half of the requests on connections of their own, half on
// connections that are kept alive.
const (
	LoadPrefix   = "/load/"
	loadRate     = 200  // requests a second
	loadKept     = 10   // connections that are kept alive; of a small load fewer
	loadInFlight = 2000 // new connections at once: as many as begin within RequestTimeout
)

// Load is traffic from a host that runs beside the rest of a test.
type Load struct {
	Target  Request
	Rate    int // requests a second
	once    func(Request) (*ClientConn, error)
	cancel  context.CancelFunc
	work    sync.WaitGroup
	Started time.Time
	slots   chan struct{}
	Paths   atomic.Int64 // how many there are so far

	Mu       sync.Mutex
	sent     int
	slowest  time.Duration
	Failures []LoadFailure
	Answered []LoadRequest
}

// LoadRequest is a request that was answered 200.
type LoadRequest struct {
	Path           string
	Opened, Served time.Time // of its connection: begun, and the first answer
}

// LoadFailure is a request that was not answered 200.
type LoadFailure struct {
	After time.Duration // since the start of the load
	Took  time.Duration
	Path  string // no other request of the load has it
	Kept  bool   // on a connection that had been used before
	Cause string
}

// endOf returns when a failed request ended.
func (l *Load) endOf(f LoadFailure) time.Time { return l.Started.Add(f.After + f.Took) }

func (f LoadFailure) String() string {
	return fmt.Sprintf("%8.3fs %s: %s", f.After.Seconds(), f.connection(), f.Cause)
}

func (f LoadFailure) connection() string {
	if f.Kept {
		return "kept connection"
	}
	return "new connection"
}

// StartLoad sends the request, each time with another path, until Stop or the end of
// the test.
func StartLoad(t *testing.T, target Request) *Load {
	t.Helper()
	return StartLoadAt(t, target, loadRate)
}

// StartLoadAt is StartLoad with another number of requests a second.
func StartLoadAt(t *testing.T, target Request, rate int) *Load {
	t.Helper()
	l, ctx := newLoad(t, target, rate, once)
	l.work.Go(func() { l.newConnections(ctx, rate/2) })
	kept := min(loadKept, rate/4)
	for i := range kept {
		l.work.Go(func() { l.keptConnection(ctx, i, kept) })
	}
	return l
}

// StartTCPLoad makes exchanges over TCP, each on a new connection, until Stop or
// the end of the test. An exchange fails if check does.
func StartTCPLoad(t *testing.T, target TCPExchange, rate int, check func(data, client string) error) *Load {
	t.Helper()
	l, ctx := newLoad(t, Request{From: target.From, To: target.To}, rate, func(Request) (*ClientConn, error) {
		data, client, err := target.Do(context.Background())
		if err == nil {
			err = check(data, client)
		}
		return nil, err
	})
	l.work.Go(func() { l.newConnections(ctx, rate) })
	return l
}

func newLoad(t *testing.T, target Request, rate int, once func(Request) (*ClientConn, error)) (*Load, context.Context) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{Target: target, Rate: rate, once: once, cancel: cancel, Started: time.Now(), slots: make(chan struct{}, loadInFlight)}
	t.Cleanup(l.Stop)
	return l, ctx
}

// Stop ends the load and waits for the requests in flight.
func (l *Load) Stop() {
	l.cancel()
	l.work.Wait()
}

// WaitMore waits until half a second's requests more have their answer.
func (l *Load) WaitMore(t *testing.T) {
	t.Helper()
	l.WaitFor(t, time.Second/2)
}

// WaitFor waits until as many requests more have their answer as the load sends in a time.
func (l *Load) WaitFor(t *testing.T, d time.Duration) {
	t.Helper()
	WaitForAll(t, []*Load{l}, d)
}

// WaitForAll is WaitFor for several loads at once.
func WaitForAll(t *testing.T, loads []*Load, d time.Duration) {
	t.Helper()
	want := map[*Load]int{}
	for _, l := range loads {
		want[l] = l.count() + int(float64(l.Rate)*d.Seconds())
	}
	testprocess.Eventually(t, fmt.Sprintf("the requests of %v have their answers", d), d+testprocess.StartDeadline, func() error {
		for l, n := range want {
			if missing := n - l.count(); missing > 0 {
				return fmt.Errorf("%d are missing", missing)
			}
		}
		return nil
	})
}

// count is how many requests have their answer.
func (l *Load) count() int {
	l.Mu.Lock()
	defer l.Mu.Unlock()
	return l.sent
}

// WantNoFailures stops the load, prints every failure and fails the test if
// there was one.
func (l *Load) WantNoFailures(t *testing.T) {
	t.Helper()
	l.Stop()
	t.Logf("load: %d requests in %.1fs, slowest %v, %d failures",
		l.sent, time.Since(l.Started).Seconds(), l.slowest.Round(time.Millisecond), len(l.Failures))
	for _, failure := range l.Failures {
		t.Errorf("load: %v", failure)
	}
	if l.sent == 0 {
		t.Error("load: nothing was sent")
	}
}

// newConnections sends requests at a rate, each on a new connection. It keeps its rate
// however slow the answers are.
func (l *Load) newConnections(ctx context.Context, rate int) {
	l.everyTick(ctx, time.Second/time.Duration(rate), 0, func() {
		select {
		case l.slots <- struct{}{}:
		default:
			l.record(l.next(), nil, time.Now(), fmt.Errorf("not sent: %d requests wait for an answer", loadInFlight))
			return
		}
		l.work.Go(func() {
			defer func() { <-l.slots }()
			c, begin := l.next(), time.Now()
			conn, err := l.once(c)
			l.record(c, conn, begin, err)
		})
	})
}

// next returns the next request, with a unique path.
func (l *Load) next() Request {
	c := l.Target
	c.Path = fmt.Sprint(LoadPrefix, l.Paths.Add(1))
	return c
}

// once makes one request on a new connection.
func once(c Request) (*ClientConn, error) {
	conn, err := c.Connect(context.Background())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn, conn.RoundTripOK(c, "close")
}

// keptConnection sends its share of the load on one connection for as long as
// the gateway lets it. It is one of several. A connection that the gateway has closed between two
// requests is no failure; one that ends before the answer is.
func (l *Load) keptConnection(ctx context.Context, index, of int) {
	share := time.Duration(l.Rate / 2 / of)
	var conn *ClientConn
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	l.everyTick(ctx, time.Second/share, time.Duration(index)*time.Second/share/time.Duration(of), func() {
		c, begin := l.next(), time.Now()
		if conn != nil && conn.ClosedByServer() {
			conn.Close()
			conn = nil
		}
		var err error
		if conn == nil {
			conn, err = c.Connect(context.Background())
		}
		if err == nil {
			err = conn.RoundTripOK(c, "keep-alive")
		}
		l.record(c, conn, begin, err)
		if conn != nil && (err != nil || conn.last) {
			conn.Close()
			conn = nil
		}
	})
}

// RoundTripOK makes one request; an answer other than 200, or with another body than the
// request wants, is an error.
func (conn *ClientConn) RoundTripOK(c Request, connection string) error {
	got, err := conn.RoundTrip(c, connection)
	if err == nil && got.Status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", got.Status, strings.TrimSpace(got.Body))
	}
	if err == nil && c.WantBody != "" && got.Body != c.WantBody {
		err = fmt.Errorf("the answer is %q, want %q", got.Body, c.WantBody)
	}
	return err
}

// everyTick calls f at a fixed pace until ctx ends, the first time after delay.
func (l *Load) everyTick(ctx context.Context, interval, delay time.Duration, f func()) {
	for next := l.Started.Add(delay); ; next = next.Add(interval) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(next)):
			f()
		}
	}
}

// ClosedByServer reports, between two requests, whether the server has closed the
// connection.
func (conn *ClientConn) ClosedByServer() bool {
	if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return true
	}
	_, err := conn.Reader.Peek(1)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// record records the result of a request. conn is nil if there was no connection, or not one of HTTP.
func (l *Load) record(c Request, conn *ClientConn, begin time.Time, err error) {
	took := time.Since(begin)
	l.Mu.Lock()
	defer l.Mu.Unlock()
	l.sent++
	l.slowest = max(l.slowest, took)
	if err != nil {
		kept := conn != nil && !conn.served.IsZero() && conn.served.Before(begin)
		l.Failures = append(l.Failures, LoadFailure{
			After: begin.Sub(l.Started), Took: took, Path: c.Path, Kept: kept, Cause: err.Error(),
		})
		return
	}
	if conn == nil {
		l.Answered = append(l.Answered, LoadRequest{Path: c.Path, Opened: begin, Served: begin.Add(took)})
		return
	}
	l.Answered = append(l.Answered, LoadRequest{Path: c.Path, Opened: conn.opened, Served: conn.served})
}
