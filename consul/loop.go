package consul

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"reflect"
	"time"

	"golang.org/x/time/rate"

	"github.com/usherproxy/usher/internal/retry"
)

// queryResult is what a watch knows.
type queryResult struct {
	value    any   // of the last valid response; nil before the first
	err      error // of the latest attempt; nil if it was good
	failures int   // failed attempts since the last valid response
	// answer is the last valid response itself, to be saved; nil without a state directory.
	answer *answer
}

// restored returns when the value was saved that the state directory gave; zero if Consul gave it to this process.
func (r queryResult) restored() time.Time {
	if r.answer == nil {
		return time.Time{}
	}
	return r.answer.saved
}

// isEmpty reports whether no attempt has ended yet.
func (r queryResult) isEmpty() bool { return r.value == nil && r.err == nil }

// watchLoop keeps a result up to date with blocking queries
// (https://developer.hashicorp.com/consul/api-docs/features/blocking).
type watchLoop struct {
	query func(ctx context.Context, index uint64) (response, error)
	// askLeader sends the query to Consul's leader, without blocking. It is nil for what the agent itself answers, whose
	// indexes are not those of Consul's state.
	askLeader func(ctx context.Context) (response, error)
	decode    decodeFunc
	// report receives the result of each attempt. It is news if the value is new, if the query has ceased to fail, if it
	// is one of the first maxReportedFailures failures in a row, or if it fails with another outcome than before.
	report        func(r queryResult, news bool)
	interval      time.Duration // see queryType.interval
	stateReplaced func()        // called when Consul's state looks as if it was replaced; may be nil
	refresh       refresh
	filtered      *filteredQueries
	pace          *rate.Limiter // see newPace
	saved         savedSource   // the zero value without a state directory

	result    queryResult
	pauses    int               // pauses after failures, each longer than the one before; see handleError
	sent      time.Time         // when the latest query was sent
	index     uint64            // for the next query; 0 if that must not block
	lastIndex uint64            // of the last valid response; 0 before the first, and if it had none
	from      *target           // the agent that sent the last valid response
	bodyHash  [sha256.Size]byte // of the last body
	// rereadAt is when to send a non-blocking query because Consul's ACLs filtered the last response. It is zero if they
	// did not.
	rereadAt time.Time
}

// run sends queries until ctx ends.
func (l *watchLoop) run(ctx context.Context) {
	defer func() { l.filtered.count(l.isFiltered(), false) }()
	for ctx.Err() == nil {
		cycle, due := l.refresh.begin(ctx)
		if due || l.isFiltered() && time.Until(l.rereadAt) < retry.FirstPause {
			l.index = 0
		}
		index := l.index
		l.sent = time.Now()
		r, err := l.attempt(cycle, index)
		if cycle.Err() == nil {
			pause := l.handle(r, err)
			l.refresh.record(index == 0 && err == nil, l.isFiltered())
			l.rest(cycle, pause)
		}
	}
}

// attempt sends a query. The refusal of an optional one counts as an empty answer, unless there is a saved one that is no
// refusal.
func (l *watchLoop) attempt(ctx context.Context, index uint64) (response, error) {
	r, err := l.queryOrRestore(ctx, index)
	if err == nil && l.askLeader != nil && r.index > 0 && r.index < l.lastIndex {
		r, err = l.confirm(ctx, r)
	}
	isRestored := !l.result.restored().IsZero() && !l.result.answer.refused
	if r.refused && !isRestored && !l.restore(true) {
		return r, nil
	}
	return r, err
}

// confirm replaces a response that is older than the last valid one by the leader's, which may be as old: then Consul's
// state was replaced. A server that has just started answers with the state of its last Raft snapshot until it has read
// its log, and it knows a leader already. That state may be hours old, and lack services and root certificates.
func (l *watchLoop) confirm(ctx context.Context, old response) (response, error) {
	r, err := l.askLeader(ctx)
	if err != nil {
		err = fmt.Errorf("a consul server answered with an older state than before (index %d, before %d), and the leader did not answer: %w",
			old.index, l.lastIndex, err)
	}
	return r, err
}

func (l *watchLoop) isFiltered() bool { return !l.rereadAt.IsZero() }

// maxWait returns how long the next query may block, wait at most. Consul filters a response by the permissions that the
// token had when the query arrived. So a query whose last response was filtered blocks until rereadAt only.
func (l *watchLoop) maxWait(wait time.Duration) time.Duration {
	if !l.isFiltered() {
		return wait
	}
	return min(wait, max(time.Until(l.rereadAt), retry.FirstPause)) // for Consul, 0 means its default
}

// handle processes the outcome of one attempt, and returns the pause before the next.
func (l *watchLoop) handle(r response, err error) (pause time.Duration) {
	value, same := l.result.value, false
	if err == nil {
		hash := sha256.Sum256(r.body)
		if same = value != nil && hash == l.bodyHash && l.result.err == nil; !same {
			value, err = l.decode(value, r)
		}
		l.bodyHash = hash
	}
	if err != nil {
		return l.handleError(err)
	}
	recovered := l.result.err != nil
	if same = same || reflect.DeepEqual(value, l.result.value); !same {
		l.result.value = value
	}
	// The last answer before a refusal stays saved.
	if l.saved.keep && (!same || !l.result.restored().IsZero()) && (!r.refused || l.result.answer == nil || l.result.answer.refused) {
		l.result.answer = newAnswer(r)
	}
	l.result.err, l.result.failures = nil, 0
	if l.index > 0 || r.index == 0 {
		l.pauses = 0
	}
	l.index = l.nextIndex(r, same, recovered)
	l.report(l.result, !same || recovered)
	if r.index == 0 {
		// Without an index the next query cannot block.
		return max(l.interval, retry.Pause(3))
	}
	return l.pace.Reserve().Delay()
}

// handleError keeps the last valid value. The next query does not block: after an outage Consul's index may be lower,
// and no response would come until it has caught up.
//
// A good response to that query does not make the pauses short again; one to a blocking query does, or that Consul let one
// wait. Consul's agent answers a query for a leaf certificate from its cache as long as it does not block, although it
// would refuse one that does.
func (l *watchLoop) handleError(err error) (pause time.Duration) {
	newOutcome := outcomeOf(err) != outcomeOf(l.result.err)
	l.result.err = err
	l.result.failures++
	if l.index > 0 && time.Since(l.sent) >= retry.FirstPause {
		l.pauses = 0
	}
	l.pauses++
	l.index = 0
	restored := l.restore(false)
	l.report(l.result, restored || l.result.failures <= maxReportedFailures || newOutcome)
	return pauseAfter(err, l.pauses)
}

// nextIndex returns the index for the next query. It returns 0 if that must not block.
//
// A restored Consul snapshot ends blocking queries at once, with the index that they were sent with, and the content from
// before. The new state may take a long time to reach that index. If the index is the same and the content is not, the
// permissions of Usher's token have changed.
func (l *watchLoop) nextIndex(r response, same, recovered bool) uint64 {
	l.recordFiltered(r, same)
	// At another address everything is read again in any case. And without a restored snapshot, the indexes of a few
	// queries may go back, too.
	wentBack := r.index < l.lastIndex && r.index > 0 && r.from == l.from && (l.index > 0 || recovered)
	l.lastIndex, l.from = r.index, r.from
	if (wentBack || r.early) && l.stateReplaced != nil {
		l.stateReplaced()
	}
	if l.index > 0 && (r.index < l.index || r.early || r.index == l.index && !same) {
		return 0
	}
	return r.index
}

// recordFiltered records whether Consul's ACLs filtered the response. Those of the streaming backend do not say so.
func (l *watchLoop) recordFiltered(r response, same bool) {
	was := l.isFiltered()
	switch {
	case r.streamed:
	case !r.filtered:
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

const maxReportedFailures = 3 // after so many failures in a row, an equal one is no news for the subscribers

// The pace of a query whose response changes all the time.
const (
	paceBurst    = 20
	paceInterval = 50 * time.Millisecond
)

// newPace returns a limiter that lets paceBurst responses through at once, and then one every paceInterval.
func newPace() *rate.Limiter { return rate.NewLimiter(rate.Every(paceInterval), paceBurst) }

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
