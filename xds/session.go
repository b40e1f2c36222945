package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/latest"
)

// ackTimeout is how long listeners and routes wait for Envoy at most, and removals for its first request for listeners.
// (Removals wait for the ACK of listeners and routes without a limit.) It is a little more than the 15 s after which
// Envoy itself stops waiting for endpoints (initial_fetch_timeout).
const ackTimeout = 20 * time.Second

// session is one stream: its caller, its node, and its state. The goroutine of run owns it. Other goroutines read
// requests, write responses, watch the source, and ask the Authorizer from time to time.
type session struct {
	options   *Options
	admission *admission
	protocol  protocol
	stream    grpc.ServerStream
	caller    Caller
	conn      *connection
	admitted  *admittedStream
	ctx       context.Context         // of the stream
	end       context.CancelCauseFunc // ends the session with a status; any goroutine may call it
	// workers end with ctx. background are the goroutines that only the end of the stream's handler ends.
	workers    sync.WaitGroup
	background *sync.WaitGroup

	// node and log are set by the first request, before the workers start.
	node *Node
	log  *slog.Logger

	requests chan rawRequest
	readDone chan error // how reading has ended
	outgoing chan message
	written  chan error         // the result of writing a message
	sets     latest.Value[*Set] // from the source

	state   *streamState
	sending bool // a message is being written
	// unansweredSince is when Envoy answered a response last, or was sent one; zero while it has answered all.
	unansweredSince time.Time
	timeout         *time.Timer      // bounds the time to the first request, and to the reading of a response
	ackTimer        <-chan time.Time // fires when something has waited for Envoy for too long; nil while nothing waits
	mustCutOff      bool             // Envoy must not get what it has not read yet
	nacks           [NumTypes]nackState
	heldBack        []string         // the listeners that Envoy lacks
	loggedKept      bool             // see logKept
	backoffTimer    <-chan time.Time // fires when the next backoff is over
	connectedAt     time.Time        // when it was authorized
	delivered       *Set             // the last one that Envoy has had completely

	authResults chan authResult // the Authorizer's next answer
	// authTimer fires when the Authorizer is to be asked again, and while it is asked, when its latest answer expires.
	authTimer     <-chan time.Time
	asking        bool
	expired       bool          // nothing is sent
	renewalWindow time.Duration // from asking to expiry
	// credentialExpired fires when the caller's credential expires; nil: it does not.
	credentialExpired <-chan time.Time
}

// authResult is an answer of the Authorizer.
type authResult struct {
	expiry time.Time
	err    error
}

func newSession(stream grpc.ServerStream, p protocol, c Caller, conn *connection, s *Server) *session {
	ctx, end := context.WithCancelCause(stream.Context())
	return &session{
		options: &s.options, admission: s.admission, background: &s.background,
		protocol: p, stream: stream, caller: c, conn: conn, ctx: ctx, end: end, log: s.options.Logger,
		requests: make(chan rawRequest), readDone: make(chan error, 1), outgoing: make(chan message), written: make(chan error, 1),
		sets: latest.New[*Set](), state: newStreamState(p.sotw),
		timeout: time.NewTimer(firstRequestTime), authResults: make(chan authResult, 1),
	}
}

// run handles one event at a time until the stream ends. While a message is being written or must not be, it takes
// no set, so that the next one is the newest.
func (s *session) run() error {
	s.start(s.background, s.read)
	s.start(s.background, s.write)
	for {
		requests, sets, ackTimer, backoffTimer := s.requests, s.sets.C(), s.ackTimer, s.backoffTimer
		if s.sending || s.expired {
			requests, sets, ackTimer, backoffTimer = nil, nil, nil, nil
		}
		var err error
		select {
		case <-s.ctx.Done():
			return nil
		case err := <-s.readDone:
			if errors.Is(err, io.EOF) {
				return nil // Envoy has closed the stream
			}
			return err
		case raw := <-requests:
			err = s.handleRequest(raw)
		case s.state.set = <-sets:
			s.push()
		case <-ackTimer:
			s.log.Warn("envoy has not acknowledged its clusters in time; sending listeners and routes anyway, and requests may fail for a moment")
			s.ackTimer = nil
			s.state.pushUnordered()
		case <-backoffTimer:
			s.updateBackoffs()
			s.push()
		case err = <-s.written:
			s.sending = false
			s.timeout.Stop()
		case <-s.timeout.C:
			err = s.handleTimeout()
		case <-s.authTimer:
			err = s.reauthorize()
		case result := <-s.authResults:
			err = s.handleAuthResult(result)
		case <-s.credentialExpired:
			err = s.endExpired()
		}
		if err != nil {
			return err
		}
		s.updateRejections()
		s.sendNext()
		s.publishStatus()
		s.reportDelivered()
	}
}

// push makes the responses that can be sent now, and runs the timer while others wait for Envoy.
func (s *session) push() {
	switch waits := s.state.push(); {
	case !waits:
		s.ackTimer = nil
	case s.ackTimer == nil:
		s.ackTimer = time.After(ackTimeout)
	}
	s.reportHeldBack()
	s.logKept()
}

// logKept logs once that Envoy keeps what differs from a restored set.
func (s *session) logKept() {
	if s.loggedKept || !s.state.keepsOld() {
		return
	}
	s.loggedKept = true
	s.log.Warn("envoy keeps what it has, which may be newer than what usher has restored; changes wait until the source answers, see /readyz",
		"restored", s.state.set.restored)
}

// reportHeldBack reports which listeners Envoy lacks, if that has changed.
func (s *session) reportHeldBack() {
	lacks := s.state.types[Listener].lacks()
	if s.options.Observer != nil && !slices.Equal(lacks, s.heldBack) {
		s.options.Observer.HeldBack(s.node, lacks, false)
	}
	s.heldBack = lacks
}

// start runs f in a goroutine. Its error or panic ends the stream.
func (s *session) start(group *sync.WaitGroup, f func() error) {
	log := s.log // the session's own is set later
	group.Go(func() {
		if err := recoverPanic(log, f); err != nil {
			s.end(err)
		}
	})
}

// recoverPanic returns f's error. A panic becomes the status Internal.
func recoverPanic(log *slog.Logger, f func() error) error {
	err := guard.Run(log, "stream", f)
	if _, panicked := errors.AsType[*guard.Error](err); panicked {
		return status.Error(codes.Internal, "internal error in usher; its log has the stack")
	}
	return err
}

// read passes requests to run. Only the end of the stream's handler ends it.
func (s *session) read() error {
	for {
		var raw rawRequest
		if err := s.stream.RecvMsg(&raw); err != nil {
			if status.Code(err) == codes.ResourceExhausted { // it is too large
				s.admission.reportLimit(s.conn, "request_size", s.caller.Credential, status.Convert(err).Message())
			}
			s.readDone <- err
			return nil
		}
		select {
		case s.requests <- raw:
		case <-s.ctx.Done():
			s.conn.releaseRequest(raw)
			return nil
		}
	}
}

// write writes messages. If Envoy does not read one, only the end of the stream's handler ends it.
func (s *session) write() error {
	for {
		select {
		case m := <-s.outgoing:
			s.written <- s.stream.SendMsg(m)
		case <-s.ctx.Done():
			return nil
		}
	}
}

// handleRequest handles a request. The first one must have a node.
func (s *session) handleRequest(raw rawRequest) error {
	defer s.conn.releaseRequest(raw)
	if s.node == nil {
		if err := s.authorize(raw); err != nil {
			return err
		}
	}
	r, err := s.protocol.decode(raw)
	if err == nil && r.typeURL == "" {
		err = errors.New("it has no type_url; check that the caller is an Envoy")
	}
	if err != nil {
		return s.refuseRequest(err)
	}
	t, ok := typeOf(r.typeURL)
	if !ok {
		s.log.Debug("request for an unknown type", "type", r.typeURL)
		return nil
	}
	if answered := s.state.handleRequest(t, r); answered != nil {
		s.unansweredSince = time.Time{}
		if s.state.awaitsACK() {
			s.unansweredSince = time.Now()
		}
		s.recordAnswer(t, answered, r.errorDetail)
	}
	s.push()
	if err := s.state.types[t].checkNameLimits(); err != nil {
		s.admission.reportLimit(s.conn, "names", s.caller.Credential, err.Error())
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return nil
}

// refuseRequest ends the stream because of a request.
func (s *session) refuseRequest(err error) error {
	reason := "invalid request: " + err.Error()
	s.admission.reportRefusal(s.conn, s.caller.Credential, reason, true)
	return status.Error(codes.InvalidArgument, reason)
}

// sendNext passes the next response to write, unless one is being written.
func (s *session) sendNext() {
	if s.sending || s.expired {
		return
	}
	r := s.state.next()
	if r == nil {
		return
	}
	t := r.typ.String()
	s.options.Metrics.responses.WithLabelValues(t).Inc()
	for _, c := range r.resources {
		s.options.Metrics.bytes.WithLabelValues(t).Add(float64(c.Size()))
	}
	s.log.Debug("sending", "type", t, "nonce", r.nonce, "resources", len(r.resources), "removed", len(r.removals))
	s.sending = true
	if s.unansweredSince.IsZero() {
		s.unansweredSince = time.Now()
	}
	s.timeout.Reset(sendTime)
	select {
	case s.outgoing <- s.protocol.encode(r):
	case <-s.ctx.Done():
	}
}

// handleTimeout ends the session of a caller that does not send or does not read.
func (s *session) handleTimeout() error {
	select {
	case err := <-s.written: // at the same moment
		s.sending = false
		return err
	default:
	}
	if s.node == nil {
		reason := "no request within " + firstRequestTime.String() + " of the stream's start; check that the caller is an Envoy"
		s.admission.reportLimit(s.conn, "first_request_time", s.caller.Credential, reason)
		return status.Error(codes.DeadlineExceeded, reason)
	}
	return s.endUnread("send_time", "envoy has not read a response for "+sendTime.String()+"; check whether it is overloaded")
}

func (s *session) endUnread(limit, reason string) error {
	s.mustCutOff = true
	s.options.Metrics.limited.WithLabelValues(limit).Inc()
	s.log.Warn("stream ended: envoy is too slow", "limit", limit, "error", reason)
	return status.Error(codes.DeadlineExceeded, reason)
}

// authorize authorizes the caller for the node of the first request, and then watches the source.
func (s *session) authorize(raw rawRequest) error {
	s.timeout.Stop()
	node, err := s.protocol.node(raw, s.options.MetadataKeys, s.caller.Address)
	if err == nil && node.ID == "" {
		err = errors.New("the stream's first request has no node.id; set it in Envoy's bootstrap or with --service-node")
	}
	if err != nil {
		return s.refuseRequest(err)
	}
	expiry, err := s.options.Authorizer.Authorize(s.ctx, s.caller, node)
	if err != nil {
		return s.deny(node, err)
	}
	node.Forwarded, node.Stream = s.conn.decrypted, s.admission.authorizedStreams.Add(1)
	s.node, s.connectedAt = &node, time.Now()
	s.admitted.markAuthorized(s.node)
	s.log = s.log.With("envoy", node.ID, "release", node.Release(), "address", s.conn.describeAddress())
	s.log.Info("envoy connected", "cluster", node.Cluster, "protocol", s.protocol.name)
	s.start(&s.workers, s.watchSource)
	s.renewAuthorization(expiry)
	return nil
}

// deny turns an Authorizer's error into the end of the stream.
func (s *session) deny(n Node, err error) error {
	if s.ctx.Err() != nil {
		return status.FromContextError(s.ctx.Err()).Err()
	}
	denied := s.options.Metrics.countDenial(err)
	s.admission.reportDenial(s.conn, s.caller.Credential, n, status.Convert(err).Message(), denied)
	if !denied {
		return errNotChecked
	}
	return statusOf(err)
}

var errNotChecked = status.Error(codes.Unavailable, "usher cannot check the token now, see its log; Envoy connects again by itself")

// watchSource watches the source until the session ends.
func (s *session) watchSource() error {
	err := s.options.Source.Watch(s.ctx, *s.node, s.sets.Put)
	if s.ctx.Err() != nil {
		return nil
	}
	if err == nil {
		err = errors.New("usher stopped watching the gateway's configuration; Envoy connects again by itself")
	}
	level := slog.LevelWarn
	if status.Code(err) == codes.Unavailable {
		level = slog.LevelInfo // the source goes away, as at the end of the process
	}
	s.log.Log(s.ctx, level, "stream ended by its source", "error", err)
	return statusOf(err)
}

// minGrace is how long the Authorizer may take at least. An interval of seconds would leave it too little time.
const minRenewalWindow = 3 * time.Second

// renewAuthorization starts the interval for which an answer of the Authorizer is valid. It is asked again before the
// end, at a random time, so that streams that began together do not ask together.
func (s *session) renewAuthorization(expiry time.Time) {
	s.credentialExpired = nil
	if !expiry.IsZero() {
		s.credentialExpired = time.After(time.Until(expiry))
	}
	interval := s.options.Reauthorize
	ask := interval*7/10 + rand.N(interval/10+1)
	s.asking, s.expired, s.renewalWindow = false, false, max(interval-ask, minRenewalWindow)
	s.authTimer = time.After(ask)
}

// reauthorize asks the Authorizer again. If the latest answer expires meanwhile, nothing more is sent, and a
// connection with unread responses is closed.
func (s *session) reauthorize() error {
	if !s.unansweredSince.IsZero() && time.Since(s.unansweredSince) > answerTime {
		return s.endUnread("answer_time", "envoy has answered no response for "+answerTime.String()+"; check whether it is overloaded")
	}
	if !s.asking {
		s.asking = true
		s.authTimer = time.After(s.renewalWindow)
		s.start(&s.workers, func() error {
			caller := s.caller
			caller.Again = true
			expiry, err := s.options.Authorizer.Authorize(s.ctx, caller, *s.node)
			s.authResults <- authResult{expiry, err}
			return nil
		})
		return nil
	}
	select {
	case result := <-s.authResults: // at the same moment
		return s.handleAuthResult(result)
	default:
	}
	s.expired = true
	if !s.hasUnread() {
		return nil
	}
	s.mustCutOff = true
	s.log.Warn("stream ended: consul did not check the token again in time, and envoy has unread responses; check usher_consul_up")
	return errNotChecked
}

// handleAuthResult handles the Authorizer's answer about an authorized stream.
func (s *session) handleAuthResult(r authResult) error {
	if r.err != nil {
		s.mustCutOff = true
		return s.deny(*s.node, r.err)
	}
	s.renewAuthorization(r.expiry)
	return nil
}

// endExpired ends the stream because the caller's credential has expired, as those of service accounts regularly do. Envoy
// reads its token file again for the next stream.
func (s *session) endExpired() error {
	s.mustCutOff = true
	s.log.Info("stream ended: its bearer token has expired; envoy connects again with its next one")
	return status.Error(codes.Unauthenticated, "the stream's bearer token has expired; connect again with a new one")
}

// hasUnread reports whether Envoy may not have read all responses.
func (s *session) hasUnread() bool { return s.sending || s.state.awaitsACK() }

// close ends the session and waits for its workers. If the caller is no longer authorized or does not read, it
// closes the connection, so that the caller does not get what gRPC has not written yet.
func (s *session) close() {
	s.end(nil)
	s.workers.Wait()
	if s.node == nil {
		return
	}
	if s.mustCutOff && s.hasUnread() {
		_ = s.conn.Close()
	}
	if s.options.Observer != nil && len(s.heldBack) > 0 {
		s.options.Observer.HeldBack(s.node, nil, true)
	}
	for _, n := range s.nacks {
		if n.clearReport != nil {
			n.clearReport()
		}
	}
	s.log.Info("envoy disconnected")
}

// endReason returns the status with which end was called, or nil.
func (s *session) endReason() error {
	cause := context.Cause(s.ctx)
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return nil
	}
	return statusOf(cause)
}
