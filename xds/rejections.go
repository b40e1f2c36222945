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
	inARow   [NumTypes]int
	accepted [NumTypes]string // nonces
	paused   [NumTypes]time.Time
	over     [NumTypes]func() // ends what was reported
	again    *time.Timer      // fires when the first of the pauses is over
}

// judge counts, logs and reports what Envoy said about a response.
func (s *session) judge(t Type, v verdict) {
	if v.response == nil {
		return
	}
	if v.problem == nil {
		s.options.Metrics.acks.WithLabelValues(t.String()).Inc()
		s.log.Debug("acknowledged", "type", t, "nonce", v.response.nonce)
		s.accepted[t] = v.response.nonce
		s.noLongerRejected(t)
		return
	}
	s.options.Metrics.nacks.WithLabelValues(t.String()).Inc()
	r := Rejection{
		Version: v.response.version(), Nonce: v.response.nonce, AcceptedNonce: s.accepted[t],
		Resources: v.response.names(), Message: redact(v.problem.GetMessage()),
	}
	s.log.Error("envoy rejected an update", "type", t, "version", r.Version, "nonce", r.Nonce,
		"accepted_nonce", r.AcceptedNonce, "resources", r.Resources, "error", r.Message)
	s.inARow[t]++
	s.report(t, r)
	s.pause(t)
}

func (s *session) noLongerRejected(t Type) {
	if s.inARow[t] == 0 {
		return
	}
	s.inARow[t] = 0
	s.log.Info("envoy accepts updates again", "type", t, "nonce", s.accepted[t])
	s.over[t]()
	s.over[t] = nil
}

// report reports what Envoy refuses now, in place of what it refused before.
func (s *session) report(t Type, r Rejection) {
	before := s.over[t]
	s.over[t] = func() {}
	if s.options.Rejections != nil {
		s.over[t] = s.options.Rejections.Rejected(*s.node, t, r)
	}
	if before != nil {
		before()
	}
}

// forgetRejections ends what is reported: the stream has ended.
func (s *session) forgetRejections() {
	for _, over := range s.over {
		if over != nil {
			over()
		}
	}
}

// pause holds a type back that was refused several times in a row.
func (s *session) pause(t Type) {
	more := s.inARow[t] - freeRejections
	if more <= 0 {
		return
	}
	pause := longestPause
	if more < 6 {
		pause = firstPause << (more - 1)
	}
	s.talk.topics[t].paused = true
	s.paused[t] = time.Now().Add(pause)
	s.again.Reset(s.nextPause())
}

// nextPause returns how long it is until the first pause is over.
func (s *session) nextPause() time.Duration {
	next := longestPause
	for _, until := range s.paused {
		if !until.IsZero() {
			next = min(next, time.Until(until))
		}
	}
	return next
}

// offerAgain goes on with the types whose pause is over.
func (s *session) offerAgain() {
	left := false
	for t, until := range s.paused {
		switch {
		case until.IsZero():
		case time.Until(until) > 0:
			left = true
		default:
			s.paused[t] = time.Time{}
			s.talk.topics[t].paused = false
		}
	}
	if left {
		s.again.Reset(s.nextPause())
	}
	s.watch(s.talk.push())
}
