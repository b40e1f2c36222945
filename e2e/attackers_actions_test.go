//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/hashicorp/consul/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// attackers reach the xDS port and have no token. Each does one thing again and
// again until the test ends, and connects again when it is cut off, once a second:
// what is tested is what they cost Usher, and not the machine that they share.
type attackers struct {
	from []*lab.Host
	to   string

	ctx     context.Context
	running sync.WaitGroup
	next    int
}

// attackPause is the least time between two attempts of one attacker.
const attackPause = time.Second

func newAttackers(t *testing.T, to string, from ...*lab.Host) *attackers {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &attackers{from: from, to: to, ctx: ctx}
	t.Cleanup(func() {
		cancel()
		s.running.Wait()
	})
	return s
}

// start lets a number of attackers do the same, each on its own connection. What they do
// ends when the connection does.
func (s *attackers) start(number int, do func(ctx context.Context, conn net.Conn)) {
	for range number {
		from := s.from[s.next%len(s.from)]
		s.next++
		s.running.Go(func() {
			for s.ctx.Err() == nil {
				s.attempt(from, do)
				select {
				case <-s.ctx.Done():
				case <-time.After(attackPause):
				}
			}
		})
	}
}

func (s *attackers) attempt(from *lab.Host, do func(ctx context.Context, conn net.Conn)) {
	conn, err := from.Dial(s.ctx, "tcp", s.to)
	if err != nil {
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(s.ctx, func() { conn.Close() })
	defer stop()
	do(s.ctx, conn)
}

// onHTTP2 makes an act of one on streams.
func onHTTP2(do func(ctx context.Context, raw *fakeenvoy.Raw)) func(context.Context, net.Conn) {
	return func(ctx context.Context, conn net.Conn) {
		raw, err := fakeenvoy.NewRaw(conn)
		if err != nil {
			return
		}
		do(ctx, raw)
		conn.Close()
		<-raw.Done()
	}
}

// What attackers do. An error means that Usher ended the connection.

// silent opens a connection and waits.
func silent(_ context.Context, conn net.Conn) {
	_, _ = conn.Read(make([]byte, 1))
}

// halfHello begins TLS and waits.
func halfHello(ctx context.Context, conn net.Conn) {
	_, _ = conn.Write([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
	silent(ctx, conn)
}

// silentStreams opens streams and waits.
func silentStreams(streams int) func(context.Context, net.Conn) {
	return onHTTP2(func(_ context.Context, raw *fakeenvoy.Raw) {
		for i := range streams {
			if raw.Open(uint32(2*i+1), "no such token") != nil {
				return
			}
		}
		<-raw.Done()
	})
}

// largeHeaders opens streams with tokens of so many bytes.
func largeHeaders(size int) func(context.Context, net.Conn) {
	token := strings.Repeat("t", size)
	return onHTTP2(func(_ context.Context, raw *fakeenvoy.Raw) {
		if raw.Open(1, token) == nil {
			<-raw.Done()
		}
	})
}

// firstRequest opens a stream and sends a request, or the part of it that body
// is.
func firstRequest(size int, body []byte) func(context.Context, net.Conn) {
	return onHTTP2(func(_ context.Context, raw *fakeenvoy.Raw) {
		if raw.Open(1, "no such token") == nil && raw.Send(1, size, body) == nil {
			<-raw.Done()
		}
	})
}

// refusedStreams opens streams with tokens of which no two are the same.
func refusedStreams(request []byte) func(context.Context, net.Conn) {
	return onHTTP2(func(ctx context.Context, raw *fakeenvoy.Raw) {
		for i := range 1000 {
			id := uint32(2*i + 1)
			if raw.Open(id, randomToken()) != nil || raw.Send(id, len(request), request) != nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-raw.Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
}

// randomToken is a token that no Consul knows.
func randomToken() string { return fmt.Sprintf("%08x-1111-2222-3333-444444444444", rand.Uint32()) }

// emptyValuesRequest is a request of so many bytes that takes forty times as many when
// it is decoded: a node whose metadata has a list of empty values.
func emptyValuesRequest(size int) []byte {
	inner := bytes.Repeat([]byte("\x32\x00"), size/2)
	for _, tag := range []byte{6<<3 | 2, 2<<3 | 2, 1<<3 | 2, 3<<3 | 2, 1<<3 | 2} { // list, value, fields, metadata, node
		inner = append(appendLength([]byte{tag}, len(inner)), inner...)
	}
	return inner
}

func appendLength(b []byte, n int) []byte {
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// encodedRequest is the first request of a node.
func encodedRequest(t *testing.T, id, cluster string, names ...string) []byte {
	t.Helper()
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(&discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: id, Cluster: cluster}, TypeUrl: resource.ClusterType, ResourceNamesSubscribe: names,
	})
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// startAll starts attackers of every type.
func (s *attackers) startAll(t *testing.T) {
	t.Helper()
	const mib = 1 << 20
	greeting := encodedRequest(t, "ingress-gateway", "ingress-gateway")
	whole := emptyValuesRequest(4*mib - 1000)
	s.start(2, firstRequest(48*mib, emptyValuesRequest(48*mib)))
	s.start(4, firstRequest(len(whole), whole))
	s.start(60, largeHeaders(mib))
	s.start(30, firstRequest(4*mib-100, make([]byte, 4*mib-200))) // unfinished
	for _, request := range [][]byte{
		encodedRequest(t, strings.Repeat("x", 3*mib), "ingress-gateway"),
		encodedRequest(t, "ingress-gateway", strings.Repeat("\x1b", mib)),
	} {
		s.start(2, firstRequest(len(request), request))
	}
	s.start(20, silentStreams(100))
	s.start(260, silent)
	s.start(100, halfHello)
	s.start(20, refusedStreams(greeting))
}

// limitsReached returns how often each limit of Usher's was reached.
func limitsReached(t *testing.T, u *lab.Usher) map[string]int {
	t.Helper()
	reached := map[string]int{}
	for line := range strings.Lines(u.Metrics(t)) {
		var value float64
		text, ok := strings.CutPrefix(line, `usher_xds_limited_total{limit="`)
		name, number, _ := strings.Cut(text, `"} `)
		if _, err := fmt.Sscan(number, &value); ok && err == nil && value > 0 {
			reached[name] = int(value)
		}
	}
	return reached
}

// waitLimitsReached waits until each of the limits was reached.
func waitLimitsReached(t *testing.T, u *lab.Usher, names ...string) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("the limits %q are reached", names), testprocess.StartDeadline, func() error {
		reached := limitsReached(t, u)
		for _, name := range names {
			if reached[name] == 0 {
				return fmt.Errorf("%s is not: %v", name, reached)
			}
		}
		return u.Alive()
	})
}

// writeManyHosts gives the gateway's service so many hosts that its routes do not fit
// into the window of a client that does not read.
func (g *limitedUsher) writeManyHosts(t *testing.T) {
	t.Helper()
	var hosts []string
	for i := range 5000 {
		hosts = append(hosts, fmt.Sprintf("host-%d.example.com", i))
	}
	_, _, err := g.Consul.Client.ConfigEntries().Set(&api.IngressGatewayConfigEntry{
		Kind: api.IngressGateway, Name: "ingress-gateway",
		Listeners: []api.IngressListener{{Port: 8080, Protocol: "http", Services: []api.IngressService{{Name: "static-server", Hosts: hosts}}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// unreadStream is a delta stream with a window of 64 KiB.
type unreadStream struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	node *corev3.Node
}

// openUnread opens a stream whose client reads only when receive is called.
func (g *limitedUsher) openUnread(t *testing.T, token string) *unreadStream {
	t.Helper()
	const window = 64 << 10
	conn, err := grpc.NewClient("passthrough:///"+g.Gateway.Addr(18000), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return g.Client.Dial(ctx, "tcp", address)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).
		DeltaAggregatedResources(metadata.AppendToOutgoingContext(t.Context(), "x-consul-token", token))
	if err != nil {
		t.Fatal(err)
	}
	return &unreadStream{stream, &corev3.Node{Id: "ingress-gateway", Cluster: "ingress-gateway"}}
}

func (s *unreadStream) send(t *testing.T, m *discoveryv3.DeltaDiscoveryRequest) {
	t.Helper()
	m.Node = s.node
	if err := s.Send(m); err != nil {
		t.Fatal(err)
	}
}

func (s *unreadStream) receive(t *testing.T) *discoveryv3.DeltaDiscoveryResponse {
	t.Helper()
	m, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// neverReads is the act of an Envoy with a token that asks for more than its
// window and does not read it.
func (g *limitedUsher) neverReads(t *testing.T) func(context.Context, net.Conn) {
	t.Helper()
	var requests [][]byte
	for _, m := range []*discoveryv3.DeltaDiscoveryRequest{
		{TypeUrl: resource.RouteType, ResourceNamesSubscribe: []string{"8080"}},
		{TypeUrl: resource.EndpointType, ResourceNamesSubscribe: []string{g.crowd.cluster}},
	} {
		m.Node = &corev3.Node{Id: "ingress-gateway", Cluster: "ingress-gateway"}
		request, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		requests = append(requests, request)
	}
	return onHTTP2(func(_ context.Context, raw *fakeenvoy.Raw) {
		if raw.Open(1, g.Token) != nil || raw.Send(1, len(requests[0]), requests[0]) != nil {
			return
		}
		select {
		case <-raw.Answered():
			// What is sent now waits behind what is not read.
			_ = raw.Send(1, len(requests[1]), requests[1])
			<-raw.Done()
		case <-raw.Done():
		}
	})
}
