package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/guard"
)

// patience is how long listeners, routes and removals wait for Envoy at most.
// It is a little more than the 15 s after which Envoy itself gives up waiting
// for endpoints (initial_fetch_timeout).
const ackTimeout = 20 * time.Second

// session is one stream: its caller, its node, its conversation. They belong to
// the goroutine of run. Beside it one goroutine reads requests, one writes
// responses and one waits for sets; from time to time another asks whether the
// caller still may.
type session struct {
	options   *Options
	admission *admission
	protocol  protocol
	stream    grpc.ServerStream
	caller    Caller
	conn      *connection
	admitted  *admittedStream
	ctx       context.Context // of the stream's life
	cancel    context.CancelCauseFunc
	workers   sync.WaitGroup
	// background are those goroutines that only the end of the stream ends.
	background *sync.WaitGroup

	// node and log are set by the first request, before the workers start.
	node *Node
	log  *slog.Logger

	requests       chan frame
	readDone       chan error // the stream's end, as the reader hears it
	outgoing       chan message
	written        chan error // what became of a message
	authorizations chan error // the Authorizer's

	// latest is the newest set; kick says that there is one.
	latest  atomic.Pointer[Set]
	updated chan struct{}

	state *streamState
	// queue is what is to be sent, and sending is true while a message is being
	// written.
	unsent  []*response
	sending bool
	// answered is when Envoy answered a response last, or was sent one while it
	// had answered all.
	lastAnswer     time.Time
	awaitingAnswer bool // an answer
	// deadline fires when the caller has taken too long to send its first
	// request or to read a response.
	timeout *time.Timer
	// late fires when the conversation has waited for too long; waiting is
	// true while it runs.
	ackTimer     *time.Timer
	ackTimerRuns bool
	// cut is true when what Envoy has not read yet must not reach it.
	mustCutOff bool
	authorization
	rejections
}

// authority is how far the session goes by the Authorizer's last answer.
type authorization struct {
	// renew fires when the caller is to be authorised again, and then, while the
	// answer is under way, when the last one no longer counts.
	timer   *time.Timer
	asking  bool
	expired bool          // nothing is sent
	grace   time.Duration // from the question until then
}

func newSession(stream grpc.ServerStream, p protocol, c Caller, conn *connection, s *Server) *session {
	ctx, cancel := context.WithCancelCause(stream.Context())
	return &session{
		options: &s.options, admission: s.admission, background: &s.background,
		protocol: p, stream: stream, caller: c, conn: conn, ctx: ctx, cancel: cancel, log: s.options.Logger,
		requests: make(chan frame), readDone: make(chan error, 1), outgoing: make(chan message), written: make(chan error, 1), authorizations: make(chan error, 1),
		updated: make(chan struct{}, 1), state: newStreamState(p.sotw),
		timeout: time.NewTimer(firstRequestTime), ackTimer: stoppedTimer(),
		authorization: authorization{timer: stoppedTimer()}, rejections: rejections{resumeTimer: stoppedTimer()},
	}
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// end ends the session with a status. Any goroutine may call it.
func (s *session) end(reason error) { s.cancel(reason) }

// run reacts to what happens, one thing at a time, until the stream ends. While
// something is being written or may not be, it composes nothing: what is sent is
// the newest.
func (s *session) run() error {
	s.inBackground(s.read)
	s.inBackground(s.write)
	for {
		requests, kick, late, again := s.requests, s.updated, s.ackTimer.C, s.resumeTimer.C
		if s.sending || s.expired || len(s.unsent) > 0 {
			requests, kick, late, again = nil, nil, nil, nil
		}
		var err error
		select {
		case <-s.ctx.Done():
			return nil
		case err := <-s.readDone:
			if errors.Is(err, io.EOF) {
				return nil // Envoy has no more to ask
			}
			return err
		case f := <-requests:
			err = s.handleRequest(f)
		case <-kick:
			s.state.setResources(s.latest.Load())
			s.runAckTimer(s.state.push())
		case <-late:
			s.log.Warn("envoy has not acknowledged in time, its update goes on")
			s.ackTimerRuns = false
			s.state.pushUnordered()
		case <-again:
			s.resumePaused()
		case err = <-s.written:
			s.sending = false
			s.timeout.Stop()
		case <-s.timeout.C:
			err = s.handleTimeout()
		case <-s.timer.C:
			err = s.reauthorize()
		case err = <-s.authorizations:
			err = s.handleAuthorization(err)
		}
		if err != nil {
			return err
		}
		s.sendNext()
	}
}

// beside runs f until the stream ends; a panic in it ends the stream.
func (s *session) inBackground(f func()) {
	log := s.options.Logger // that of the session is set later
	s.background.Go(func() {
		if err := guard.Run(log, "stream", func() error { f(); return nil }); err != nil {
			s.end(status.Error(codes.Internal, "internal error"))
		}
	})
}

// read hands on requests until there are no more. Only the end of the stream
// ends it.
func (s *session) read() {
	for {
		var f frame
		if err := s.stream.RecvMsg(&f); err != nil {
			s.countTooLarge(err)
			s.readDone <- err
			return
		}
		select {
		case s.requests <- f:
		case <-s.ctx.Done():
			s.releaseRequest(f)
			return
		}
	}
}

// handled gives back the share of the limits that a request took.
func (s *session) releaseRequest(f frame) {
	const prefix = 5 // bytes of gRPC's before each message
	s.admission.releaseRequestBytes(s.conn, len(f)+prefix)
}

// write writes messages. Only the end of the stream ends one that Envoy does not
// read.
func (s *session) write() {
	for {
		select {
		case m := <-s.outgoing:
			s.written <- s.stream.SendMsg(m)
		case <-s.ctx.Done():
			return
		}
	}
}

// receive takes a request. The first one opens the session.
func (s *session) handleRequest(f frame) error {
	defer s.releaseRequest(f)
	if err := s.authorize(f); err != nil {
		return err
	}
	r, err := s.protocol.decode(f)
	if err != nil {
		return s.refuseRequest(err)
	}
	if r.typeURL == "" {
		return s.refuseRequest(errors.New("it names no type"))
	}
	t, ok := typeOf(r.typeURL)
	if !ok {
		s.log.Debug("request for a type that is not served", "type", r.typeURL)
		return nil
	}
	v := s.state.handleRequest(t, r)
	if v.response != nil {
		s.awaitingAnswer, s.lastAnswer = s.state.awaitsACK(), time.Now()
	}
	s.recordAck(t, v)
	s.runAckTimer(s.state.push())
	if err := s.state.checkNameLimits(t); err != nil {
		s.admission.reportLimit(s.conn, "names", s.caller.Token, err.Error())
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return nil
}

// malformed refuses a request.
func (s *session) refuseRequest(err error) error {
	reason := "a request cannot be read: " + err.Error()
	s.admission.reportDenial(s.conn, s.caller.Token, reason)
	return status.Error(codes.InvalidArgument, reason)
}

// send writes the next response that the conversation has made, unless one is
// being written.
func (s *session) sendNext() {
	s.unsent = append(s.unsent, s.state.takePending()...)
	if s.sending || s.expired || len(s.unsent) == 0 {
		return
	}
	r := s.unsent[0]
	s.unsent = s.unsent[1:]
	t := r.typ.String()
	s.options.Metrics.responses.WithLabelValues(t).Inc()
	s.options.Metrics.bytes.WithLabelValues(t).Add(float64(r.size()))
	s.log.Debug("sending", "type", t, "nonce", r.nonce, "resources", len(r.resources), "removed", len(r.removals))
	s.sending = true
	if !s.awaitingAnswer {
		s.awaitingAnswer, s.lastAnswer = true, time.Now()
	}
	s.timeout.Reset(sendTime)
	select {
	case s.outgoing <- s.protocol.encode(r):
	case <-s.ctx.Done():
	}
}

// tooSlow ends a session whose caller does not send or does not read.
func (s *session) handleTimeout() error {
	select {
	case err := <-s.written: // in the same moment
		s.sending = false
		return err
	default:
	}
	if s.node == nil {
		reason := "the stream's first request did not come within " + firstRequestTime.String()
		s.admission.reportLimit(s.conn, "first_request_time", s.caller.Token, reason)
		return status.Error(codes.DeadlineExceeded, reason)
	}
	return s.endUnread("send_time", "envoy has not read what it was sent for "+sendTime.String())
}

func (s *session) endUnread(limit, reason string) error {
	s.mustCutOff = true
	s.options.Metrics.limited.WithLabelValues(limit).Inc()
	s.log.Warn("stream ended, envoy does not read", "limit", limit, "error", reason)
	return status.Error(codes.DeadlineExceeded, reason)
}

// countTooLarge counts a stream that ended because a request was too large.
func (s *session) countTooLarge(err error) {
	if status.Code(err) == codes.ResourceExhausted {
		s.admission.reportLimit(s.conn, "request_size", s.caller.Token, status.Convert(err).Message())
	}
}

// open authorises the caller for the node of the first request, and starts the
// workers. Before, nothing is known that could be sent.
func (s *session) authorize(f frame) error {
	if s.node != nil {
		return nil
	}
	s.timeout.Stop()
	encoded, err := s.protocol.node(f)
	if err != nil {
		return s.refuseRequest(err)
	}
	node, err := nodeOf(encoded, s.options.MetadataKeys, s.caller.Peer)
	if err != nil {
		return s.refuseRequest(err)
	}
	if node.ID == "" {
		return s.refuseRequest(errors.New("the first one names no node id"))
	}
	if err := s.options.Authorizer.Authorize(s.ctx, s.caller, node); err != nil {
		return s.deny(err)
	}
	s.admitted.markAuthorized()
	s.log = s.log.With("envoy", node.ID, "peer", addressOf(s.conn))
	s.node = &node
	s.log.Info("envoy connected", "cluster", node.Cluster, "sotw", s.protocol.sotw)
	s.startWorker(s.watchSource)
	s.renew(s.options.Reauthorize)
	return nil
}

// refuse turns an Authorizer's error into the end of the stream.
func (s *session) deny(err error) error {
	if s.ctx.Err() != nil {
		return status.FromContextError(s.ctx.Err()).Err()
	}
	s.options.Metrics.deny(err)
	if denies(err) {
		s.admission.reportDenial(s.conn, s.caller.Token, err.Error())
		return statusOf(err)
	}
	s.admission.reportRefusal(s.conn, s.caller.Token, err.Error())
	return status.Error(codes.Unavailable, "authorisation cannot be checked")
}

// supply waits for sets until the session ends.
func (s *session) watchSource() error {
	err := s.options.Source.Watch(s.ctx, *s.node, s.setLatest)
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
func (s *session) setLatest(set *Set) {
	s.latest.Store(set)
	select {
	case s.updated <- struct{}{}:
	default:
	}
}

// leastAnswerTime is the least time that an answer of the Authorizer is given: with
// an interval of seconds there would be none for one that has to be looked for.
const leastAnswerTime = 3 * time.Second

// authorized begins the time for which an answer of the Authorizer counts. The
// next question is asked before it is over, at a random time, so that streams
// that began together do not ask together.
func (a *authorization) renew(interval time.Duration) {
	ask := interval*7/10 + rand.N(interval/10+1)
	a.asking, a.expired, a.grace = false, false, max(interval-ask, leastAnswerTime)
	a.timer.Reset(ask)
}

// reauthorize asks whether the caller still may. When the time of the last answer
// is over before there is another, nothing more is sent; what Envoy has not read
// yet is cut off with the connection.
func (s *session) reauthorize() error {
	if s.awaitingAnswer && time.Since(s.lastAnswer) > answerTime {
		return s.endUnread("answer_time", "envoy has not answered what it was sent for "+answerTime.String())
	}
	if !s.asking {
		s.asking = true
		s.timer.Reset(s.grace)
		s.startWorker(func() error {
			caller := s.caller
			caller.Again = true
			s.authorizations <- s.options.Authorizer.Authorize(s.ctx, caller, *s.node)
			return nil
		})
		return nil
	}
	select {
	case err := <-s.authorizations: // in the same moment
		return s.handleAuthorization(err)
	default:
	}
	s.expired = true
	if !s.unread() {
		return nil
	}
	s.mustCutOff = true
	s.log.Warn("stream ended: the token could not be checked again in time, and envoy has not read all it was sent")
	return status.Error(codes.Unavailable, "authorisation cannot be checked")
}

// decided takes the Authorizer's answer about a stream that lives.
func (s *session) handleAuthorization(err error) error {
	if err != nil {
		s.mustCutOff = true
		return s.deny(err)
	}
	s.renew(s.options.Reauthorize)
	return nil
}

// unread reports whether Envoy may not have read all that it was sent.
func (s *session) unread() bool { return s.sending || s.state.awaitsACK() }

// watch runs the timer while the conversation waits for Envoy.
func (s *session) runAckTimer(waits bool) {
	switch {
	case waits && !s.ackTimerRuns:
		s.ackTimer.Reset(ackTimeout)
	case !waits && s.ackTimerRuns:
		s.ackTimer.Stop()
	}
	s.ackTimerRuns = waits
}

// work runs f beside the stream; its error ends the stream.
func (s *session) startWorker(f func() error) {
	s.workers.Go(func() {
		if err := s.recoverPanic(f); err != nil {
			s.end(err)
		}
	})
}

// guard turns a panic into the end of this one stream.
func (s *session) recoverPanic(f func() error) error {
	err := guard.Run(s.log, "stream", f)
	if _, panicked := errors.AsType[*guard.Error](err); panicked {
		return status.Error(codes.Internal, "internal error")
	}
	return err
}

// close ends the session and waits for its workers. Of a caller that is no longer
// authorised or does not read, the connection is closed, so that nothing reaches
// it that gRPC has not written yet.
func (s *session) close() {
	s.cancel(nil)
	s.workers.Wait()
	for _, t := range []*time.Timer{s.timeout, s.ackTimer, s.timer, s.resumeTimer} {
		t.Stop()
	}
	if s.node == nil {
		return
	}
	if s.mustCutOff && s.unread() {
		_ = s.conn.Close()
	}
	s.clearRejections()
	s.log.Info("envoy disconnected")
}

// reason is the status with which another goroutine ended the session; nil if
// none did.
func (s *session) endReason() error {
	cause := context.Cause(s.ctx)
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return nil
	}
	return statusOf(cause)
}
