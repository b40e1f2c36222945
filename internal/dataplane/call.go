package dataplane

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// frame is an encoded message.
type frame []byte

// size returns how many bytes the message has on its connection.
func (f frame) size() int {
	const prefix = 5 // bytes that gRPC puts before each message
	return len(f) + prefix
}

// codec passes encoded messages as they are.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.(frame))}, nil
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*frame) = data.Materialize()
	return nil
}

const (
	// windowSize is how many bytes of a call may be on the way ahead of their reader. A message may be larger.
	windowSize = 64 << 10
	// sendTime is how long a caller may take to read a message.
	sendTime = 2 * time.Minute
	// firstMessageTime is the time from a call's start to its first message. Each method that consul-dataplane calls has
	// one.
	firstMessageTime = 10 * time.Second
)

// call is a call of a consul-dataplane.
type call struct {
	in       grpc.ServerStream
	method   string
	conn     *connection
	admitted *admittedCall
	ctx      context.Context         // of the call
	end      context.CancelCauseFunc // ends the call with a status; any goroutine may call it
	requests chan frame              // closed after the last one
	server   *Server
}

// newCall admits a call and starts to read its messages. An error is a status.
func (s *Server) newCall(in grpc.ServerStream) (*call, error) {
	s.mu.Lock()
	draining := s.draining
	s.mu.Unlock()
	if draining {
		return nil, errShuttingDown
	}
	p, _ := peer.FromContext(in.Context())
	conn := p.AuthInfo.(authInfo).conn // from connCredentials
	method, _ := grpc.MethodFromServerStream(in)
	c := &call{in: in, method: method, conn: conn, requests: make(chan frame), server: s}
	c.ctx, c.end = context.WithCancelCause(in.Context())
	var err error
	if c.admitted, err = s.admission.openCall(conn, c.end); err != nil {
		c.end(nil)
		return nil, err
	}
	c.run(c.read)
	return c, nil
}

func (c *call) close() {
	c.end(nil)
	c.server.admission.closeCall(c.admitted)
}

// run runs f in the background. Messages of the call count against the limits until it returns.
func (c *call) run(f func()) {
	c.server.admission.addUser(c.admitted)
	c.server.background.Go(func() {
		defer c.server.admission.leave(c.admitted)
		f()
	})
}

// read passes the caller's messages to requests. Only the end of the call's handler ends it.
func (c *call) read() {
	defer close(c.requests)
	for {
		var f frame
		if err := c.in.RecvMsg(&f); err != nil {
			if !errors.Is(err, io.EOF) {
				c.end(err)
			}
			return
		}
		c.server.admission.countRead(c.admitted, f.size())
		select {
		case c.requests <- f:
		case <-c.ctx.Done():
			return
		}
	}
}

// first returns the first message, which may be empty; nil if the caller sends none. An error is a status.
func (c *call) first() (*frame, error) {
	timeout := time.NewTimer(firstMessageTime)
	defer timeout.Stop()
	select {
	case f, ok := <-c.requests:
		if !ok {
			return nil, c.ended() // nil if the caller has nothing to send
		}
		return &f, nil
	case <-c.ctx.Done():
		return nil, c.ended()
	case <-timeout.C:
		return nil, status.Errorf(codes.DeadlineExceeded,
			"no message within %v of the call's start; check that the caller is a consul-dataplane", firstMessageTime)
	}
}

// ended returns the status with which the call has ended before its other end did; nil if it has not.
func (c *call) ended() error {
	cause := context.Cause(c.ctx)
	if cause == nil {
		return nil
	}
	if s, ok := status.FromError(cause); ok {
		return s.Err()
	}
	return status.FromContextError(cause).Err()
}

// result says how a call that was passed on has ended.
type result struct {
	err      error // a status
	answered bool  // the status is the other server's, and not this process's for a connection that failed
	sent     bool  // the first message of the other server was, or began to be, passed to the caller
}

// pass passes the call on to another server, in both directions, until that server or the caller ends it. first is the
// message that was read already; nil: none. edit changes the other server's messages, unless it is nil.
func (c *call) pass(to grpc.ClientConnInterface, first *frame, edit func(frame) (frame, error)) result {
	var end outcome
	ctx, cancel := context.WithCancel(context.WithValue(c.ctx, outcomeKey{}, &end))
	defer cancel()
	headers, _ := metadata.FromIncomingContext(ctx) // gRPC leaves out those of the connection
	headers.Delete("grpc-accept-encoding")          // of the caller; this process has its own
	ctx = metadata.NewOutgoingContext(ctx, headers)
	out, err := to.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, c.method)
	if err != nil {
		return result{err: c.reason(err)}
	}
	c.run(func() { c.passRequests(out, first) })
	sent, err := c.passResponses(out, edit)
	return result{err: c.reason(err), answered: end.hasStatus.Load(), sent: sent}
}

// reason returns the status of a call: the one with which this process ended it, or else the other server's.
func (c *call) reason(err error) error {
	if ended := c.ended(); ended != nil {
		return ended
	}
	return err
}

// passRequests passes the caller's messages on until the caller has sent all, or the call has ended.
func (c *call) passRequests(out grpc.ClientStream, first *frame) {
	if first != nil && c.passRequest(out, *first) != nil {
		return // passResponses has the reason
	}
	for {
		select {
		case f, ok := <-c.requests:
			if !ok {
				_ = out.CloseSend() // it never fails
				return
			}
			if c.passRequest(out, f) != nil {
				return
			}
		case <-out.Context().Done():
			return
		}
	}
}

// passRequest passes a message of the caller on, which no longer counts against the limits then.
func (c *call) passRequest(out grpc.ClientStream, f frame) error {
	err := out.SendMsg(f)
	c.server.admission.countPassed(c.admitted, f.size())
	return err
}

// passResponses passes the other server's headers, messages and trailers to the caller, and returns its status.
func (c *call) passResponses(out grpc.ClientStream, edit func(frame) (frame, error)) (sent bool, err error) {
	if headers, err := out.Header(); err == nil && len(headers) > 0 {
		_ = c.in.SendHeader(headers) // if it fails, so does SendMsg
	}
	sender := newSender(c)
	defer sender.close()
	for {
		var f frame
		if err := out.RecvMsg(&f); err != nil {
			c.in.SetTrailer(out.Trailer())
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return sent, err
		}
		if !sent && c.needsToken() {
			c.server.admission.markProven(c.conn)
		}
		if edit != nil {
			if f, err = edit(f); err != nil {
				return sent, err
			}
		}
		sent = true
		if err := sender.send(f); err != nil {
			return sent, err
		}
	}
}

// needsToken reports whether Consul answers the call only for a caller with a token, if its ACLs are on.
func (c *call) needsToken() bool {
	return c.method == adsMethod || c.method == loginMethod || strings.HasPrefix(c.method, dataplaneService)
}

// sender sends messages to a caller. A caller that does not read one holds up only the sender: the call's handler returns,
// which ends the call.
type sender struct {
	call     *call
	messages chan frame
	sent     chan error
}

func newSender(c *call) *sender {
	s := &sender{call: c, messages: make(chan frame), sent: make(chan error, 1)}
	c.server.background.Go(func() {
		for f := range s.messages {
			s.sent <- c.in.SendMsg(f)
		}
	})
	return s
}

// close has to be called once, after the last send.
func (s *sender) close() { close(s.messages) }

// send sends a message. An error is the reason why the call ends.
func (s *sender) send(f frame) error {
	s.messages <- f
	timeout := time.NewTimer(sendTime)
	defer timeout.Stop()
	select {
	case err := <-s.sent:
		return err
	case <-s.call.ctx.Done():
		return s.call.ended()
	case <-timeout.C:
		s.call.server.metrics.limited.WithLabelValues("send_time").Inc()
		return status.Errorf(codes.DeadlineExceeded,
			"the caller has not read a message for %v; check whether its Envoy is overloaded", sendTime)
	}
}

// outcome is what the client of a call sees of its end, besides the status: whether that came from the server.
type outcome struct{ hasStatus atomic.Bool }

type outcomeKey struct{}

// outcomes is a stats.Handler that records outcomes.
type outcomes struct{}

func (outcomes) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (outcomes) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (outcomes) HandleConn(context.Context, stats.ConnStats)                       {}

func (outcomes) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.InTrailer); !ok {
		return
	}
	if o, ok := ctx.Value(outcomeKey{}).(*outcome); ok {
		o.hasStatus.Store(true)
	}
}
