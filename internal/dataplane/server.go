package dataplane

import (
	"cmp"
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

	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/xds"
)

// XDS serves the streams of gateways: an xds.Server.
type XDS interface {
	// ServeDecrypted serves the connections of l until the XDS stops, and closes l.
	ServeDecrypted(l net.Listener) error
}

// Options are the parts of a server. XDS, KindOf, DialConsul and Logger are required.
type Options struct {
	XDS XDS
	// KindOf returns what Consul's catalog has for a node. A gRPC status error with InvalidArgument refuses the node. Any
	// other error means that there is no answer.
	KindOf       func(ctx context.Context, n xds.Node) (Kind, error)
	MetadataKeys []string // of the node's metadata that KindOf reads, with node_name
	// BootstrapTemplate is the template of Envoy's bootstrap for gateways that have none in Consul; "" leaves them with
	// that of consul-dataplane.
	BootstrapTemplate string
	// DialConsul returns a connection to Consul's gRPC port. After an error, the next call tries again.
	DialConsul func(ctx context.Context, options ...grpc.DialOption) (*grpc.ClientConn, error)
	// Generation returns a number that changes when DialConsul leads to another Consul agent: calls then use a new connection.
	// Nil: it always leads to the same one.
	Generation  func() int
	Logger      *slog.Logger
	Credentials credentials.TransportCredentials // nil means plain text
	Metrics     *Metrics                         // may be nil
	Reports     xds.Reports                      // nil: Envoys report nothing
	Limits      Limits
}

// Server is a gRPC server for consul-dataplane.
type Server struct {
	options   Options
	log       *slog.Logger
	metrics   *Metrics
	grpc      *grpc.Server
	admission *admission
	consul    *consulConns
	kinds     *kinds
	handover  *handover

	background *background

	mu       sync.Mutex
	draining bool
	streams  map[*call]struct{} // discovery streams that go to Consul
}

// NewServer returns a server. It does nothing until Serve.
func NewServer(o Options) *Server {
	o.Metrics = cmp.Or(o.Metrics, NewMetrics(nil))
	if o.Credentials == nil {
		o.Credentials = insecure.NewCredentials()
	}
	s := &Server{
		options: o, log: o.Logger.With("part", "dataplane"), metrics: o.Metrics,
		admission: newAdmission(o.Limits, o.Metrics), handover: newHandover(), streams: map[*call]struct{}{},
	}
	s.background = newBackground(s.log)
	if o.Generation == nil {
		o.Generation = func() int { return 0 }
	}
	s.consul = &consulConns{dial: o.DialConsul, generation: o.Generation, log: s.log, background: s.background}
	s.kinds = newKinds(o.KindOf, s.background)
	s.grpc = grpc.NewServer(serverOptions(o.Credentials, s.handle)...)
	return s
}

const (
	maxMessage    = 50 << 20 // bytes; Consul's own limit
	maxHeaders    = 16 << 10 // bytes, decoded; bearer tokens have a few KiB
	handshakeTime = 10 * time.Second
	// idleTime is how long a connection may be open without a call. consul-dataplane makes one every minute.
	idleTime = 5 * time.Minute
	// maxCallsPerConnection is more than a consul-dataplane needs, which has a few streams and sends DNS queries.
	maxCallsPerConnection = 256
)

// serverOptions returns what consul-dataplane expects from Consul's server: messages of 50 MiB, and at most one ping every
// 15 s, even without a call.
func serverOptions(creds credentials.TransportCredentials, handle grpc.StreamHandler) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(connCredentials{creds}),
		grpc.ForceServerCodecV2(codec{}),
		grpc.UnknownServiceHandler(handle),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.WaitForHandlers(true),
		grpc.MaxConcurrentStreams(maxCallsPerConnection),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.StaticStreamWindowSize(windowSize),
		grpc.StaticConnWindowSize(16 * windowSize),
		grpc.ReadBufferSize(8 << 10),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 15 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 30 * time.Second, Timeout: 20 * time.Second, MaxConnectionIdle: idleTime,
		}),
	}
}

// Serve serves the connections of l until Stop is called, and closes l. Call it once.
func (s *Server) Serve(l net.Listener) error {
	s.background.Go(func() {
		// It ends with this server or with the XDS. Streams of gateways are then refused with Unavailable.
		if err := s.options.XDS.ServeDecrypted(s.handover); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, grpc.ErrServerStopped) {
			s.log.Error("the xDS server takes no more streams from consul-dataplane", "error", err)
		}
	})
	return s.grpc.Serve(listener{l, s.admission})
}

// Stop ends all calls and connections. It returns when everything that they started has ended.
func (s *Server) Stop() {
	s.shutDown()
	s.admission.close() // gRPC waits for handshakes, and a client may never finish one
	s.grpc.Stop()
	s.handover.Close()
	s.background.stop(errShuttingDown)
	s.background.Wait()
	s.consul.close()
}

// errShuttingDown ends the streams of a server that drains, and refuses new calls. consul-dataplane then connects again.
var errShuttingDown = status.Error(codes.Unavailable, "usher is shutting down; consul-dataplane connects again by itself")

// shutDown refuses new calls. It returns the functions that end the discovery streams to Consul.
func (s *Server) shutDown() []func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	var ends []func()
	for c := range s.streams {
		ends = append(ends, func() { c.end(errShuttingDown) })
	}
	return ends
}

// Drain ends Serve. It takes no more connections and calls, and ends the discovery streams to Consul, spread over the given
// time; those to the XDS end with the XDS. Other calls may end by themselves. When all have ended, or ctx, it stops the
// server as Stop does. Call it once.
func (s *Server) Drain(ctx context.Context, over time.Duration) {
	ends := s.shutDown()
	ctx, stopped := context.WithCancel(ctx)
	var graceful sync.WaitGroup
	// Each connection gets a GOAWAY. consul-dataplane makes its next call on a new connection, which leads to another Usher.
	graceful.Go(func() {
		defer stopped()
		s.grpc.GracefulStop()
	})
	xds.EndOver(ctx, over, ends)
	<-ctx.Done()
	s.Stop()
	graceful.Wait()
}

// The methods that are not only passed on.
const (
	watchServersMethod = "/hashicorp.consul.serverdiscovery.ServerDiscoveryService/WatchServers"
	featuresMethod     = "/hashicorp.consul.dataplane.DataplaneService/GetSupportedDataplaneFeatures"
	paramsMethod       = "/hashicorp.consul.dataplane.DataplaneService/GetEnvoyBootstrapParams"
	// The answers to these need a token, so that a caller who gets one has proven who it is.
	dataplaneService = "/hashicorp.consul.dataplane.DataplaneService/"
	loginMethod      = "/hashicorp.consul.acl.ACLService/Login"
	adsMethod        = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName
)

// handle handles every call.
func (s *Server) handle(_ any, in grpc.ServerStream) error {
	c, err := s.newCall(in)
	if err != nil {
		s.metrics.calls.WithLabelValues("limited").Inc()
		return err
	}
	defer c.close()
	err = guard.Run(s.log, "dataplane call", func() error { return s.serve(c) })
	if _, panicked := errors.AsType[*guard.Error](err); panicked {
		return status.Error(codes.Internal, "internal error in usher; its log has the stack")
	}
	return err
}

func (s *Server) serve(c *call) error {
	switch c.method {
	case watchServersMethod:
		return s.refuse(errWatchServers)
	case adsMethod:
		if c.isReport() {
			return s.receiveReport(c)
		}
		return s.serveADS(c)
	case featuresMethod:
		return s.passToConsul(c, withoutWatchServers)
	case paramsMethod:
		if s.options.BootstrapTemplate != "" {
			return s.passToConsul(c, func(f frame) (frame, error) { return s.withBootstrap(c, f) })
		}
	}
	return s.passToConsul(c, nil)
}

// refuse counts a call that is refused.
func (s *Server) refuse(err error) error {
	s.metrics.calls.WithLabelValues("refused").Inc()
	return err
}
