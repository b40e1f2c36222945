package dataplane

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"

	"github.com/usherproxy/usher/internal/testing/logbuffer"
	"github.com/usherproxy/usher/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// harness is a server between a client and a fake Consul, all in memory, with a real xds.Server.
type harness struct {
	*testing.T
	server  *Server
	xds     *xds.Server
	consul  *grpc.Server
	catalog *fakeCatalog
	metrics *prometheus.Registry
	log     *logbuffer.Buffer
	port    *bufconn.Listener
}

// fakeAuthorizer allows everything until its error is set.
type fakeAuthorizer struct {
	mu  sync.Mutex
	err error
}

func (a *fakeAuthorizer) Authorize(context.Context, xds.Caller, xds.Node) (expiry time.Time, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Time{}, a.err
}

func (a *fakeAuthorizer) set(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
}

// fakeSource gives every node the same set.
type fakeSource struct{ set *xds.Set }

func (s fakeSource) Watch(ctx context.Context, _ xds.Node, update func(*xds.Set)) error {
	if s.set != nil {
		update(s.set)
	}
	<-ctx.Done()
	return nil
}

// newHarness serves until the test ends. handle answers the calls that arrive at Consul.
func newHarness(t *testing.T, handle grpc.StreamHandler, o xds.Options) *harness {
	t.Helper()
	h := &harness{T: t, catalog: &fakeCatalog{}, metrics: prometheus.NewRegistry(), log: &logbuffer.Buffer{}, port: bufconn.Listen(1 << 20)}
	h.catalog.set(nil, "edge")
	log := slog.New(slog.NewTextHandler(h.log, nil))
	o.Logger = log
	if o.Source == nil {
		o.Source = fakeSource{}
	}
	if o.Authorizer == nil {
		o.Authorizer = &fakeAuthorizer{}
	}
	h.xds = xds.NewServer(o)
	h.consul = grpc.NewServer(grpc.ForceServerCodecV2(codec{}), grpc.UnknownServiceHandler(handle), grpc.MaxRecvMsgSize(maxMessage),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 15 * time.Second}))
	consulPort := bufconn.Listen(1 << 20)
	h.server = NewServer(Options{
		XDS: h.xds, KindOf: h.catalog.kindOf, MetadataKeys: []string{"node_name"}, Logger: log, Metrics: NewMetrics(h.metrics),
		BootstrapTemplate: ushersTemplate, Reports: o.Reports,
		DialConsul: func(_ context.Context, options ...grpc.DialOption) (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///consul", append(options, inMemory(consulPort)...)...)
		},
	})
	var running sync.WaitGroup
	for serve, l := range map[*func(net.Listener) error]net.Listener{
		new(h.consul.Serve): consulPort, new(h.server.Serve): h.port,
	} {
		running.Go(func() { _ = (*serve)(l) })
	}
	t.Cleanup(func() {
		h.server.Stop()
		h.xds.Stop()
		h.consul.Stop()
		running.Wait()
	})
	return h
}

// dial connects to the server as a consul-dataplane does.
func (h *harness) dial() *grpc.ClientConn {
	h.Helper()
	conn, err := grpc.NewClient("passthrough:///usher", append(inMemory(h.port), grpc.WithDefaultCallOptions(
		grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(2*maxMessage)))...)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { conn.Close() })
	return conn
}

func inMemory(l *bufconn.Listener) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
	}
}

// raw are call options for encoded messages.
var raw = grpc.ForceCodecV2(codec{})

// open opens a stream with encoded messages, which ends with the test.
func (h *harness) open(ctx context.Context, conn *grpc.ClientConn, method string) grpc.ClientStream {
	h.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	h.Cleanup(cancel)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, raw)
	if err != nil {
		h.Fatal(err)
	}
	return stream
}

// metric returns the value of a counter or gauge with a label.
func (h *harness) metric(name, label string) float64 {
	h.Helper()
	families, err := h.metrics.Gather()
	if err != nil {
		h.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (len(m.GetLabel()) == 0 || m.GetLabel()[0].GetValue() == label) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	h.Fatalf("there is no metric %s of %s", name, label)
	return 0
}
