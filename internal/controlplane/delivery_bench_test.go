package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

// BenchmarkDelivery is one changed endpoint from its snapshot to the slowest
// Envoy, over gRPC in memory. What the fake Envoys cost is in it.
func BenchmarkDelivery(b *testing.B) {
	for _, size := range []struct{ services, envoys int }{{100, 1}, {1000, 1}, {5000, 1}, {1000, 16}, {1000, 500}} {
		b.Run(fmt.Sprintf("services=%d/envoys=%d", size.services, size.envoys), func(b *testing.B) {
			s := serveBench(b, manyServices(size.services))
			arrived := make(chan struct{}, size.envoys)
			for range size.envoys {
				e := s.connect(b, s.state(b))
				e.await(b, func(r *fakeenvoy.LeanResponse) bool { return r.TypeURL == xds.Listener.URL() })
				s.run(b, e, arrived)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s.source.put(s.source.snapshot.withEndpoint(i))
				for range size.envoys {
					<-arrived
				}
			}
		})
	}
}

// BenchmarkFirstState is an Envoy that connects and gets everything of a gateway
// that is being watched, over gRPC in memory.
func BenchmarkFirstState(b *testing.B) {
	for _, services := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			s := serveBench(b, manyServices(services))
			s.state(b) // whoever comes first starts the watch
			b.ReportAllocs()
			for b.Loop() {
				s.connect(b, nil).awaitAll(b, services)
			}
		})
	}
}

// BenchmarkReconnect is an Envoy that connects and has everything but the
// listener.
func BenchmarkReconnect(b *testing.B) {
	for _, services := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			s := serveBench(b, manyServices(services))
			has := s.state(b)
			b.ReportAllocs()
			for b.Loop() {
				e, resources := s.connect(b, has), 0
				e.await(b, func(r *fakeenvoy.LeanResponse) bool {
					resources += len(r.Resources)
					return r.TypeURL == xds.Listener.URL()
				})
				if resources != 1 {
					b.Fatalf("received %d resources, want the listener only", resources)
				}
				e.close()
			}
		})
	}
}

// still is a source whose snapshot the benchmark changes.
type benchSource struct {
	snapshot benchSnapshot
	put      func(benchSnapshot)
}

func (s *benchSource) WatchNames(ctx context.Context, _ func([]string)) error {
	<-ctx.Done()
	return nil
}

func (s *benchSource) Watch(ctx context.Context, _ gateway.ID, put func(*gateway.Snapshot)) error {
	s.put = func(next benchSnapshot) {
		s.snapshot = next
		put(next.Snapshot)
	}
	put(s.snapshot.Snapshot)
	<-ctx.Done()
	return nil
}

type benchSnapshot struct{ *gateway.Snapshot }

// withEndpoint gives the snapshot with another port of one service's instance.
func (s benchSnapshot) withEndpoint(i int) benchSnapshot {
	next := *s.Snapshot
	next.Endpoints = next.Endpoints.With("web-0003", &gateway.Endpoints{Endpoints: []gateway.Endpoint{
		{NodeDatacenter: "dc1", Address: "10.0.0.2", Port: 10000 + i%50000},
	}})
	return benchSnapshot{&next}
}

// served is a plane and a server in memory.
type served struct {
	source *benchSource
	conn   *grpc.ClientConn
	ctx    context.Context
	has    map[string]map[string]string // see state
}

type everybody struct{}

func (everybody) Authorize(context.Context, xds.Caller, xds.Node) (time.Time, error) {
	return time.Time{}, nil
}

// serveBench serves until the benchmark ends.
func serveBench(b *testing.B, snapshot *gateway.Snapshot) *served {
	b.Helper()
	log, metrics := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	s := &served{source: &benchSource{snapshot: benchSnapshot{snapshot}}}
	plane := New(Options{Source: s.source, Logger: log, Metrics: NewMetrics(metrics), Problems: NewProblems(log, metrics)})
	server := xds.NewServer(xds.Options{Source: plane, Authorizer: everybody{}, Logger: log, MetadataKeys: MetadataKeys})
	l := bufconn.Listen(1 << 20)
	var err error
	s.conn, err = grpc.NewClient("passthrough:///memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.ctx = ctx
	ended := make(chan error, 2)
	go func() { ended <- plane.Run(ctx) }()
	go func() { ended <- server.Serve(l) }()
	b.Cleanup(func() {
		cancel()
		_ = s.conn.Close()
		server.Stop()
		for range 2 {
			if err := <-ended; err != nil {
				b.Error(err)
			}
		}
	})
	return s
}

// benchEnvoy is an Envoy's stream.
type benchEnvoy struct {
	stream grpc.ClientStream
	close  context.CancelFunc
}

// connect opens a stream that asks for everything, and says that it has those
// versions, by type and name.
func (s *served) connect(b *testing.B, has map[string]map[string]string) *benchEnvoy {
	b.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	stream, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
		grpc.ForceCodecV2(fakeenvoy.Lean{}), grpc.MaxCallRecvMsgSize(1<<28))
	if err != nil {
		b.Fatal(err)
	}
	e := &benchEnvoy{stream: stream, close: cancel}
	for i, t := range []xds.Type{xds.Cluster, xds.Endpoint, xds.Route, xds.Listener} {
		r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: t.URL(), ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: has[t.URL()]}
		if i == 0 {
			r.Node = &corev3.Node{Id: "edge", Cluster: "edge"}
		}
		if err := stream.SendMsg(r); err != nil {
			b.Fatal(err)
		}
	}
	return e
}

// receive takes the next response and acknowledges it.
func (e *benchEnvoy) receive(b *testing.B) *fakeenvoy.LeanResponse {
	b.Helper()
	var r fakeenvoy.LeanResponse
	err := e.stream.RecvMsg(&r)
	if err == nil {
		err = e.stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeURL, ResponseNonce: r.Nonce})
	}
	if err != nil {
		b.Fatal(err)
	}
	return &r
}

// await receives until the response that is waited for.
func (e *benchEnvoy) await(b *testing.B, is func(*fakeenvoy.LeanResponse) bool) {
	b.Helper()
	for !is(e.receive(b)) {
	}
}

// awaitAll receives everything there is, the listener last, and ends the stream.
func (e *benchEnvoy) awaitAll(b *testing.B, services int) (versions map[string]map[string]string) {
	b.Helper()
	versions = map[string]map[string]string{}
	e.await(b, func(r *fakeenvoy.LeanResponse) bool {
		of := map[string]string{}
		for _, resource := range r.Resources {
			of[string(resource.Name)] = string(resource.Version)
		}
		versions[r.TypeURL] = of
		return len(versions) == 4
	})
	if got := len(versions[xds.Endpoint.URL()]); got != services {
		b.Fatalf("%d load assignments, want %d", got, services)
	}
	e.close()
	return versions
}

// state gives the versions of everything but the listener.
func (s *served) state(b *testing.B) map[string]map[string]string {
	b.Helper()
	if s.has == nil {
		s.has = s.connect(b, nil).awaitAll(b, len(s.source.snapshot.Services))
		delete(s.has, xds.Listener.URL())
	}
	return s.has
}

// run acknowledges until the benchmark ends, and tells of each load assignment
// that arrives.
func (s *served) run(b *testing.B, e *benchEnvoy, arrived chan<- struct{}) {
	b.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			var r fakeenvoy.LeanResponse
			if e.stream.RecvMsg(&r) != nil {
				return // the benchmark is over
			}
			_ = e.stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeURL, ResponseNonce: r.Nonce})
			if r.TypeURL == xds.Endpoint.URL() {
				arrived <- struct{}{}
			}
		}
	}()
	b.Cleanup(func() {
		e.close()
		<-ended
	})
}
