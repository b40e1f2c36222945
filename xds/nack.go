package xds

import (
	"regexp"
	"time"
)

// nackState is what is known of an Envoy's NACKs of one type.
type nackState struct {
	inARow      int
	lastAcked   string // a nonce
	pausedUntil time.Time
	clearReport func()
}

// How long a type waits after several NACKs in a row. Without a pause, an Envoy that rejects and asks again at once
// would be answered without end.
const (
	firstPause   = time.Second
	longestPause = 30 * time.Second
	// freeNacks is how many in a row cause no pause.
	freeNacks = 2
)

// recordAck counts, logs and reports how Envoy answered a response.
func (s *session) recordAck(t Type, a ackResult) {
	n := &s.nacks[t]
	if a.errorDetail == nil {
		s.options.Metrics.acks.WithLabelValues(t.String()).Inc()
		s.log.Debug("acknowledged", "type", t, "nonce", a.response.nonce)
		n.lastAcked = a.response.nonce
		if n.inARow > 0 {
			s.log.Info("envoy accepts updates again", "type", t, "nonce", n.lastAcked)
			n.inARow = 0
			n.clearReport()
			n.clearReport = nil
		}
		return
	}
	s.options.Metrics.nacks.WithLabelValues(t.String()).Inc()
	r := Rejection{
		Version: a.response.version(), Nonce: a.response.nonce, AcceptedNonce: n.lastAcked,
		Resources: a.response.names(), Message: redact(a.errorDetail.GetMessage()),
	}
	s.log.Error("envoy rejected an update", "type", t, "version", r.Version, "nonce", r.Nonce,
		"accepted_nonce", r.AcceptedNonce, "resources", r.Resources, "error", r.Message)
	n.inARow++
	s.reportRejection(t, r)
	s.pause(t)
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

// clearRejections clears all reports when the stream has ended.
func (s *session) clearRejections() {
	for _, n := range s.nacks {
		if n.clearReport != nil {
			n.clearReport()
		}
	}
}

// pause stops sending a type that was rejected several times in a row. Each pause is twice as long as the last.
func (s *session) pause(t Type) {
	pauses := s.nacks[t].inARow - freeNacks
	if pauses <= 0 {
		return
	}
	pause := longestPause
	if pauses < 6 {
		pause = firstPause << (pauses - 1)
	}
	s.state.types[t].paused = true
	s.nacks[t].pausedUntil = time.Now().Add(pause)
	s.resumePaused()
}

// resumePaused resumes the types whose pause is over, and sets the timer for the next one.
func (s *session) resumePaused() {
	s.resumeTimer = nil
	var next time.Time
	for t := range s.nacks {
		switch until := &s.nacks[t].pausedUntil; {
		case until.IsZero():
		case time.Until(*until) <= 0:
			*until = time.Time{}
			s.state.types[t].paused = false
		case next.IsZero() || until.Before(next):
			next = *until
		}
	}
	if !next.IsZero() {
		s.resumeTimer = time.After(time.Until(next))
	}
}

// privateKey matches a private key in PEM, complete or cut off, in a text that may have \n for its line ends.
var privateKey = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)`)

// redact makes a message of Envoy fit for a log. Envoy may quote the resource that it rejects, and a cluster may
// have its private key inline.
func redact(message string) string {
	const longest = 2048 // bytes; Envoy quotes without limit
	message = privateKey.ReplaceAllString(message, "(private key)")
	if len(message) > longest {
		message = message[:longest] + "..."
	}
	return message
}
