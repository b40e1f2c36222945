package xds

import "time"

// How long a type waits after Envoy has refused it several times in a row: a
// caller that refuses and asks again at once would be answered without end.
const (
	firstPause   = time.Second
	longestPause = 30 * time.Second
	// freeRejections is how many in a row cost no pause.
	freeRejections = 2
)

// rejections are what an Envoy refuses now.
type rejections struct {
	nacksInARow [NumTypes]int
	lastAcked   [NumTypes]string // nonces
	pausedUntil [NumTypes]time.Time
	clearReport [NumTypes]func() // ends what was reported
	resumeTimer *time.Timer      // fires when the first of the pauses is over
}

// judge counts, logs and reports what Envoy said about a response.
func (s *session) recordAck(t Type, v ackResult) {
	if v.response == nil {
		return
	}
	if v.errorDetail == nil {
		s.options.Metrics.acks.WithLabelValues(t.String()).Inc()
		s.log.Debug("acknowledged", "type", t, "nonce", v.response.nonce)
		s.lastAcked[t] = v.response.nonce
		s.clearRejection(t)
		return
	}
	s.options.Metrics.nacks.WithLabelValues(t.String()).Inc()
	r := Rejection{
		Version: v.response.version(), Nonce: v.response.nonce, AcceptedNonce: s.lastAcked[t],
		Resources: v.response.names(), Message: redact(v.errorDetail.GetMessage()),
	}
	s.log.Error("envoy rejected an update", "type", t, "version", r.Version, "nonce", r.Nonce,
		"accepted_nonce", r.AcceptedNonce, "resources", r.Resources, "error", r.Message)
	s.nacksInARow[t]++
	s.reportRejection(t, r)
	s.pause(t)
}

func (s *session) clearRejection(t Type) {
	if s.nacksInARow[t] == 0 {
		return
	}
	s.nacksInARow[t] = 0
	s.log.Info("envoy accepts updates again", "type", t, "nonce", s.lastAcked[t])
	s.clearReport[t]()
	s.clearReport[t] = nil
}

// report reports what Envoy refuses now, in place of what it refused before.
func (s *session) reportRejection(t Type, r Rejection) {
	before := s.clearReport[t]
	s.clearReport[t] = func() {}
	if s.options.Rejections != nil {
		s.clearReport[t] = s.options.Rejections.Rejected(*s.node, t, r)
	}
	if before != nil {
		before()
	}
}

// forgetRejections ends what is reported: the stream has ended.
func (s *session) clearRejections() {
	for _, over := range s.clearReport {
		if over != nil {
			over()
		}
	}
}

// pause holds a type back that was refused several times in a row.
func (s *session) pause(t Type) {
	more := s.nacksInARow[t] - freeRejections
	if more <= 0 {
		return
	}
	pause := longestPause
	if more < 6 {
		pause = firstPause << (more - 1)
	}
	s.state.types[t].paused = true
	s.pausedUntil[t] = time.Now().Add(pause)
	s.resumeTimer.Reset(s.nextPause())
}

// nextPause returns how long it is until the first pause is over.
func (s *session) nextPause() time.Duration {
	next := longestPause
	for _, until := range s.pausedUntil {
		if !until.IsZero() {
			next = min(next, time.Until(until))
		}
	}
	return next
}

// offerAgain goes on with the types whose pause is over.
func (s *session) resumePaused() {
	left := false
	for t, until := range s.pausedUntil {
		switch {
		case until.IsZero():
		case time.Until(until) > 0:
			left = true
		default:
			s.pausedUntil[t] = time.Time{}
			s.state.types[t].paused = false
		}
	}
	if left {
		s.resumeTimer.Reset(s.nextPause())
	}
	s.runAckTimer(s.state.push())
}
