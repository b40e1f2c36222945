package xds

import (
	"context"
	"errors"
	"log/slog"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// Supplier brings what a node is to have.
type Supplier interface {
	// Supply calls put with the node's set, at once when it is known and
	// again at every change, until ctx ends. put never blocks; only the
	// newest set counts. Supply returns nil only when ctx has ended. A gRPC
	// status error ends the stream with that status, any other error with
	// Unavailable.
	Supply(ctx context.Context, n Node, put func(*Set)) error
}

// Authorizer says who may have the configuration of a node.
type Authorizer interface {
	// Authorize returns nil if the caller may. A gRPC status error with
	// PermissionDenied, Unauthenticated or InvalidArgument (the node is
	// nobody's) denies: the stream ends with it, at whatever time. Any other
	// error means that nobody could be asked: a stream that opens ends with
	// Unavailable, one that lives goes on until the next answer.
	Authorize(ctx context.Context, c Caller, n Node) error
}

// Options are the parts of a server. Supplier, Authorizer and Logger are
// required.
type Options struct {
	Supplier   Supplier
	Authorizer Authorizer
	Logger     *slog.Logger
	// Metrics may be nil: then nothing is counted.
	Metrics *Metrics
	// Reauthorize is how often a living stream is authorised again. Zero
	// means 30 s.
	Reauthorize time.Duration
}

// Server serves the AggregatedDiscoveryService.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	options Options
	living  living
}

// NewServer makes a server; it does nothing until a stream opens.
func NewServer(o Options) *Server {
	if o.Reauthorize == 0 {
		o.Reauthorize = 30 * time.Second
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	return &Server{options: o}
}

// Register adds the service to a gRPC server, which must have been made with
// ServerOptions.
func (s *Server) Register(g *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
}

// ServerOptions are the options of a gRPC server for s: the codec that sends what is encoded already, and the
// limits Envoys are used to from Consul: a ping every 15 s at most, also without a stream, and 2,048 streams a
// connection.
func (s *Server) ServerOptions() []grpc.ServerOption {
	const maxRequest = 50 << 20 // bytes
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxConcurrentStreams(2048),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime:             15 * time.Second,
			PermitWithoutStream: true,
		}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time:    30 * time.Second,
			Timeout: 20 * time.Second,
		}),
	}
}

// DeltaAggregatedResources serves one stream of the delta protocol.
func (s *Server) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(stream, delta)
}

// StreamAggregatedResources serves one stream of the state-of-the-world
// protocol.
func (s *Server) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(stream, stateOfTheWorld)
}

// serve runs a session. It returns when the stream has ended and what the
// session started has, too.
func (s *Server) serve(stream grpc.ServerStream, p protocol) error {
	streams := s.options.Metrics.streams.WithLabelValues(p.name)
	streams.Inc()
	defer streams.Dec()

	e := newSession(stream, p, s.options)
	if !s.living.add(e) {
		e.close()
		return errShuttingDown
	}
	defer s.living.remove(e)
	err := e.guard(e.run)
	e.close()
	if reason := e.reason(); reason != nil {
		return reason
	}
	return err
}

// statusOf gives err as a status. What is none becomes Unavailable: Envoy comes
// again.
func statusOf(err error) error {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus().Err()
	}
	return status.Error(codes.Unavailable, err.Error())
}

// denies says whether an Authorizer's error is an answer.
func denies(err error) bool {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument:
		return true
	default:
		return false
	}
}
