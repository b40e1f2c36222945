package dataplane

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/xds"
)

// serveADS decides who answers a discovery stream: the XDS if it is a gateway's, and Consul if it is another proxy's. If it
// is not known whose it is, it ends: Consul would serve a gateway without what Usher adds. Consul looks at the node's id, so
// the node's cluster alone does not decide.
func (s *Server) serveADS(c *call) error {
	first, err := c.first()
	if err == nil && first == nil {
		err = status.Error(codes.InvalidArgument, "the stream has no request; check that the caller is an Envoy")
	}
	if err != nil {
		return s.refuse(err)
	}
	node, err := xds.NodeOf(*first, s.options.MetadataKeys)
	if err != nil {
		return s.refuse(status.Error(codes.InvalidArgument, "invalid request: "+err.Error()))
	}
	isGateway, err := s.kinds.isGateway(c.ctx, c.conn.network, node)
	switch {
	case err != nil:
		s.metrics.streams.WithLabelValues("unknown").Inc()
		return s.refuse(err)
	case isGateway:
		return s.passToXDS(c, first)
	}
	if !s.track(c) {
		return errShuttingDown
	}
	defer s.untrack(c)
	defer s.metrics.countStream("consul")()
	s.background.Go(func() { s.watchKind(c, node) })
	return s.passFirstToConsul(c, first, nil)
}

// recheckTime is the time between the questions about the kind of a node whose stream goes to Consul.
const recheckTime = time.Minute

// watchKind ends a discovery stream to Consul when its node belongs to an ingress gateway, until the stream ends.
func (s *Server) watchKind(c *call, node xds.Node) {
	pause := kindTime + rand.N(recheckTime-kindTime) // streams that begin together do not ask together
	for ; ; pause = recheckTime {
		select {
		case <-time.After(pause):
		case <-c.ctx.Done():
			return
		}
		if err := s.refuseConsul(c, node); err != nil {
			c.end(err)
			return
		}
	}
}

// refuseConsul returns the status with which a stream to Consul ends; nil unless it is known that Consul must not serve the
// node. Without an answer the stream stays: it was another proxy's when it began.
func (s *Server) refuseConsul(c *call, node xds.Node) error {
	isGateway, err := s.kinds.isGateway(c.ctx, c.conn.network, node)
	switch {
	case status.Code(err) == codes.InvalidArgument: // it is a gateway under another name
		return err
	case err != nil, !isGateway:
		return nil
	}
	s.log.Info("an Envoy of consul-dataplane belongs to an ingress gateway now; usher serves it instead of consul",
		"service", node.Cluster, "envoy", node.ID)
	return status.Errorf(codes.Unavailable,
		"%q is an ingress gateway now, which usher serves instead of consul; Envoy connects again by itself", node.ID)
}

// track adds a discovery stream that Drain has to end. It reports false if Drain has begun.
func (s *Server) track(c *call) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return false
	}
	s.streams[c] = struct{}{}
	return true
}

func (s *Server) untrack(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, c)
}

// passToXDS passes a discovery stream on to the XDS, over a connection that only this stream has. So the XDS can count and
// end the connection as it does with those that Envoys open.
func (s *Server) passToXDS(c *call, first *frame) error {
	defer s.metrics.countStream("usher")()
	conn, err := grpc.NewClient("passthrough:///usher",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return s.handover.dial(ctx, c.conn.RemoteAddr())
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(maxResponse)),
		grpc.WithStaticStreamWindowSize(windowSize),
		grpc.WithStaticConnWindowSize(windowSize),
		grpc.WithStatsHandler(outcomes{}),
	)
	if err != nil {
		return status.Error(codes.Internal, "the connection to usher's xDS server: "+err.Error())
	}
	defer conn.Close()
	r := c.pass(conn, first, nil)
	if !r.answered && r.sent && c.ctx.Err() == nil {
		// The XDS has closed the connection, so that the Envoy does not get what it has not read yet. gRPC would still
		// send the part that was passed on.
		_ = c.conn.Close()
	}
	return r.err
}

// maxResponse is more than any response of Usher's xDS server has. Envoy and consul-dataplane have limits of their own.
const maxResponse = 1 << 30

// handover is a listener that accepts connections from this process.
type handover struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandover() *handover {
	return &handover{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// handedConn is the server's end of a connection. Its remote address is that of the consul-dataplane.
type handedConn struct {
	net.Conn
	remote net.Addr
}

func (c handedConn) RemoteAddr() net.Addr { return c.remote }

// dial returns the client's end of a connection.
func (h *handover) dial(ctx context.Context, remote net.Addr) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case h.conns <- handedConn{server, remote}:
		return client, nil
	case <-h.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Accept implements net.Listener.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handover) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *handover) Addr() net.Addr { return &net.UnixAddr{Name: "consul-dataplane", Net: "unix"} }
