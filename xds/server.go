package xds

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
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

// ResourceSource watches the resources of a node.
type ResourceSource interface {
	// Watch calls update with the node's set as soon as it is known and again after every change, until ctx ends.
	// update never blocks if its calls do not overlap; only the newest set counts. Watch returns nil only when ctx
	// has ended. A gRPC status error ends the stream with that status, any other error with Unavailable.
	Watch(ctx context.Context, n Node, update func(*Set)) error
}

// Authorizer decides who may have the configuration of a node.
type Authorizer interface {
	// Authorize returns nil if the caller may. A gRPC status error with PermissionDenied, Unauthenticated or
	// InvalidArgument (the node belongs to no gateway) denies. Any other error means that there is no answer. Every
	// error ends the stream, even if the stream was authorized before.
	//
	// expiry is when the caller's credential expires; zero: never. The stream ends then. ctx ends with the stream, so
	// that an Authorizer can keep something until then.
	Authorize(ctx context.Context, c Caller, n Node) (expiry time.Time, err error)
}

// Observer receives what Envoys reject, lack and have. Its functions must not block.
type Observer interface {
	// Rejected reports that an Envoy rejects the latest response of a type. The server calls clearReport once: when
	// the Envoy accepts a later response, rejects another one, or its stream ends.
	Rejected(n Node, t Type, r Rejection) (clearReport func())
	// HeldBack reports, after each change, which listeners are held back that the Envoy does not have. The stream of
	// an Envoy has one n. ended is true in the last call for it, without listeners: the stream has ended.
	HeldBack(n *Node, listeners []string, ended bool)
	// Delivered reports that an Envoy has accepted everything in a set that it subscribes to, and so what was in the sets
	// before. n is that of its stream.
	Delivered(n *Node, s *Set)
}

// Rejection describes a response that an Envoy rejects.
type Rejection struct {
	// Version and Nonce are those of the response. AcceptedNonce is the nonce of the last response of the type that
	// the Envoy accepted on this stream, or empty.
	Version, Nonce, AcceptedNonce string
	AcceptedAt                    time.Time // when the Envoy accepted that response; zero: none on this stream
	// Resources are what the Envoy refuses, in order: those that its error names, or all that have changed in the response,
	// and those that it has refused before. A resource is one of them until it is sent again and accepted, or removed.
	Resources []string
	Missing   []string // those of Resources of which the Envoy has no version, because it has rejected each one
	Repeated  bool     // it was reported before, and Resources have changed since
	Message   string   // Envoy's error, shortened and without private keys
}

// Options are the parts of a server. Source, Authorizer and Logger are required.
type Options struct {
	Source      ResourceSource
	Authorizer  Authorizer
	Logger      *slog.Logger
	Credentials credentials.TransportCredentials // nil means plain text
	Observer    Observer                         // may be nil
	Metrics     *Metrics                         // may be nil
	// Reauthorize is how long an answer of the Authorizer is valid. A stream whose answer has expired ends, or is
	// sent nothing. Zero means 30 s.
	Reauthorize  time.Duration
	MetadataKeys []string // of the node's metadata that Source and Authorizer read
	Limits       Limits   // of what callers may use
	Reports      Reports  // nil: Envoys report nothing
}

// Server serves the AggregatedDiscoveryService.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	options   Options
	admission *admission
	grpc      *grpc.Server
	// background are the goroutines that outlive their stream's handler: gRPC releases them when it has returned.
	background sync.WaitGroup
}

// NewServer returns a server. It does nothing until Serve.
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
	if o.Reports != nil {
		s.grpc.RegisterService(&reportService, s)
	}
	return s
}

// serverOptions returns the codec for encoded messages, the limits that apply before a stream is known, and what
// Envoys expect from Consul's server: at most one ping every 15 s, even without a stream, and 2,048 streams per
// connection.
func serverOptions(creds credentials.TransportCredentials) []grpc.ServerOption {
	const window = 64 << 10 // bytes of a stream that a client may send ahead
	return []grpc.ServerOption{
		grpc.Creds(countingCredentials{creds}),
		grpc.ForceServerCodecV2(codec{}),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.WaitForHandlers(true),
		grpc.MaxConcurrentStreams(2048),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(16 * window),
		// Requests are small. A large buffer would only make connections expensive.
		grpc.ReadBufferSize(8 << 10),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 15 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
	}
}

// Serve serves the connections of l until Stop is called, and closes l.
func (s *Server) Serve(l net.Listener) error {
	return s.grpc.Serve(listener{Listener: l, admission: s.admission})
}

// ServeDecrypted is Serve for connections that another server of this process has decrypted. They may only come from
// there: they are served without TLS, and their RemoteAddr counts as the client's address.
func (s *Server) ServeDecrypted(l net.Listener) error {
	return s.grpc.Serve(listener{Listener: l, admission: s.admission, decrypted: true})
}

// Stop ends all streams and connections. It returns when everything that they started has ended.
func (s *Server) Stop() {
	// gRPC waits for handshakes, and a client may never finish one.
	s.admission.shutDown()
	s.grpc.Stop()
	s.background.Wait()
	s.admission.refusals.stop()
}

// Streams returns how many streams are open.
func (s *Server) Streams() int {
	s.admission.mu.Lock()
	defer s.admission.mu.Unlock()
	return len(s.admission.streams)
}

// Nodes returns the nodes of the streams that are open and authorized, in no order.
func (s *Server) Nodes() []Node {
	s.admission.mu.Lock()
	defer s.admission.mu.Unlock()
	var nodes []Node
	for stream := range s.admission.streams {
		if stream.node != nil {
			nodes = append(nodes, *stream.node)
		}
	}
	return nodes
}

// errShuttingDown ends the streams of a server that drains, and refuses new ones. Envoy then connects again.
var errShuttingDown = status.Error(codes.Unavailable, "usher is shutting down; Envoy connects again by itself")

// Drain ends Serve. It takes no more connections and ends the open streams with Unavailable: the first at once, the
// others spread over the given time, so that Envoys do not all connect to the remaining Ushers at the same moment.
// When all streams or ctx have ended, it stops the server as Stop does. Call it once.
func (s *Server) Drain(ctx context.Context, over time.Duration) {
	streams := s.admission.shutDown()
	ctx, stopped := context.WithCancel(ctx)
	var graceful sync.WaitGroup
	// Each connection gets a GOAWAY. Envoy then opens its next stream on a new connection, which leads to another
	// Usher.
	graceful.Go(func() {
		defer stopped()
		s.grpc.GracefulStop()
	})
	ends := make([]func(), len(streams))
	for i, stream := range streams {
		ends[i] = func() { stream.end(errShuttingDown) }
	}
	EndOver(ctx, over, ends)
	<-ctx.Done()
	s.Stop()
	graceful.Wait()
}

// minSpread is the number of streams from which on a drain uses all of its time. The time is there to spread many
// reconnects; fewer streams end sooner.
const minSpread = 50

// EndOver calls functions that end a stream, one after the other and spread over the given time, until none is left or ctx
// ends.
func EndOver(ctx context.Context, over time.Duration, ends []func()) {
	gap := over / time.Duration(max(len(ends), minSpread))
	begin := time.Now()
	for i, end := range ends {
		if i > 0 && gap > 0 {
			due := begin.Add(time.Duration(i-1)*gap + rand.N(gap))
			select {
			case <-time.After(time.Until(due)):
			case <-ctx.Done():
				return
			}
		}
		end()
	}
}

// DeltaAggregatedResources serves one stream of the delta protocol.
func (s *Server) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(stream, delta)
}

// StreamAggregatedResources serves one stream of the state-of-the-world protocol.
func (s *Server) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(stream, stateOfTheWorld)
}

// serve runs a session. It returns when the stream and the session's workers have ended; only the background
// goroutines may still run.
func (s *Server) serve(stream grpc.ServerStream, p protocol) error {
	caller, conn, err := callerOf(stream.Context())
	if err != nil {
		s.admission.reportRefusal(conn, caller.Credential, status.Convert(err).Message(), true)
		return err
	}
	session := newSession(stream, p, caller, conn, s)
	if session.admitted, err = s.admission.openStream(conn, caller.Credential, session.end); err != nil {
		return err
	}
	defer session.admitted.close()
	streams := s.options.Metrics.streams.WithLabelValues(p.name)
	streams.Inc()
	defer streams.Dec()
	err = recoverPanic(session.log, session.run)
	session.close()
	return cmp.Or(session.endReason(), err)
}

// statusOf returns err as a status. An error without a status becomes Unavailable, and Envoy connects again.
func statusOf(err error) error {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus().Err()
	}
	return status.Error(codes.Unavailable, err.Error())
}
