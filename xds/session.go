package xds

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// patience is how long listeners, routes and removals wait for Envoy at most.
// It is a little more than the 15 s after which Envoy itself gives up waiting
// for endpoints (initial_fetch_timeout).
const patience = 20 * time.Second

// session is one stream: its caller, its node, its conversation. The stream
// server calls it from the stream's goroutine; three workers run beside it once
// the caller is authorised.
type session struct {
	options Options
	caller  Caller
	sotw    bool
	ctx     context.Context // of the stream's life; the workers select on it
	cancel  context.CancelCauseFunc
	workers sync.WaitGroup

	// node and log are set by the first request, before the workers start.
	node *Node
	log  *slog.Logger

	// latest is the newest set; kick says that there is one.
	latest atomic.Pointer[Set]
	kick   chan struct{}

	mu   sync.Mutex
	talk *conversation
	// late fires when the conversation has waited for too long; waiting is
	// true while it runs.
	late    *time.Timer
	waiting bool
}

func newSession(ctx context.Context, cancel context.CancelCauseFunc, o Options, sotw bool) *session {
	late := time.NewTimer(patience)
	late.Stop()
	return &session{
		options: o, caller: callerOf(ctx), sotw: sotw, ctx: ctx, cancel: cancel,
		log: o.Logger, kick: make(chan struct{}, 1), talk: newConversation(sotw), late: late,
	}
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
	s.log.Info("envoy connected", "cluster", node.Cluster, "sotw", s.sotw)
	s.work(s.supply)
	s.work(s.push)
	s.work(s.reauthorize)
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

// push sends when there is a new set, and when Envoy has kept it waiting for too
// long.
func (s *session) push() error {
	for {
		select {
		case <-s.ctx.Done():
			return nil
		case <-s.kick:
			s.talkOver(func(c *conversation) {
				c.update(s.latest.Load())
				s.watch(c.push())
			})
		case <-s.late.C:
			s.talkOver(func(c *conversation) {
				s.log.Warn("envoy has not acknowledged in time, its update goes on")
				s.waiting = false
				c.pushAnyway()
			})
		}
	}
}

// reauthorize asks from time to time whether the caller still may.
func (s *session) reauthorize() error {
	ticker := time.NewTicker(s.options.Reauthorize)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return nil
		case <-ticker.C:
		}
		err := s.options.Authorizer.Authorize(s.ctx, s.caller, *s.node)
		switch {
		case err == nil || s.ctx.Err() != nil:
		case denies(err):
			return s.refuse(err)
		default:
			s.log.Warn("authorisation cannot be checked, the stream lives on", "error", err)
		}
	}
}

// talkOver gives the conversation to one caller at a time.
func (s *session) talkOver(f func(*conversation)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() == nil {
		f(s.talk)
	}
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
