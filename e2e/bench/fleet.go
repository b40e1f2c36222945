//go:build e2e

package main

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
)

// fleet are Envoys of one gateway at one xDS port, each of an instance of its
// own.
type fleet struct {
	addr     string
	services int // that a complete state has
	library  *resourceCache
	ctx      context.Context // of the Envoys' runs
	cancel   context.CancelFunc
	runs     sync.WaitGroup
	conns    []*grpc.ClientConn
	envoys   []*envoy

	expected atomic.Pointer[expectation]

	mu      sync.Mutex
	tally   wireCounts
	broken  []error   // why streams ended
	left    int       // Envoys that are not complete
	last    time.Time // when the latest one became so
	allDone chan struct{}
}

// wireCounts counts what came over the wire.
type wireCounts struct {
	resources map[string]int // that were sent or removed, by type URL
	bytes     int
}

// minus returns what came since an earlier tally.
func (t wireCounts) minus(earlier wireCounts) wireCounts {
	out := wireCounts{resources: map[string]int{}, bytes: t.bytes - earlier.bytes}
	for typeURL, n := range t.resources {
		out.resources[typeURL] = n - earlier.resources[typeURL]
	}
	return out
}

func (t wireCounts) total() int {
	n := 0
	for _, of := range t.resources {
		n += of
	}
	return n
}

// most returns the number of resources of the type of which there are most.
func (t wireCounts) most() int {
	n := 0
	for _, of := range t.resources {
		n = max(n, of)
	}
	return n
}

// newFleet makes a fleet without Envoys.
func newFleet(ctx context.Context, addr string, services int, l *resourceCache) *fleet {
	f := &fleet{addr: addr, services: services, library: l, tally: wireCounts{resources: map[string]int{}}}
	f.ctx, f.cancel = context.WithCancel(ctx)
	return f
}

// add connects an Envoy for each instance, so many to a connection, and returns
// how long it took until all were complete. Envoys that are given begin with
// what these have.
func (f *fleet) add(ctx context.Context, ids []string, perConnection int, from ...*envoy) (time.Duration, error) {
	done := make(chan struct{})
	f.mu.Lock()
	f.left, f.allDone = len(ids), done
	f.mu.Unlock()
	begin := time.Now()
	var conn *grpc.ClientConn
	for i, id := range ids {
		if i%perConnection == 0 {
			var err error
			if conn, err = dial(f.addr); err != nil {
				return 0, err
			}
			f.conns = append(f.conns, conn)
		}
		e := newEnvoy(f, len(f.envoys), id, conn)
		if len(from) > 0 {
			e.has, e.wants, e.endpoints, e.hosts = from[i].has, from[i].wants, from[i].endpoints, from[i].hosts
		}
		f.envoys = append(f.envoys, e)
		f.runs.Go(func() { e.run(f.ctx) })
	}
	if len(from) > 0 {
		return 0, nil
	}
	select {
	case <-done:
		return f.last.Sub(begin), nil
	case <-ctx.Done():
		f.mu.Lock()
		defer f.mu.Unlock()
		return 0, fmt.Errorf("%d of %d Envoys at %s are not complete: %w; streams that ended: %v",
			f.left, len(ids), f.addr, context.Cause(ctx), f.broken)
	}
}

// dial makes a connection that is tried again at once while its server starts.
func dial(addr string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: reconnectPause, Multiplier: 1, MaxDelay: reconnectPause},
			MinConnectTimeout: time.Second,
		}))
}

// close disconnects all Envoys.
func (f *fleet) close() {
	f.cancel()
	f.runs.Wait()
	for _, c := range f.conns {
		c.Close()
	}
}

// expect begins to look for signs.
func (f *fleet) expect(signs []sign) *expectation {
	e := newExpectation(len(f.envoys), signs)
	f.expected.Store(e)
	return e
}

func (f *fleet) count(r *fakeenvoy.LeanResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tally.resources[r.TypeURL] += len(r.Resources) + len(r.Removed)
	f.tally.bytes += r.Size
}

// counted returns what has come so far.
func (f *fleet) counted() wireCounts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return wireCounts{resources: maps.Clone(f.tally.resources), bytes: f.tally.bytes}
}

// lost takes note of a stream that ended.
func (f *fleet) lost(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = append(f.broken, err)
}

// losses returns how many streams ended, and of the reasons the first.
func (f *fleet) losses() (n int, first error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.broken) == 0 {
		return 0, nil
	}
	return len(f.broken), f.broken[0]
}

func (f *fleet) completed(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left--
	f.last = at
	if f.left == 0 {
		close(f.allDone)
	}
}
