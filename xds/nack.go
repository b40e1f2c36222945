package xds

import (
	"slices"
	"strings"
	"time"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/usherproxy/usher/internal/redaction"
)

// nackState is what is known of an Envoy's NACKs of one type.
type nackState struct {
	inARow      int
	lastAcked   string // a nonce
	ackedAt     time.Time
	backoffEnd  time.Time
	rejections  []*Rejection // those with something that Envoy still refuses; the newest is the last
	reported    *Rejection   // never modified
	clearReport func()       // nil: none is reported
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
		n.lastAcked, n.ackedAt, n.inARow = answered.nonce, time.Now(), 0
		return
	}
	r := Rejection{
		Version: versionOf(answered.resources), Nonce: answered.nonce, AcceptedNonce: n.lastAcked, AcceptedAt: n.ackedAt,
		Message: redact(rejection.GetMessage()),
	}
	r.Resources, r.Missing = s.state.types[t].refusedNames()
	s.log.Error("envoy rejected an update", "type", t, "version", r.Version[:12], "nonce", r.Nonce,
		"accepted_nonce", r.AcceptedNonce, "resources", FirstNames(r.Resources), "error", r.Message)
	n.inARow++
	n.rejections = append(n.rejections, &r)
	s.reportRejection(t, r)
	s.backOff(t)
}

// updateRejections corrects the reports of what Envoy refuses, as far as it has accepted something since, or something was
// removed.
func (s *session) updateRejections() {
	for t := range s.nacks {
		n, refused := &s.nacks[t], s.state.types[t].refused
		if n.clearReport == nil {
			continue
		}
		if len(refused) == 0 {
			s.log.Info("envoy accepts updates again", "type", Type(t), "nonce", n.lastAcked)
			n.clearReport()
			n.clearReport, n.rejections, n.reported = nil, nil, nil
			continue
		}
		n.rejections = slices.DeleteFunc(n.rejections, func(r *Rejection) bool {
			return !slices.ContainsFunc(refused, func(of refusal) bool { return of.nonce == r.Nonce })
		})
		latest := *n.rejections[len(n.rejections)-1]
		latest.Resources, latest.Missing = s.state.types[t].refusedNames()
		latest.Repeated = true
		if !slices.Equal(latest.Resources, n.reported.Resources) || !slices.Equal(latest.Missing, n.reported.Missing) {
			s.reportRejection(Type(t), latest)
		}
	}
}

// reportRejection replaces the report of the type's previous rejection.
func (s *session) reportRejection(t Type, r Rejection) {
	before := s.nacks[t].clearReport
	s.nacks[t].reported, s.nacks[t].clearReport = &r, func() {}
	if s.options.Observer != nil {
		s.nacks[t].clearReport = s.options.Observer.Rejected(*s.node, t, r)
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

// redact makes a message of Envoy fit for a log: one line without secrets. It may quote a cluster, which may have its key
// inline.
func redact(message string) string {
	const longest = 2048 // bytes; Envoy quotes without limit
	message = strings.ReplaceAll(strings.TrimSpace(redaction.Text(message)), "\n", "; ")
	if len(message) > longest {
		message = message[:longest] + "..."
	}
	return message
}
