package consul

import (
	"sync/atomic"
	"time"
)

// A right that is given back changes no index, so that a question whose answer
// Consul's ACLs filtered is asked without one after hiddenTime at most. Where more
// than hiddenMost are, they take longer, so that the load stays what it is; the
// first that shows more makes all of them be asked. A nil hiding is that of a
// single question.
const (
	hiddenTime = 10 * time.Second
	hiddenMost = 1000
)

// hiding counts the questions whose answers are filtered.
type hiding struct {
	questions atomic.Int64
	// lifted has a place for the news that one of many shows more than before.
	lifted chan struct{}
}

func newHiding() *hiding { return &hiding{lifted: make(chan struct{}, 1)} }

// pause returns how long a filtered answer counts.
func (h *hiding) pause() time.Duration {
	if h == nil {
		return hiddenTime
	}
	return max(hiddenTime, hiddenTime*time.Duration(h.questions.Load())/hiddenMost)
}

// count takes note of one question.
func (h *hiding) count(was, is bool) {
	switch {
	case h == nil || was == is:
	case is:
		h.questions.Add(1)
	default:
		h.questions.Add(-1)
	}
}

// lift says that a question shows more than before.
func (h *hiding) lift() {
	if h != nil && h.questions.Load() > hiddenMost {
		notify(h.lifted)
	}
}
