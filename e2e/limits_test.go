//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// callerLimits are the limits of one of Usher's ports for callers without a token: the values of SECURITY.md.
type callerLimits struct {
	name          string
	port          int
	callsPerConn  int    // of the test, which Usher allows
	calls         int    // that callers without a token may hold
	callsPerPeer  int    // the same, of one address
	metric        string // that counts how often limits were reached
	callsLabel    string
	perPeerLabel  string
	bytesLabel    string
	largest       int // bytes of the largest message
	bytes         int // of all messages that are under way
	countedMetric string
}

var limitedPorts = []callerLimits{
	{
		name: "consul-dataplanes", port: dataplanePort, callsPerConn: 256, calls: 2048, callsPerPeer: 1024,
		metric: "usher_dataplane_limited_total", callsLabel: "unproven_calls", perPeerLabel: "unproven_calls_per_peer",
		bytesLabel: "message_bytes", largest: 50 << 20, bytes: 100 << 20,
	},
	{
		name: "Envoys", port: 18000, callsPerConn: 1024, calls: 2048, callsPerPeer: 1024,
		metric: "usher_xds_limited_total", callsLabel: "pending_streams", perPeerLabel: "pending_streams_per_peer",
		bytesLabel: "request_bytes", largest: 4 << 20, bytes: 64 << 20, countedMetric: "usher_xds_request_bytes",
	},
}

// limitsLab is a Consul that denies by default, and an Usher whose both ports all hosts reach over TLS.
type limitsLab struct{ *dataplaneLab }

func startLimitsLab(t *testing.T) *limitsLab {
	t.Helper()
	s := &limitsLab{&dataplaneLab{Network: lab.NewNetwork(t)}}
	s.Consul = lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: s.Control, Secure: true})
	s.RegisterCatalog(t, s.Consul)
	s.prepare(t)
	return s
}

// startUsher starts an Usher in 512 MiB, which ends with t.
func (s *limitsLab) startUsher(t *testing.T, args ...string) {
	t.Helper()
	s.Usher = lab.StartUsher(t, lab.UsherOptions{
		Host: s.Gateway, Consul: s.Consul, Token: s.usherToken, XDSAddr: "0.0.0.0:18000",
		Args: append(args, "--dataplane-addr", fmt.Sprintf("0.0.0.0:%d", dataplanePort),
			"--tls-cert", s.cert, "--tls-key", s.key),
		Memory: 512 << 20,
	})
}

// dial connects to a port of Usher.
func (s *limitsLab) dial(t *testing.T, from *lab.Host, port int) *grpc.ClientConn {
	t.Helper()
	return lab.XDSPort{
		From: from, Address: s.Gateway.Addr(port),
		TLS: credentials.NewClientTLSFromCert(s.Consul.Security.CA.Pool(), "usher.example.com"),
	}.Dial(t)
}

// serve connects a gateway with a token that Usher does not know yet, and returns the time until it has its private key.
func (s *limitsLab) serve(t *testing.T, port int) time.Duration {
	t.Helper()
	token := s.Consul.NewToken(t, fmt.Sprint("gateway-", time.Now().UnixNano()), gatewayRules)
	begin := time.Now()
	e := s.connectGateway(t, s.dial(t, s.Gateway, port), token)
	lab.FetchPrivateKey(t, e)
	took := time.Since(begin)
	e.Disconnect()
	return took
}

// limited returns how often a limit of the port was reached.
func (s *limitsLab) limited(t *testing.T, l callerLimits, label string) int {
	t.Helper()
	return int(s.Usher.MetricSum(t, l.metric+`\{limit="`+label+`"\}`))
}

// TestCallersWithoutATokenKeepNoGatewayOut has callers without a token hold as many calls as Usher lets them. Meanwhile,
// gateways with a token connect. Each takes the place of one of these calls, and is served as fast as without the others.
func TestCallersWithoutATokenKeepNoGatewayOut(t *testing.T) {
	s := startLimitsLab(t)
	s.startUsher(t)
	for _, l := range limitedPorts {
		t.Run("port for "+l.name, func(t *testing.T) {
			kept := s.connectGateway(t, s.dial(t, s.Gateway, l.port), s.gatewayToken)
			lab.FetchPrivateKey(t, kept)
			alone := []time.Duration{s.serve(t, l.port), s.serve(t, l.port), s.serve(t, l.port)}

			h := newHolders(t)
			h.hold(s.dialEach(t, s.Client, l, l.callsPerPeer+1))
			h.waitEvicted(t, l.perPeerLabel)
			h.hold(s.dialEach(t, s.Balancer, l, l.calls-l.callsPerPeer))
			var crowded []time.Duration
			for range alone {
				// One call more than there may be, so that there are as many as there may be.
				h.hold(s.dialEach(t, s.Service, l, 1+min(len(crowded), 1)))
				h.waitEvicted(t, l.callsLabel)
				crowded = append(crowded, s.serve(t, l.port))
				h.waitEvicted(t, l.callsLabel)
			}
			t.Logf("a gateway is served after %v, and beside %d calls without a token after %v", alone, h.open(), crowded)
			// What else the machine does can only make it slower: the best of a few counts.
			if slices.Min(crowded) > 10*slices.Max(alone) {
				t.Errorf("a gateway is served after %v, and beside calls without a token after %v", alone, crowded)
			}

			evicted := 1 + 2*len(crowded)
			if n := h.open(); n != h.started-evicted {
				t.Errorf("%d of %d calls are held, want all but the %d that were replaced", n, h.started, evicted)
			}
			for label, want := range map[string]int{l.perPeerLabel: 1, l.callsLabel: 2 * len(crowded)} {
				if n := s.limited(t, l, label); n != want {
					t.Errorf("%s counts %d for %s, want %d", l.metric, n, label, want)
				}
			}
			kept.Subscribe(resource.ClusterType)
			kept.Next()
			kept.Disconnect()
		})
	}
}

// dialEach returns a connection for each of so many calls. A connection is for callsPerConn of them.
func (s *limitsLab) dialEach(t *testing.T, from *lab.Host, l callerLimits, calls int) (conns []*grpc.ClientConn) {
	t.Helper()
	for i := range calls {
		if i%l.callsPerConn == 0 {
			conns = append(conns, s.dial(t, from, l.port))
		} else {
			conns = append(conns, conns[i-1])
		}
	}
	return conns
}

// holders are callers without a token. Each begins a discovery stream, sends nothing, and begins another one when Usher has
// waited for long enough. One that was replaced does not come back.
type holders struct {
	ctx     context.Context
	running sync.WaitGroup
	evicted chan error
	started int

	mu       sync.Mutex
	replaced int
}

func newHolders(t *testing.T) *holders {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h := &holders{ctx: ctx, evicted: make(chan error, 100)}
	t.Cleanup(func() {
		cancel()
		h.running.Wait()
	})
	return h
}

// hold lets another caller hold a call on each of the connections.
func (h *holders) hold(conns []*grpc.ClientConn) {
	h.started += len(conns)
	for _, conn := range conns {
		h.running.Go(func() {
			for h.ctx.Err() == nil {
				err := h.call(conn)
				if err != nil && strings.Contains(err.Error(), "(limit ") {
					h.mu.Lock()
					h.replaced++
					h.mu.Unlock()
					h.evicted <- err
					return
				}
			}
		})
	}
}

// call returns when Usher has ended the call.
func (h *holders) call(conn *grpc.ClientConn) error {
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(h.ctx)
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// waitEvicted waits until a call is replaced because of a limit.
func (h *holders) waitEvicted(t *testing.T, limit string) {
	t.Helper()
	select {
	case err := <-h.evicted:
		if !strings.Contains(err.Error(), "(limit "+limit+")") {
			t.Fatalf("a call ended with %v, want the limit %s", err, limit)
		}
	case <-time.After(testprocess.ChangeDeadline):
		t.Fatalf("no call was ended by the limit %s", limit)
	}
}

// open returns how many calls are held.
func (h *holders) open() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.started - h.replaced
}

// waitLimited waits until a limit of the port was reached so many times more.
func (s *limitsLab) waitLimited(t *testing.T, l callerLimits, label string, more int, check func()) {
	t.Helper()
	before := s.limited(t, l, label)
	testprocess.Eventually(t, "the limit "+label+" is reached", testprocess.StartDeadline, func() error {
		check()
		if n := s.limited(t, l, label) - before; n < more {
			return fmt.Errorf("%d times, want %d", n, more)
		}
		return s.Usher.Alive()
	})
}

// TestConnectionsOfCallersWithoutATokenKeepNoGatewayOut has callers open more connections than Usher lets them, and wait.
func TestConnectionsOfCallersWithoutATokenKeepNoGatewayOut(t *testing.T) {
	s := startLimitsLab(t)
	s.startUsher(t, "--max-connections", "40", "--max-connections-per-peer", "30")
	for _, l := range limitedPorts {
		t.Run("port for "+l.name, func(t *testing.T) {
			kept := s.connectGateway(t, s.dial(t, s.Gateway, l.port), s.gatewayToken)
			lab.FetchPrivateKey(t, kept)
			a := newAttackers(t, s.Gateway.Addr(l.port), s.Client)
			a.start(40, silent)
			s.waitLimited(t, l, "connections_per_peer", 1, func() {})
			a.from = append(a.from, s.Balancer, s.Service)
			a.start(60, silent)
			s.waitLimited(t, l, "connections", 1, func() {})
			for range 5 {
				s.serve(t, l.port)
			}
			kept.Subscribe(resource.ClusterType)
			kept.Next()
			kept.Disconnect()
		})
	}
}

// TestMessagesOfCallersWithoutATokenCostLittleMemory has callers without a token send large messages that never end, in large
// frames and in frames of one byte. Usher has 512 MiB; the large messages would need more.
func TestMessagesOfCallersWithoutATokenCostLittleMemory(t *testing.T) {
	s := startLimitsLab(t)
	config := &tls.Config{RootCAs: s.Consul.Security.CA.Pool(), ServerName: "usher.example.com", NextProtos: []string{"h2"}}
	for _, l := range limitedPorts {
		for _, c := range []struct {
			name      string
			attackers int
			do        func(context.Context, net.Conn)
		}{
			{"large messages", 8 * l.bytes / l.largest, firstRequest(l.largest-1, make([]byte, l.largest-2))},
			{"tiny frames", 16, tinyFrames(l.largest - 1)},
		} {
			t.Run("port for "+l.name+", "+c.name, func(t *testing.T) {
				s.startUsher(t)
				s.serve(t, l.port)
				before := lab.Memory(t, s.Usher.Pid())
				a := newAttackers(t, s.Gateway.Addr(l.port), s.Client, s.Balancer, s.Service)
				a.start(c.attackers, func(ctx context.Context, conn net.Conn) { c.do(ctx, tls.Client(conn, config)) })
				s.waitLimited(t, l, l.bytesLabel, 20, func() {
					if l.countedMetric != "" && s.Usher.MetricSum(t, l.countedMetric) > float64(l.bytes) {
						t.Errorf("%s is %v, want at most %d", l.countedMetric, s.Usher.MetricSum(t, l.countedMetric), l.bytes)
					}
				})
				took := s.serve(t, l.port)
				peak := lab.PeakMemory(t, s.Usher.Pid())
				t.Logf("memory was %d MiB before, and %d MiB at most (%.1f times as much); a gateway is served after %v",
					before>>20, peak>>20, float64(peak)/float64(before), took)
				// Besides the messages that count there is garbage: once as much when a collection begins, and more when
				// it ends.
				if peak > before+5*l.bytes {
					t.Errorf("the messages needed %d MiB, want at most five times the limit of %d MiB", (peak-before)>>20, l.bytes>>20)
				}
			})
		}
	}
}

// tinyFrames opens a stream and sends the part of a request that Usher lets it, one byte in each frame.
func tinyFrames(size int) func(context.Context, net.Conn) {
	return onHTTP2(func(_ context.Context, raw *fakeenvoy.Raw) {
		if raw.Open(1, "") == nil {
			_ = raw.Drip(1, size, size-1)
		}
	})
}
