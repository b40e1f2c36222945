package xds_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/logbuffer"
	"github.com/usherproxy/usher/xds"
)

// Short names for the type URLs.
var (
	sds = xds.Secret.URL()
	cds = xds.Cluster.URL()
	eds = xds.Endpoint.URL()
	lds = xds.Listener.URL()
	rds = xds.Route.URL()
)

// harness is a server with a source and an authorizer that the test controls.
type harness struct {
	t          *testing.T
	server     *xds.Server
	conn       *grpc.ClientConn
	protocol   fakeenvoy.Protocol
	source     *fakeSource
	authorizer *fakeAuthorizer
	metrics    *prometheus.Registry
	log        *logbuffer.Buffer
	listener   *bufconn.Listener
}

// forBoth runs a scenario for both protocols, each in its own synctest bubble. A goroutine that outlives the scenario
// fails the test.
func forBoth(t *testing.T, scenario func(*harness)) {
	t.Helper()
	for _, p := range fakeenvoy.Protocols {
		forOne(t, p, scenario)
	}
}

func forOne(t *testing.T, p fakeenvoy.Protocol, scenario func(*harness)) {
	t.Helper()
	t.Run(string(p), func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { scenario(newHarness(t, p)) })
	})
}

func newHarness(t *testing.T, p fakeenvoy.Protocol) *harness {
	t.Helper()
	return newHarnessWith(t, p, xds.Options{})
}

// newHarnessWith adds to the options.
func newHarnessWith(t *testing.T, p fakeenvoy.Protocol, o xds.Options) *harness {
	t.Helper()
	r := &harness{t: t, protocol: p, source: &fakeSource{}, authorizer: &fakeAuthorizer{}, metrics: prometheus.NewRegistry(), log: &logbuffer.Buffer{}, listener: bufconn.Listen(1 << 20)}
	o.Source, o.Metrics = r.source, xds.NewMetrics(r.metrics)
	if o.Authorizer == nil {
		o.Authorizer = r.authorizer
	}
	o.Logger = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	o.MetadataKeys = []string{"node_name", "namespace", "partition"}
	r.server = xds.NewServer(o)
	r.conn = connectTo(t, r.server, r.listener, memory, inMemory(r.listener))
	return r
}

// dial opens a connection to the harness's server.
func (r *harness) dial() net.Conn {
	r.t.Helper()
	conn, err := r.listener.DialContext(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

// dialClient is dial for gRPC.
func (r *harness) dialClient(o ...grpc.DialOption) *grpc.ClientConn {
	r.t.Helper()
	conn, err := grpc.NewClient(memory, append(o, inMemory(r.listener), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// memory is the target of clients in memory.
const memory = "passthrough:///memory"

func inMemory(l *bufconn.Listener) grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) })
}

// serve serves in memory, which a bubble can follow, until the test ends.
func serve(t testing.TB, server *xds.Server) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	return connectTo(t, server, l, memory, inMemory(l))
}

// connectTo serves on a listener, until the test ends, and connects to it.
func connectTo(t testing.TB, server *xds.Server, l net.Listener, target string, o ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient(target, append(o, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // it was stopped before it began
			t.Errorf("serve: %v", err)
		}
	})
	return conn
}

func (r *harness) connect() *fakeenvoy.Envoy { return r.connectWith(fakeenvoy.Options{}) }

func (r *harness) connectWith(o fakeenvoy.Options) *fakeenvoy.Envoy {
	r.t.Helper()
	return fakeenvoy.Connect(r.t, r.conn, r.protocol, o)
}

// fakeSource has the same set for every stream.
type fakeSource struct {
	mu      sync.Mutex
	set     *xds.Set
	updates map[*func(*xds.Set)]struct{}
	nodes   []xds.Node
	// fail ends Watch with what it receives.
	fail chan error
}

func (s *fakeSource) Watch(ctx context.Context, n xds.Node, update func(*xds.Set)) error {
	s.mu.Lock()
	if s.updates == nil {
		s.updates = map[*func(*xds.Set)]struct{}{}
	}
	s.updates[&update] = struct{}{}
	s.nodes = append(s.nodes, n)
	if s.set != nil {
		update(s.set)
	}
	fail := s.fail
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.updates, &update)
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-fail:
		return err
	}
}

// watchedNodes returns the nodes that were watched.
func (s *fakeSource) watchedNodes() []xds.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.nodes)
}

// publish sends a set to all streams.
func (s *fakeSource) publish(set *xds.Set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set = set
	for update := range s.updates {
		(*update)(set)
	}
}

// newest returns the set that was published last.
func (s *fakeSource) newest() *xds.Set {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set
}

// fakeAuthorizer is an Authorizer with a fixed answer.
type fakeAuthorizer struct {
	mu      sync.Mutex
	answer  error
	expiry  time.Time
	callers []xds.Caller
}

func (d *fakeAuthorizer) Authorize(_ context.Context, c xds.Caller, _ xds.Node) (time.Time, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.callers = append(d.callers, c)
	return d.expiry, d.answer
}

func (d *fakeAuthorizer) setAnswer(answer error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answer = answer
}

func (d *fakeAuthorizer) calls() []xds.Caller {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.callers)
}

// resources are messages by type and name. set returns a set in which every type is known.
type resources map[xds.Type]map[string]proto.Message

func (w resources) with(messages ...proto.Message) resources {
	next := resources{}
	for t, of := range w {
		next[t] = maps.Clone(of)
	}
	for _, m := range messages {
		t := typeOf(m)
		if next[t] == nil {
			next[t] = map[string]proto.Message{}
		}
		next[t][nameOf(m)] = m
	}
	return next
}

func (w resources) without(messages ...proto.Message) resources {
	next := w.with()
	for _, m := range messages {
		delete(next[typeOf(m)], nameOf(m))
	}
	return next
}

// names lists a type's resources.
func (w resources) names(typeURL string) []string {
	for t, of := range w {
		if t.URL() == typeURL {
			return slices.Sorted(maps.Keys(of))
		}
	}
	return nil
}

func (w resources) collections(t testing.TB) [xds.NumTypes]*xds.Collection {
	t.Helper()
	var all [xds.NumTypes]*xds.Collection
	for typ := range xds.Type(xds.NumTypes) {
		resources := map[string]*xds.Resource{}
		for name, m := range w[typ] {
			resources[name] = encode(t, m)
		}
		all[typ] = xds.NewCollection(resources, nil)
	}
	return all
}

func (w resources) set(t testing.TB) *xds.Set {
	t.Helper()
	return xds.NewSet(w.collections(t))
}

func encode(t testing.TB, m proto.Message) *xds.Resource {
	t.Helper()
	r, err := xds.NewResource(typeOf(m), nameOf(m), m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func nameOf(m proto.Message) string { return cache.GetResourceName(m) }

func typeOf(m proto.Message) xds.Type {
	switch m.(type) {
	case *tlsv3.Secret:
		return xds.Secret
	case *clusterv3.Cluster:
		return xds.Cluster
	case *endpointv3.ClusterLoadAssignment:
		return xds.Endpoint
	case *listenerv3.Listener:
		return xds.Listener
	default:
		return xds.Route
	}
}

// The functions below return the smallest resource of a type. Two editions of one name differ.

func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

func secret(name string, edition int) proto.Message { return secretOf(name, []byte{byte(edition)}) }

func secretOf(name string, content []byte) proto.Message {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{
		Secret: &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: content}},
	}}}
}

func cluster(name string, edition int) proto.Message {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		ConnectTimeout:       durationpb.New(time.Duration(edition) * time.Second),
	}
}

func endpoints(name string, edition int) proto.Message {
	return &endpointv3.ClusterLoadAssignment{ClusterName: name, Policy: &endpointv3.ClusterLoadAssignment_Policy{
		OverprovisioningFactor: wrapperspb.UInt32(uint32(100 + edition)),
	}}
}

func listener(name string, edition int, routes ...string) proto.Message {
	l := &listenerv3.Listener{Name: name, Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
		SocketAddress: &corev3.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(edition)},
		},
	}}}
	for _, route := range routes {
		manager, err := anypb.New(&hcmv3.HttpConnectionManager{
			StatPrefix: "x",
			RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
				RouteConfigName: route, ConfigSource: ads(),
			}},
		})
		if err != nil {
			panic(err)
		}
		l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{Filters: []*listenerv3.Filter{{
			Name:       "http",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: manager},
		}}})
	}
	return l
}

func routes(name string, edition int) proto.Message {
	return &routev3.RouteConfiguration{Name: name, MaxDirectResponseBodySizeBytes: wrapperspb.UInt32(uint32(edition))}
}
