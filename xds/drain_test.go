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

// drainRig is a server with streams.
type drainRig struct {
	t        *testing.T
	server   *xds.Server
	connect  func() *fakeenvoy.Envoy
	conn     *grpc.ClientConn
	envoys   []*fakeenvoy.Envoy
	returned chan time.Duration // after which Drain returned
}

// drained runs a scenario with so many streams, once for each protocol.
func drained(t *testing.T, streams int, scenario func(*drainRig)) {
	t.Helper()
	for _, p := range fakeenvoy.Protocols {
		t.Run(string(p), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { scenario(newDrainRig(t, p, streams)) })
		})
	}
}

func newDrainRig(t *testing.T, p fakeenvoy.Protocol, streams int) *drainRig {
	t.Helper()
	r := &drainRig{t: t, returned: make(chan time.Duration, 1)}
	r.server = xds.NewServer(xds.Options{Source: &supplier{}, Authorizer: &door{}, Logger: slog.New(slog.DiscardHandler)})
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

// drain begins to drain, and lets happen what happens at once.
func (r *drainRig) drain(ctx context.Context, over time.Duration) {
	begin := time.Now()
	go func() {
		r.server.Drain(ctx, over)
		r.returned <- time.Since(begin)
	}()
	synctest.Wait()
}

func (r *drainRig) wantStreams(least, most int) {
	r.t.Helper()
	synctest.Wait()
	if n := r.server.Streams(); n < least || n > most {
		r.t.Errorf("%d streams are open, want %d to %d", n, least, most)
	}
}

func (r *drainRig) wantReturned(most time.Duration) {
	r.t.Helper()
	if got := <-r.returned; got > most {
		r.t.Errorf("Drain returned after %v, want %v at most", got, most)
	}
	for _, e := range r.envoys {
		e.ExpectEnd(codes.Unavailable)
	}
}

func TestDrainSpreadsTheEndsOfStreams(t *testing.T) {
	drained(t, 200, func(r *drainRig) {
		r.drain(r.t.Context(), 5*time.Second)
		r.wantStreams(198, 199)
		for left := 160; left > 0; left -= 40 {
			time.Sleep(time.Second)
			r.wantStreams(left-2, left+2)
		}
		r.wantReturned(5 * time.Second)
	})
}

func TestDrainOfFewStreamsTakesAMoment(t *testing.T) {
	for streams, most := range map[int]time.Duration{0: 0, 1: 0, 2: 100 * time.Millisecond, 5: 400 * time.Millisecond} {
		drained(t, streams, func(r *drainRig) {
			r.drain(r.t.Context(), 5*time.Second)
			r.wantReturned(most)
		})
	}
}

func TestDrainOverNoTimeEndsAllStreamsAtOnce(t *testing.T) {
	drained(t, 100, func(r *drainRig) {
		r.drain(r.t.Context(), 0)
		r.wantReturned(0)
	})
}

func TestDrainRefusesNewStreams(t *testing.T) {
	drained(t, 3, func(r *drainRig) {
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
	drained(t, 10, func(r *drainRig) {
		ctx, cancel := context.WithCancel(r.t.Context())
		r.drain(ctx, time.Hour)
		cancel()
		if got := <-r.returned; got != 0 {
			r.t.Errorf("Drain returned %v after its context had ended", got)
		}
		r.wantStreams(0, 0)
	})
}
