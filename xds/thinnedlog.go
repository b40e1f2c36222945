package xds

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// The limits of a thinnedLog.
const (
	thinnedLogTime  = time.Minute // between two lines about one subject
	maxThinnedLines = 10          // about all subjects, per second
	maxSubjects     = 1000        // that have lines at a time
)

// thinnedLog limits the log lines about what callers do: one about a subject at once, and then one a minute with the
// count. Any goroutine may call its methods.
type thinnedLog[S comparable] struct {
	limiter *rate.Limiter

	mu       sync.Mutex
	stopped  bool
	subjects map[S]*thinnedSubject
}

// thinnedSubject is a subject that had a line in the last minute, or has to have one.
type thinnedSubject struct {
	count int             // of what no line has said
	write func(count int) // writes the line about the latest
	timer *time.Timer     // for the next line
}

func newThinnedLog[S comparable]() *thinnedLog[S] {
	return &thinnedLog[S]{limiter: limiter(maxThinnedLines), subjects: map[S]*thinnedSubject{}}
}

// add counts something about a subject. write writes a line about it; it is called now or within minutes, or never if a
// later one about the subject replaces it.
func (l *thinnedLog[S]) add(of S, write func(count int)) {
	l.mu.Lock()
	s := l.subjects[of]
	if l.stopped || s == nil && len(l.subjects) >= maxSubjects {
		l.mu.Unlock()
		return
	}
	if s != nil {
		s.count++
		s.write = write
		l.mu.Unlock()
		return
	}
	s = &thinnedSubject{count: 1, write: write}
	s.timer = time.AfterFunc(thinnedLogTime, func() { l.next(of, s) })
	l.subjects[of] = s
	l.flush(s)
}

// next writes the next line about a subject, and forgets a subject about which there is nothing to say.
func (l *thinnedLog[S]) next(of S, s *thinnedSubject) {
	l.mu.Lock()
	if l.stopped || s.count == 0 {
		delete(l.subjects, of)
		l.mu.Unlock()
		return
	}
	s.timer.Reset(thinnedLogTime)
	l.flush(s)
}

// flush writes a line, unless there are too many about all subjects: the next line counts it, too. It releases mu before.
func (l *thinnedLog[S]) flush(s *thinnedSubject) {
	if !l.limiter.Allow() {
		l.mu.Unlock()
		return
	}
	count, write := s.count, s.write
	s.count = 0
	l.mu.Unlock()
	write(count)
}

// stop ends the lines: no timer writes one any more.
func (l *thinnedLog[S]) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	for _, s := range l.subjects {
		s.timer.Stop()
	}
	clear(l.subjects)
}
