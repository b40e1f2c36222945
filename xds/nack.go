package xds

import (
	"regexp"
	"time"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
)

// nackState is what is known of an Envoy's NACKs of one type.
type nackState struct {
	inARow      int
	lastAcked   string // a nonce
	backoffEnd  time.Time
	clearReport func()
}

// How long a type waits after several NACKs in a row. Without a backoff, an Envoy that rejects and asks again at once
// would be answered without end.
const (
	firstBackoff   = time.Second
	longestBackoff = 30 * time.Second
	freeNacks      = 2 // in a row, without a backoff
)

// recordAnswer counts, logs and reports how Envoy answered a response: with an ACK, if there is no rejection.
func (s *session) recordAnswer(t Type, answered *response, rejection *statuspb.Status) {
	n := &s.nacks[t]
	if rejection == nil {
		s.options.Metrics.acks.WithLabelValues(t.String()).Inc()
		s.log.Debug("acknowledged", "type", t, "nonce", answered.nonce)
		n.lastAcked = answered.nonce
		if n.inARow > 0 {
			s.log.Info("envoy accepts updates again", "type", t, "nonce", n.lastAcked)
			n.clearReport()
			n.inARow, n.clearReport = 0, nil
		}
		return
	}
	s.options.Metrics.nacks.WithLabelValues(t.String()).Inc()
	r := Rejection{
		Version: versionOf(answered.resources), Nonce: answered.nonce, AcceptedNonce: n.lastAcked,
		Resources: answered.names(), Message: redact(rejection.GetMessage()),
	}
	s.log.Error("envoy rejected an update", "type", t, "version", r.Version, "nonce", r.Nonce,
		"accepted_nonce", r.AcceptedNonce, "resources", r.Resources, "error", r.Message)
	n.inARow++
	s.reportRejection(t, r)
	s.backOff(t)
}

// reportRejection replaces the report of the type's previous rejection.
func (s *session) reportRejection(t Type, r Rejection) {
	before := s.nacks[t].clearReport
	s.nacks[t].clearReport = func() {}
	if s.options.Rejections != nil {
		s.nacks[t].clearReport = s.options.Rejections.Rejected(*s.node, t, r)
	}
	if before != nil {
		before()
	}
}

// backOff stops sending a type that was rejected several times in a row. Each backoff is twice as long as the last.
func (s *session) backOff(t Type) {
	doublings := s.nacks[t].inARow - freeNacks - 1
	if doublings < 0 {
		return
	}
	backoff := min(firstBackoff<<min(doublings, 5), longestBackoff)
	s.nacks[t].backoffEnd = time.Now().Add(backoff)
	s.updateBackoffs()
}

// updateBackoffs resumes the types whose backoff is over, and sets the timer for the next end.
func (s *session) updateBackoffs() {
	var next time.Duration
	for t := range s.nacks {
		wait := time.Until(s.nacks[t].backoffEnd)
		s.state.types[t].backingOff = wait > 0
		if wait > 0 && (next == 0 || wait < next) {
			next = wait
		}
	}
	s.backoffTimer = nil
	if next > 0 {
		s.backoffTimer = time.After(next)
	}
}

// privateKey matches a private key in PEM, complete or cut off, in a text that may have \n for its line ends.
var privateKey = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)`)

// redact makes a message of Envoy fit for a log: it may quote a cluster, which may have its private key inline.
func redact(message string) string {
	const longest = 2048 // bytes; Envoy quotes without limit
	message = privateKey.ReplaceAllString(message, "(private key)")
	if len(message) > longest {
		message = message[:longest] + "..."
	}
	return message
}
