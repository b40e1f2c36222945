package consul

import (
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"reflect"
	"time"
)

// watchResult is what a watch knows.
type watchResult struct {
	value any // of the last good answer; nil before the first
	// err is the error of the latest attempt; nil if it was good.
	err      error
	failures int // failed attempts since the last good answer
}

// isEmpty reports whether no attempt has ended yet.
func (r watchResult) isEmpty() bool { return r.value == nil && r.err == nil }

// watchLoop keeps a result up to date with blocking queries
// (https://developer.hashicorp.com/consul/api-docs/features/blocking).
type watchLoop struct {
	query  func(ctx context.Context, index uint64) (answer, error)
	decode func(prev any, a answer) (any, error)
	// update receives the result of each attempt. changed is true if the value is new,
	// or if the query has begun or ceased to fail.
	update   func(r watchResult, changed bool)
	interval time.Duration // see queryType.interval
	// stateReplaced is called when Consul's state looks as if it was replaced. It may be
	// nil.
	stateReplaced func()
	refresh       refresh
	filtered      *filteredAnswers

	result    watchResult
	index     uint64            // for the next query; 0 if that must not block
	lastIndex uint64            // the latest index that Consul gave
	bodyHash  [sha256.Size]byte // of the last body
	pace      pace
	// rereadAt is when to send a non-blocking query because Consul's ACLs filtered the
	// last answer. It is zero if they did not.
	rereadAt time.Time
}

// run sends queries until ctx ends.
func (l *watchLoop) run(ctx context.Context) {
	defer func() { l.filtered.count(l.isFiltered(), false) }()
	for ctx.Err() == nil {
		turn, due := l.refresh.begin(ctx)
		if due || l.isFiltered() && time.Until(l.rereadAt) < firstPause {
			l.index = 0
		}
		index := l.index
		a, err := l.query(turn, index)
		if turn.Err() == nil {
			pause := l.handle(a, err)
			l.refresh.answered(index == 0 && err == nil, l.isFiltered())
			sleep(turn, pause)
		}
		l.refresh.end()
	}
}

func (l *watchLoop) isFiltered() bool { return !l.rereadAt.IsZero() }

// maxWait returns how long the next query may block, wait at most. Consul filters an
// answer by the rights that the token had when the query arrived. So a query whose
// last answer was filtered blocks until rereadAt only.
func (l *watchLoop) maxWait(wait time.Duration) time.Duration {
	if !l.isFiltered() {
		return wait
	}
	return min(wait, max(time.Until(l.rereadAt), firstPause)) // for Consul, 0 means its default
}

// handle processes the outcome of one attempt, and returns the pause before the next.
func (l *watchLoop) handle(a answer, err error) (pause time.Duration) {
	value, same := l.result.value, false
	if err == nil {
		hash := sha256.Sum256(a.body)
		if same = l.result.value != nil && hash == l.bodyHash && l.result.err == nil; !same {
			value, err = l.decode(l.result.value, a)
		}
		l.bodyHash = hash
	}
	if err != nil {
		return l.handleError(err)
	}
	recovered := l.result.err != nil
	same = same || l.result.value != nil && (value == l.result.value || reflect.DeepEqual(value, l.result.value))
	if !same {
		l.result.value = value
	}
	l.result.err, l.result.failures = nil, 0
	l.index = l.nextIndex(a, same, recovered)
	l.update(l.result, !same || recovered)
	if a.index == 0 {
		// Without an index the next query cannot block.
		return max(l.interval, backOff(3))
	}
	return l.pace.next(time.Now())
}

// handleError keeps the last good value. The next query does not block: after an
// outage Consul's index may be lower, and no answer would come until it has caught up.
func (l *watchLoop) handleError(err error) (pause time.Duration) {
	newOutcome := outcomeOf(err) != outcomeOf(l.result.err)
	l.result.err = err
	l.result.failures++
	l.index = 0
	l.update(l.result, l.result.failures <= maxReportedFailures || newOutcome)
	return backOff(l.result.failures)
}

// maxReportedFailures is how many failures in a row are reported as changes.
const maxReportedFailures = 3

// nextIndex returns the index for the next query. It returns 0 if that must not block.
//
// A restored snapshot ends blocking queries at once, with the index that they were
// sent with, and the content from before. The new state may take a long time to
// reach that index. If the index is the same and the content is not, the rights of
// Usher's token have changed.
func (l *watchLoop) nextIndex(a answer, same, recovered bool) uint64 {
	l.recordFiltered(a, same)
	// A non-blocking answer may come from a server that is a little behind.
	wentBack := a.index < l.lastIndex && a.index > 0 && (l.index > 0 || recovered)
	l.lastIndex = a.index
	if (wentBack || a.early) && l.stateReplaced != nil {
		l.stateReplaced()
	}
	if l.index > 0 && (a.index < l.index || a.early || a.index == l.index && !same) {
		return 0
	}
	return a.index
}

// recordFiltered records whether Consul's ACLs filtered the answer. Answers of the
// streaming backend do not say so.
func (l *watchLoop) recordFiltered(a answer, same bool) {
	was := l.isFiltered()
	switch {
	case a.streamed:
	case !a.filtered:
		l.rereadAt = time.Time{}
	case l.index == 0 || !was:
		pause := l.filtered.pause()
		l.rereadAt = time.Now().Add(pause - rand.N(pause/5))
	}
	l.filtered.count(was, l.isFiltered())
	if was && l.index == 0 && !same {
		l.filtered.showsMore()
	}
}

// Back-off after errors: from firstPause doubling up to longestPause.
const (
	firstPause   = 100 * time.Millisecond
	longestPause = 10 * time.Second
)

// backOff returns the pause after so many failures in a row. Up to half of it is
// taken off at random, so that the watches do not retry at the same moment.
func backOff(failures int) time.Duration {
	d := longestPause
	if failures < 8 {
		d = min(d, firstPause<<(failures-1))
	}
	return d - rand.N(d/2)
}

// pace slows down a query whose answer changes all the time. It lets paceBurst
// answers through at once, and then one every paceInterval.
type pace struct {
	full time.Time // when the whole burst is available again
}

const (
	paceBurst    = 20
	paceInterval = 50 * time.Millisecond
)

// next returns the pause before the next query.
func (p *pace) next(now time.Time) time.Duration {
	if p.full.Before(now) {
		p.full = now
	}
	p.full = p.full.Add(paceInterval)
	return max(0, p.full.Sub(now)-paceBurst*paceInterval)
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
