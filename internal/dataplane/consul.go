package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/proto-public/pbdataplane"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// errWatchServers refuses a call that would lead consul-dataplane past Usher: it replaces the addresses that
// consul-dataplane connects to by those of Consul's servers.
var errWatchServers = status.Error(codes.Unimplemented,
	"usher does not answer WatchServers, because it would lead consul-dataplane past Usher; start consul-dataplane with -server-watch-disabled=true")

// withoutWatchServers changes the answer to GetSupportedDataplaneFeatures: WatchServers is not supported. What this
// process does not know in the message stays as it is.
func withoutWatchServers(f frame) (frame, error) {
	var r pbdataplane.GetSupportedDataplaneFeaturesResponse
	if err := proto.Unmarshal(f, &r); err != nil {
		return nil, status.Error(codes.Internal, "consul's answer to GetSupportedDataplaneFeatures cannot be decoded; check that the address is Consul's gRPC port")
	}
	for _, feature := range r.SupportedDataplaneFeatures {
		if feature.GetFeatureName() == pbdataplane.DataplaneFeatures_DATAPLANE_FEATURES_WATCH_SERVERS {
			feature.Supported = false
		}
	}
	return proto.Marshal(&r)
}

// dialTime bounds the question where Consul's gRPC port is.
const dialTime = 5 * time.Second

// callsPerConsulConn is how many calls a connection to Consul has. Consul opens at most 2,048 streams on one, and further ones
// would wait for the end of others.
const callsPerConsulConn = 1024

// consulConns are the connections to Consul's gRPC port: one, and more once there were more calls.
type consulConns struct {
	dial       func(ctx context.Context, options ...grpc.DialOption) (*grpc.ClientConn, error)
	generation func() int // see Options.Generation
	log        *slog.Logger
	background *background
	dialing    singleflight.Group
	failing    atomic.Bool // the latest call did not reach Consul

	mu    sync.Mutex
	conns []*consulConn
}

// consulConn is one of them.
type consulConn struct {
	*grpc.ClientConn
	calls      atomic.Int32
	generation int
}

// hasRoom reports whether a connection takes one more call.
func (c *consulConns) hasRoom(conn *consulConn) bool {
	return conn.calls.Load() < callsPerConsulConn && conn.generation == c.generation()
}

// dialOptions connect to every address of Consul's gRPC port, and give each call to another one. So the discovery streams
// spread over Consul's servers, and a stream that an overloaded server ends comes to another one.
func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithDisableRetry(), // consul-dataplane decides what to try again
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage),
		),
		grpc.WithStaticStreamWindowSize(windowSize),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.WithStatsHandler(outcomes{}),
	}
}

// get returns the first connection that has room for a call. Calls that come before it is there wait for the same attempt.
// The caller calls release when the call has ended.
func (c *consulConns) get(ctx context.Context) (conn *grpc.ClientConn, release func(), err error) {
	for {
		if conn := c.free(); conn != nil {
			return conn.ClientConn, func() { conn.calls.Add(-1) }, nil
		}
		if _, err := share(ctx, c.background, &c.dialing, "", c.open); err != nil {
			return nil, nil, err
		}
	}
}

// free adds a call to the first connection that has room for it, and returns the connection; nil: there is none.
func (c *consulConns) free() *consulConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.conns, c.hasRoom)
	if i < 0 {
		return nil
	}
	c.conns[i].calls.Add(1)
	return c.conns[i]
}

// open adds a connection, unless an attempt that has just ended did.
func (c *consulConns) open(ctx context.Context) (_ struct{}, err error) {
	c.mu.Lock()
	added := slices.ContainsFunc(c.conns, c.hasRoom)
	c.mu.Unlock()
	if added {
		return struct{}{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	generation := c.generation()
	conn, err := c.dial(ctx, dialOptions()...)
	if err != nil {
		return struct{}{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, &consulConn{ClientConn: conn, generation: generation})
	c.closeUnused()
	return struct{}{}, nil
}

// closeUnused closes the connections of earlier generations that carry no call. The caller holds mu.
func (c *consulConns) closeUnused() {
	c.conns = slices.DeleteFunc(c.conns, func(conn *consulConn) bool {
		unused := conn.generation != c.generation() && conn.calls.Load() == 0
		if unused {
			conn.Close()
		}
		return unused
	})
}

// close closes the connections, after the last open.
func (c *consulConns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
}

// unreachable returns the status for a call that did not reach Consul, and logs the first one of an outage.
func (c *consulConns) unreachable(why string) error {
	if !c.failing.Swap(true) {
		c.log.Warn("cannot pass calls of consul-dataplane to consul's gRPC port", "error", why)
	}
	return status.Error(codes.Unavailable, fmt.Sprintf("usher cannot reach consul's gRPC port: %s; consul-dataplane tries again by itself", why))
}

// reached records that Consul has answered a call.
func (c *consulConns) reached() {
	if c.failing.Load() && c.failing.Swap(false) {
		c.log.Info("consul's gRPC port answers again")
	}
}

// passToConsul passes a call on to Consul. edit changes Consul's answer, unless it is nil.
func (s *Server) passToConsul(c *call, edit func(frame) (frame, error)) error {
	first, err := c.first()
	if err != nil {
		return s.refuse(err)
	}
	return s.passFirstToConsul(c, first, edit)
}

// passFirstToConsul is passToConsul for a call whose first message was read.
func (s *Server) passFirstToConsul(c *call, first *frame, edit func(frame) (frame, error)) error {
	r := result{}
	conn, release, err := s.consul.get(c.ctx)
	if err == nil {
		r = c.pass(conn, first, edit)
		release()
	} else {
		r.err = status.Error(codes.Unavailable, err.Error())
	}
	label := "ok"
	switch {
	case r.answered:
		s.consul.reached()
		if r.err != nil {
			label = "error"
		}
	case c.ctx.Err() != nil: // the caller has gone, or the server ends
		label, r.err = "canceled", c.reason(r.err)
	case status.Code(r.err) == codes.Unavailable:
		label, r.err = "unreachable", s.consul.unreachable(status.Convert(r.err).Message())
	case r.err != nil:
		label = "error" // such as a message that is too large
	}
	s.metrics.calls.WithLabelValues(label).Inc()
	return r.err
}
