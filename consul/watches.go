package consul

import (
	"context"
	"sync"
	"time"

	"github.com/usherproxy/usher/internal/guard"
)

// hub runs one blocking query for each question that somebody has, however many
// have it. The last one to lose interest ends it.
type watchManager struct {
	client  *Client
	limiter *connectionLimiter

	mu       sync.Mutex
	watches  map[query]*watch
	failures map[failureType]int // watches that fail, by how

	// replacements receives when Consul's state looks as if it was replaced. Its
	// capacity is 1.
	stateReplaced chan struct{}
	filtered      *filteredAnswers
	lastCancel    time.Time // when reread cancelled the open queries last; only rereading uses it
}

// watch is a query that is running. Its fields below done belong to hub.mu.
type watch struct {
	query   query
	refresh *refresh
	cancel  context.CancelFunc
	done    chan struct{} // closed when its goroutine has ended

	result      watchResult
	subscribers map[*subscription]struct{}
}

// trouble is a way in which watches fail; the log has one line when it begins
// and one when it is over.
type failureType struct {
	queryType string // empty: every kind
	outcome   outcome
}

func newWatchManager(c *Client, wait time.Duration) *watchManager {
	return &watchManager{client: c, limiter: newConnectionLimiter(c, wait), watches: map[query]*watch{}, failures: map[failureType]int{}, stateReplaced: make(chan struct{}, 1), filtered: newFilteredAnswers()}
}

// acquire starts the query unless it runs already. The lease hears of every
// change of the fact.
func (h *watchManager) add(q query, l *subscription) *watch {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.watches[q]
	if w == nil {
		w = h.startWatch(q)
	}
	w.subscribers[l] = struct{}{}
	return w
}

func (h *watchManager) startWatch(q query) *watch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watch{query: q, cancel: cancel, done: make(chan struct{}), subscribers: map[*subscription]struct{}{}}
	h.watches[q] = w
	h.client.metrics.watch(q.queryType.name, 1)
	h.client.logger.Debug("watch", "query", q.String())
	l := &watchLoop{}
	w.refresh = &l.refresh
	*l = watchLoop{
		query: func(ctx context.Context, index uint64) (answer, error) {
			a, err := h.limiter.do(ctx, index == 0, func(ctx context.Context, wait time.Duration) (answer, error) {
				return h.client.query(ctx, q, index, l.maxWait(wait))
			})
			if ctx.Err() == nil {
				h.client.metrics.query(q.queryType.name, outcomeOf(err))
			}
			if o := outcomeOf(err); q.queryType.optional && (o == outcomeDenied || o == outcomeMissing) {
				return answer{body: []byte("{}"), refused: true}, nil
			}
			return a, err
		},
		decode: func(prev any, a answer) (value any, err error) {
			err = guard.Run(h.client.logger, "consul answer", func() error {
				value, err = q.queryType.decode(prev, a)
				return err
			})
			return value, err
		},
		interval: q.queryType.interval,
		filtered: h.filtered,
		update:   func(f watchResult, changed bool) { h.update(w, f, changed) },
	}
	if !q.queryType.local && !q.queryType.mayStream() {
		l.stateReplaced = h.noteStateReplaced
	}
	h.limiter.join()
	go func() {
		defer close(w.done)
		defer h.limiter.leave()
		l.run(ctx)
	}()
	return w
}

// release gives the watch back. It says whether that was the last user: then
// the query is being cancelled, and w.done closes soon.
func (h *watchManager) remove(w *watch, l *subscription) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(w.subscribers, l)
	delete(l.updates, w.query)
	if len(w.subscribers) > 0 {
		return false
	}
	delete(h.watches, w.query)
	h.recordError(w, nil)
	w.result.err = nil
	h.client.metrics.watch(w.query.queryType.name, -1)
	h.client.logger.Debug("stop", "query", w.query.String())
	w.cancel()
	return true
}

// known gives the fact of a watch.
func (h *watchManager) result(w *watch) watchResult {
	h.mu.Lock()
	defer h.mu.Unlock()
	return w.result
}

// learn takes over a new fact and wakes whoever needs it.
func (h *watchManager) update(w *watch, f watchResult, changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(w.subscribers) == 0 {
		return
	}
	h.recordError(w, f.err)
	w.result = f
	if !changed {
		return
	}
	for l := range w.subscribers {
		l.updates[w.query] = f
		l.notify()
	}
}

// report logs what begins and what ends when the watch's error becomes err.
func (h *watchManager) recordError(w *watch, err error) {
	h.countFailing(w, err)
	h.logFailure(w.query, w.result.err, err)
}

// tell logs which trouble begins and which ends when the error of a query changes
// from was to is. The caller holds mu.
func (h *watchManager) logFailure(q query, was, is error) {
	before, after := failureTypeOf(q, was), failureTypeOf(q, is)
	if before == after {
		return
	}
	if after.outcome != outcomeOK {
		h.failures[after]++
		log := h.client.logger.Debug
		if h.failures[after] == 1 {
			log = h.client.logger.Warn
		}
		log("reading consul fails; the last good answer counts",
			"consul", h.client.Address(), "query", q.String(), "outcome", string(after.outcome), "error", is)
	}
	if before.outcome != outcomeOK {
		h.failures[before]--
		if h.failures[before] == 0 {
			delete(h.failures, before)
			h.client.logger.Info("reading consul no longer fails this way",
				"consul", h.client.Address(), "query", q.String(), "outcome", string(before.outcome))
		}
	}
}

func (h *watchManager) countFailing(w *watch, err error) {
	was, is := w.result.err != nil, err != nil
	switch {
	case is && !was:
		h.client.metrics.fail(w.query.queryType.name, 1)
	case was && !is:
		h.client.metrics.fail(w.query.queryType.name, -1)
	}
}

// troubleOf puts all that cannot reach Consul into one.
func failureTypeOf(q query, err error) failureType {
	t := failureType{queryType: q.queryType.name, outcome: outcomeOf(err)}
	if t.outcome == outcomeUnreachable || t.outcome == outcomeOK || t.outcome == outcomeLimited {
		t.queryType = ""
	}
	return t
}

// lease is one user's share of a hub: the watches that it needs now. It belongs
// to one goroutine.
type subscription struct {
	manager    *watchManager
	wake       chan struct{} // of capacity 1: something that is needed has changed
	watches    map[query]*usedWatch
	generation uint64
	unanswered map[query]bool        // held, and not answered yet when it was needed last
	updates    map[query]watchResult // what changed since it was taken; guarded by hub.mu
}

type usedWatch struct {
	watch      *watch
	generation uint64 // the last one in which it was needed
}

func (h *watchManager) subscribe() *subscription {
	return &subscription{manager: h, wake: make(chan struct{}, 1), watches: map[query]*usedWatch{}, unanswered: map[query]bool{}, updates: map[query]watchResult{}}
}

// rouse wakes the lease's owner. Anybody may call it.
func (l *subscription) notify() {
	select {
	case l.wake <- struct{}{}:
	default: // it has not yet woken from the one before
	}
}

// need gives what is known of the query, and keeps it running until a sweep
// finds that nobody needed it since the sweep before.
func (l *subscription) get(q query) watchResult {
	h := l.watches[q]
	if h == nil {
		h = &usedWatch{watch: l.manager.add(q, l)}
		l.watches[q] = h
	}
	h.generation = l.generation
	f := l.manager.result(h.watch)
	if f.value == nil && f.err == nil {
		l.unanswered[q] = true
	} else {
		delete(l.unanswered, q)
	}
	return f
}

// take gives the facts that changed since it was called last.
func (l *subscription) takeUpdates() map[query]watchResult {
	l.manager.mu.Lock()
	defer l.manager.mu.Unlock()
	news := l.updates
	l.updates = map[query]watchResult{}
	return news
}

// sweep gives back what was not needed since the last sweep, and waits for the
// queries that end with it.
func (l *subscription) releaseUnused() {
	var ended []*watch
	for q, h := range l.watches {
		if h.generation == l.generation {
			continue
		}
		delete(l.watches, q)
		delete(l.unanswered, q)
		if l.manager.remove(h.watch, l) {
			ended = append(ended, h.watch)
		}
	}
	for _, w := range ended {
		<-w.done
	}
	l.generation++
}

// close gives everything back.
func (l *subscription) close() {
	l.generation++
	l.releaseUnused()
}

// read gives the typed value of the query, nil before the first good answer.
func read[T any](l *subscription, q query) (*T, watchResult) {
	f := l.get(q)
	v, _ := f.value.(*T)
	return v, f
}
