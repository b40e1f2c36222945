package xds

import (
	"context"
	"errors"
	"log/slog"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
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

// Register adds the service to a gRPC server.
func (s *Server) Register(g *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
}

// ServerOptions are the options of a gRPC server for s: the limits Envoys are used to from Consul: a ping every
// 15 s at most, also without a stream, and 2,048 streams a connection.
func (s *Server) ServerOptions() []grpc.ServerOption {
	const maxRequest = 50 << 20 // bytes
	return []grpc.ServerOption{
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

// namedTypes are the types of which an empty list of names means none. Only for
// listeners and clusters does it mean all.
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#how-the-client-specifies-what-resources-to-return
var namedTypes = []string{Secret.URL(), Endpoint.URL(), Route.URL()}

// DeltaAggregatedResources serves one stream of the delta protocol.
func (s *Server) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(stream.Context(), "delta", func(ctx context.Context, e *session) error {
		server := delta.NewServer(ctx, e, e, delta.DeactivateLegacyWildcardForTypes(namedTypes))
		return server.DeltaStreamHandler(stream, resource.AnyType)
	})
}

// StreamAggregatedResources serves one stream of the state-of-the-world
// protocol.
func (s *Server) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(stream.Context(), "sotw", func(ctx context.Context, e *session) error {
		server := sotw.NewServer(ctx, e, e, sotw.WithOrderedADS(), sotw.DeactivateLegacyWildcardForTypes(namedTypes))
		return server.StreamHandler(stream, resource.AnyType)
	})
}

// serve runs a session with the stream server that speaks its protocol. It
// returns when the stream has ended and everything it started has, too.
func (s *Server) serve(ctx context.Context, protocol string, handle func(context.Context, *session) error) error {
	streams := s.options.Metrics.streams.WithLabelValues(protocol)
	streams.Inc()
	defer streams.Dec()

	ctx, cancel := context.WithCancelCause(ctx)
	e := newSession(ctx, cancel, s.options, protocol == "sotw")
	err := e.guard(func() error { return handle(ctx, e) })
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
