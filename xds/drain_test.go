package xds_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

// drainHarness is a server with streams.
type drainHarness struct {
	t        *testing.T
	server   *xds.Server
	connect  func() *fakeenvoy.Envoy
	conn     *grpc.ClientConn
	envoys   []*fakeenvoy.Envoy
	returned chan time.Duration // after which Drain returned
}

// forBothDraining runs a scenario with a number of streams, once for each protocol.
func forBothDraining(t *testing.T, streams int, scenario func(*drainHarness)) {
	t.Helper()
	for _, p := range fakeenvoy.Protocols {
		t.Run(string(p), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { scenario(newDrainHarness(t, p, streams)) })
		})
	}
}

func newDrainHarness(t *testing.T, p fakeenvoy.Protocol, streams int) *drainHarness {
	t.Helper()
	r := &drainHarness{t: t, returned: make(chan time.Duration, 1)}
	r.server = xds.NewServer(xds.Options{Source: &fakeSource{}, Authorizer: &fakeAuthorizer{}, Logger: slog.New(slog.DiscardHandler)})
	r.conn = serve(t, r.server)
	r.connect = func() *fakeenvoy.Envoy { return fakeenvoy.Connect(t, r.conn, p, fakeenvoy.Options{}) }
	for range streams {
		e := r.connect()
		e.Subscribe(cds)
		r.envoys = append(r.envoys, e)
	}
	r.wantStreams(streams, streams)
	return r
}

// drain begins to drain, and waits until nothing more happens at this moment.
func (r *drainHarness) drain(ctx context.Context, over time.Duration) {
	begin := time.Now()
	go func() {
		r.server.Drain(ctx, over)
		r.returned <- time.Since(begin)
	}()
	synctest.Wait()
}

func (r *drainHarness) wantStreams(least, most int) {
	r.t.Helper()
	synctest.Wait()
	if n := r.server.Streams(); n < least || n > most {
		r.t.Errorf("%d streams are open, want %d to %d", n, least, most)
	}
}

func (r *drainHarness) wantReturned(most time.Duration) {
	r.t.Helper()
	if got := <-r.returned; got > most {
		r.t.Errorf("Drain returned after %v, want %v at most", got, most)
	}
	for _, e := range r.envoys {
		e.ExpectEnd(codes.Unavailable)
	}
}

func TestDrainSpreadsTheEndsOfStreams(t *testing.T) {
	forBothDraining(t, 200, func(r *drainHarness) {
		r.drain(r.t.Context(), 5*time.Second)
		r.wantStreams(198, 199)
		for left := 160; left > 0; left -= 40 {
			time.Sleep(time.Second)
			r.wantStreams(left-2, left+2)
		}
		r.wantReturned(5 * time.Second)
	})
}

func TestDrainOfFewStreamsIsShort(t *testing.T) {
	for streams, most := range map[int]time.Duration{0: 0, 1: 0, 2: 100 * time.Millisecond, 5: 400 * time.Millisecond} {
		forBothDraining(t, streams, func(r *drainHarness) {
			r.drain(r.t.Context(), 5*time.Second)
			r.wantReturned(most)
		})
	}
}

func TestDrainOverNoTimeEndsAllStreamsAtOnce(t *testing.T) {
	forBothDraining(t, 100, func(r *drainHarness) {
		r.drain(r.t.Context(), 0)
		r.wantReturned(0)
	})
}

func TestDrainRefusesNewStreams(t *testing.T) {
	forBothDraining(t, 3, func(r *drainHarness) {
		r.drain(r.t.Context(), 10*time.Minute)
		_, err := discoveryv3.NewAggregatedDiscoveryServiceClient(r.conn).DeltaAggregatedResources(r.t.Context())
		if status.Code(err) != codes.Unavailable {
			r.t.Errorf("a new stream: %v, want Unavailable", err)
		}
		r.wantStreams(2, 2)
		r.wantReturned(time.Minute)
	})
}

func TestDrainEndsWithItsContext(t *testing.T) {
	forBothDraining(t, 10, func(r *drainHarness) {
		ctx, cancel := context.WithCancel(r.t.Context())
		r.drain(ctx, time.Hour)
		cancel()
		if got := <-r.returned; got != 0 {
			r.t.Errorf("Drain returned %v after its context had ended", got)
		}
		r.wantStreams(0, 0)
	})
}
