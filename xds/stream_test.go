package xds_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// panicking is a source and an authorizer, one of which panics.
type panicking struct{ where string }

func (p panicking) Watch(ctx context.Context, _ xds.Node, _ func(*xds.Set)) error {
	if p.where == "source" {
		panic("in the source")
	}
	<-ctx.Done()
	return nil
}

func (p panicking) Authorize(context.Context, xds.Caller, xds.Node) (time.Time, error) {
	if p.where == "authorizer" {
		panic("in the authorizer")
	}
	return time.Time{}, nil
}

func TestPanicEndsOneStreamOnly(t *testing.T) {
	for _, where := range []string{"source", "authorizer"} {
		t.Run(where, func(t *testing.T) {
			forBoth(t, func(r *harness) {
				p := panicking{where}
				broken := xds.NewServer(xds.Options{Source: p, Authorizer: p, Logger: slog.New(slog.NewTextHandler(r.log, nil))})
				e := fakeenvoy.Connect(r.t, serve(r.t, broken), r.protocol, fakeenvoy.Options{})
				e.Subscribe(cds)
				e.ExpectEnd(codes.Internal)
				if !strings.Contains(r.log.String(), "in the "+where) {
					t.Errorf("logged: %s", r.log)
				}
			})
		})
	}
}

// The bubble fails if anything the server started outlives its stream.
func TestEnvoyDisconnects(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		if got := r.count("usher_xds_streams", string(r.protocol)); got != 1 {
			t.Errorf("%v streams, want 1", got)
		}
		if nodes := r.server.Nodes(); len(nodes) != 1 || nodes[0].ID == "" || nodes[0].Cluster == "" {
			t.Errorf("connected nodes: %v, want the Envoy's", nodes)
		}
		e.Disconnect()
		synctest.Wait()
		if nodes := r.server.Nodes(); len(nodes) != 0 {
			t.Errorf("connected nodes: %v, want none", nodes)
		}
		if got := r.count("usher_xds_streams", string(r.protocol)); got != 0 {
			t.Errorf("%v streams are left", got)
		}
		r.source.publish(two().set(t))
		synctest.Wait()
	})
}

func TestEnvoyDisconnectsWithAResponseUnacknowledged(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().with(cluster("web", 2), listener("http", 2, "web")).set(t))
		e.Expect(cds, "web")
		e.Disconnect()
		synctest.Wait()
		e = r.warm(small())
		e.ExpectNone()
	})
}

// Several goroutines publish many sets at once, over a real connection, while Envoy acknowledges and subscribes to more:
// the last set that arrives is the newest.
func TestManySetsAtOnce(t *testing.T) {
	for _, p := range fakeenvoy.Protocols {
		t.Run(string(p), func(t *testing.T) {
			s, d := &fakeSource{}, &fakeAuthorizer{}
			server := xds.NewServer(xds.Options{Source: s, Authorizer: d, Logger: slog.New(slog.DiscardHandler)})
			conn := dial(t, server)
			const last = 200
			want, err := proto.MarshalOptions{Deterministic: true}.Marshal(endpoints("web", last/4))
			if err != nil {
				t.Fatal(err)
			}
			sets := make([]*xds.Set, last+1)
			for i := range sets {
				sets[i] = small().with(cluster("web", 1+i/50), endpoints("web", i/4), endpoints("other", i)).set(t)
			}
			s.publish(sets[0])
			var envoys sync.WaitGroup
			for range 8 {
				e := fakeenvoy.Connect(t, conn, p, fakeenvoy.Options{})
				e.Subscribe(cds)
				e.ExpectAck(cds, "web")
				e.Subscribe(eds, "web")
				envoys.Go(func() {
					for i := 0; ; i++ {
						r := e.Next()
						e.Ack(r)
						e.Subscribe(eds, fmt.Sprint("another ", i))
						if r.Type == eds && bytes.Equal(r.Bodies[0], want) {
							return
						}
					}
				})
			}
			var writers sync.WaitGroup
			for w := range 4 {
				writers.Go(func() {
					for i := w; i < last; i += 4 {
						s.publish(sets[i])
					}
				})
			}
			writers.Wait()
			s.publish(sets[last])
			envoys.Wait()
		})
	}
}

// dial serves on loopback.
func dial(t *testing.T, server *xds.Server) *grpc.ClientConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return connectTo(t, server, l, l.Addr().String())
}
