package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// patience is how long listeners, routes and removals wait for Envoy at most.
// It is a little more than the 15 s after which Envoy itself gives up waiting
// for endpoints (initial_fetch_timeout).
const patience = 20 * time.Second

// session is one stream: its caller, its node, its conversation. They belong to
// the goroutine of run. Beside it one goroutine reads requests and one waits for
// sets; from time to time another asks whether the caller still may.
type session struct {
	options  Options
	protocol protocol
	stream   grpc.ServerStream
	caller   Caller
	ctx      context.Context // of the stream's life
	cancel   context.CancelCauseFunc
	workers  sync.WaitGroup

	// node and log are set by the first request, before the workers start.
	node *Node
	log  *slog.Logger

	// latest is the newest set; kick says that there is one.
	latest atomic.Pointer[Set]
	kick   chan struct{}

	talk *conversation
	// late fires when the conversation has waited for too long; waiting is
	// true while it runs.
	late    *time.Timer
	waiting bool
	// doubt fires when the caller is to be authorised again.
	doubt *time.Timer
}

func newSession(stream grpc.ServerStream, p protocol, o Options) *session {
	ctx, cancel := context.WithCancelCause(stream.Context())
	return &session{
		options: o, protocol: p, stream: stream, caller: callerOf(ctx), ctx: ctx, cancel: cancel,
		log: o.Logger, kick: make(chan struct{}, 1), talk: newConversation(p.sotw), late: stoppedTimer(), doubt: stoppedTimer(),
	}
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// run reacts to what happens, one thing at a time, until the stream ends.
func (s *session) run() error {
	requests, ended := make(chan request), make(chan error, 1)
	go s.read(requests, ended)
	for {
		var err error
		select {
		case <-s.ctx.Done():
			return nil
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil // Envoy has no more to ask
			}
			return err
		case r := <-requests:
			err = s.hear(r)
		case <-s.kick:
			s.talk.update(s.latest.Load())
			s.watch(s.talk.push())
		case <-s.late.C:
			s.log.Warn("envoy has not acknowledged in time, its update goes on")
			s.waiting = false
			s.talk.pushAnyway()
		case <-s.doubt.C:
			s.work(s.reauthorize)
		}
		if err == nil {
			err = s.send()
		}
		if err != nil {
			return err
		}
	}
}

// read hands on requests until there are no more. Only the end of the stream
// ends it, which for gRPC is when run has returned: nobody can wait for it there.
func (s *session) read(requests chan<- request, ended chan<- error) {
	for {
		r, err := s.protocol.receive(s.stream)
		if err != nil {
			ended <- err
			return
		}
		select {
		case requests <- r:
		case <-s.ctx.Done():
			return
		}
	}
}

// hear takes a request. The first one opens the session.
func (s *session) hear(r request) error {
	if err := s.open(r.node); err != nil {
		return err
	}
	if r.typeURL == "" {
		return status.Error(codes.InvalidArgument, "the request names no type")
	}
	t, ok := typeOf(r.typeURL)
	if !ok {
		s.log.Debug("request for a type that is not served", "type", r.typeURL)
		return nil
	}
	s.judge(t, s.talk.hear(t, r))
	s.watch(s.talk.push())
	return nil
}

// judge counts and logs what Envoy said about a response.
func (s *session) judge(t Type, v verdict) {
	if v.response == nil {
		return
	}
	if v.problem == nil {
		s.options.Metrics.acks.WithLabelValues(t.String()).Inc()
		s.log.Debug("acknowledged", "type", t, "nonce", v.response.nonce)
		return
	}
	s.options.Metrics.nacks.WithLabelValues(t.String()).Inc()
	s.log.Error("envoy rejected an update", "type", t, "version", v.response.version(),
		"nonce", v.response.nonce, "resources", v.response.names(), "error", redact(v.problem.GetMessage()))
}

// send sends what the conversation has to say.
func (s *session) send() error {
	for _, r := range s.talk.take() {
		t := r.typ.String()
		s.options.Metrics.responses.WithLabelValues(t).Inc()
		s.options.Metrics.bytes.WithLabelValues(t).Add(float64(r.size()))
		if err := s.stream.SendMsg(s.protocol.encode(r)); err != nil {
			return err
		}
		s.log.Debug("sent", "type", t, "nonce", r.nonce, "resources", len(r.resources), "removed", len(r.removals))
	}
	return nil
}

// open authorises the caller for the node of the first request, and starts the
// workers. Before, nothing is known that could be sent.
func (s *session) open(n *corev3.Node) error {
	if s.node != nil {
		return nil
	}
	if n.GetId() == "" {
		return status.Error(codes.InvalidArgument, "the first request names no node id")
	}
	node := nodeOf(n, s.caller.Peer)
	s.log = s.log.With("envoy", node.ID)
	if err := s.options.Authorizer.Authorize(s.ctx, s.caller, node); err != nil {
		return s.refuse(err)
	}
	s.node = &node
	s.log.Info("envoy connected", "cluster", node.Cluster, "sotw", s.protocol.sotw)
	s.work(s.supply)
	s.doubt.Reset(s.options.Reauthorize)
	return nil
}

// refuse turns an Authorizer's error into the end of the stream.
func (s *session) refuse(err error) error {
	if s.ctx.Err() != nil {
		return status.FromContextError(s.ctx.Err()).Err()
	}
	s.options.Metrics.deny(err)
	if denies(err) {
		s.log.Warn("envoy denied", "error", err)
		return statusOf(err)
	}
	s.log.Error("authorisation cannot be checked", "error", err)
	return status.Error(codes.Unavailable, "authorisation cannot be checked")
}

// supply waits for sets until the session ends.
func (s *session) supply() error {
	err := s.options.Supplier.Supply(s.ctx, *s.node, s.put)
	if s.ctx.Err() != nil {
		return nil
	}
	if err == nil {
		err = errors.New("the supply of configuration has ended")
	}
	level := slog.LevelWarn
	if status.Code(err) == codes.Unavailable {
		level = slog.LevelInfo // it is going away, as at the end of the process
	}
	s.log.Log(s.ctx, level, "stream ended by its supplier", "error", err)
	return statusOf(err)
}

// put stores the newest set. It never blocks.
func (s *session) put(set *Set) {
	s.latest.Store(set)
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// reauthorize asks whether the caller still may.
func (s *session) reauthorize() error {
	err := s.options.Authorizer.Authorize(s.ctx, s.caller, *s.node)
	switch {
	case err == nil || s.ctx.Err() != nil:
	case denies(err):
		return s.refuse(err)
	default:
		s.log.Warn("authorisation cannot be checked, the stream lives on", "error", err)
	}
	s.doubt.Reset(s.options.Reauthorize)
	return nil
}

// watch runs the timer while the conversation waits for Envoy.
func (s *session) watch(waits bool) {
	switch {
	case waits && !s.waiting:
		s.late.Reset(patience)
	case !waits && s.waiting:
		s.late.Stop()
	}
	s.waiting = waits
}

// work runs f beside the stream; its error ends the stream.
func (s *session) work(f func() error) {
	s.workers.Go(func() {
		if err := s.guard(f); err != nil {
			s.cancel(err)
		}
	})
}

// guard turns a panic into the end of this one stream.
func (s *session) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic in a stream", "error", p, "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "internal error")
		}
	}()
	return f()
}

// close ends the session and waits for its workers.
func (s *session) close() {
	s.cancel(nil)
	s.workers.Wait()
	s.late.Stop()
	s.doubt.Stop()
	if s.node != nil {
		s.log.Info("envoy disconnected")
	}
}

// reason is the status with which a worker ended the session; nil if none did.
func (s *session) reason() error {
	cause := context.Cause(s.ctx)
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return nil
	}
	return statusOf(cause)
}
