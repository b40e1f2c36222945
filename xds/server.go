package xds

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// ResourceSource brings what a node is to have.
type ResourceSource interface {
	// Watch calls put with the node's set, at once when it is known and
	// again at every change, until ctx ends. put never blocks; only the
	// newest set counts. Supply returns nil only when ctx has ended. A gRPC
	// status error ends the stream with that status, any other error with
	// Unavailable.
	Watch(ctx context.Context, n Node, put func(*Set)) error
}

// Authorizer says who may have the configuration of a node.
type Authorizer interface {
	// Authorize returns nil if the caller may. A gRPC status error with
	// PermissionDenied, Unauthenticated or InvalidArgument (the node is
	// no gateway's) denies. Any other error means that there is no answer. Each
	// error ends the stream, also one that was authorised before.
	Authorize(ctx context.Context, c Caller, n Node) error
}

// Rejections hears what Envoys refuse.
type Rejections interface {
	// Rejected reports that an Envoy refuses what it was sent last of a type. over
	// is called once, when it has accepted what it was sent after that, or
	// refused something else, or its stream has ended. Neither blocks.
	Rejected(n Node, t Type, r Rejection) (over func())
}

// Rejection is what an Envoy says of a response that it refuses.
type Rejection struct {
	// Version and Nonce are those of the response. AcceptedNonce is that of the
	// last response of the type that the Envoy accepted on this stream; empty:
	// none.
	Version, Nonce, AcceptedNonce string
	// Resources are the first few names in the response.
	Resources []string
	// Message is Envoy's, without private keys and of limited length.
	Message string
}

// Options are the parts of a server. ResourceSource, Authorizer and Logger are
// required.
type Options struct {
	Source     ResourceSource
	Authorizer Authorizer
	Logger     *slog.Logger
	// Credentials are the server's side of TLS. Nil means plain text.
	Credentials credentials.TransportCredentials
	// Rejections may be nil.
	Rejections Rejections
	// Metrics may be nil: then nothing is counted.
	Metrics *Metrics
	// Reauthorize is how often a living stream is authorised again: it ends, or
	// is sent nothing, when there is no answer by then. Zero means 30 s.
	Reauthorize time.Duration
	// MetadataKeys are the keys of the node's metadata that ResourceSource and
	// Authorizer read.
	MetadataKeys []string
	// Limits bound what callers cost.
	Limits Limits
}

// Server serves the AggregatedDiscoveryService.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	options   Options
	admission *admission
	grpc      *grpc.Server
	living    living
	// background are the goroutines that outlive the stream's handler: gRPC
	// releases them when the handler has returned.
	background sync.WaitGroup
}

// NewServer makes a server; it does nothing until Serve.
func NewServer(o Options) *Server {
	if o.Reauthorize == 0 {
		o.Reauthorize = 30 * time.Second
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	if o.Credentials == nil {
		o.Credentials = insecure.NewCredentials()
	}
	s := &Server{options: o, admission: newAdmission(o.Limits, o.Metrics, o.Logger)}
	s.grpc = grpc.NewServer(serverOptions(o.Credentials)...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s.grpc, s)
	return s
}

// serverOptions are the codec that sends what is encoded already, the limits
// that hold before a stream is known, and what Envoys are used to from Consul: a
// ping every 15 s at most, also without a stream, and 2,048 streams a connection.
func serverOptions(creds credentials.TransportCredentials) []grpc.ServerOption {
	const window = 64 << 10 // bytes of a stream that gRPC takes before it is asked for them
	return []grpc.ServerOption{
		grpc.Creds(countingCredentials{creds}),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.WaitForHandlers(true),
		grpc.MaxConcurrentStreams(2048),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(16 * window),
		// Requests are small: a large buffer would only make connections dear.
		grpc.ReadBufferSize(8 << 10),
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

// Serve serves connections of l until Stop is called, and closes l.
func (s *Server) Serve(l net.Listener) error {
	return s.grpc.Serve(listener{l, s.admission})
}

// Stop ends all streams and connections, and returns when everything that they
// started has ended.
func (s *Server) Stop() {
	// gRPC waits for handshakes, and one that is never finished would hold it up.
	s.admission.closePending()
	s.grpc.Stop()
	s.background.Wait()
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
// session started has, too, but for what only the end of the stream ends.
func (s *Server) serve(stream grpc.ServerStream, p protocol) error {
	caller, conn, err := callerOf(stream.Context())
	if err != nil {
		if conn != nil {
			s.admission.reportDenial(conn, caller.Token, status.Convert(err).Message())
		}
		return err
	}
	e := newSession(stream, p, caller, conn, s)
	if e.admitted, err = s.admission.openStream(conn, caller.Token, e.end); err != nil {
		return err
	}
	defer e.admitted.close()
	streams := s.options.Metrics.streams.WithLabelValues(p.name)
	streams.Inc()
	defer streams.Dec()

	if !s.living.add(e) {
		e.close()
		return errShuttingDown
	}
	defer s.living.remove(e)
	err = e.recoverPanic(e.run)
	e.close()
	if reason := e.endReason(); reason != nil {
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
