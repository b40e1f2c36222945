package consul

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/problem"
)

// watchManager runs one watch for each query, however many subscriptions need it. It ends the watch when the last of
// them no longer needs it.
type watchManager struct {
	client  *Client
	limiter *connectionLimiter

	mu       sync.Mutex
	watches  map[query]*watch
	failures map[failureType]*failure // by how watches fail

	// These are for the state directory; see restore.go. began is when the first watch began, and answered whether Consul
	// has given a good answer since.
	keepAnswers  bool
	restoreAfter time.Duration // the constant, but in tests
	began        time.Time
	answered     bool
	saved        map[query]*answer
	// restored are the watches that use a saved answer. restoredSince is when the oldest of these was saved.
	restored      map[query]bool
	restoredSince time.Time

	stateReplaced chan struct{} // receives when Consul's state looks as if it was replaced; its capacity is 1
	tokenKnown    chan struct{} // receives when a query no longer fails because Consul does not know the token; its capacity is 1
	filtered      *filteredQueries
	// When a refresh last cancelled the open queries, and at which agent. The goroutine of runRefreshes owns both.
	lastCancel  time.Time
	cancelledAt *target
}

// watch is a query that is repeated until the watch ends. The manager's mutex guards the fields below done.
type watch struct {
	query   query
	refresh *refresh
	cancel  context.CancelFunc
	done    chan struct{} // closed when the goroutine of the watch has ended
	offered chan struct{} // see savedSource; nil without a state directory

	result      queryResult
	subscribers map[*subscription]bool
}

func newWatchManager(c *Client, wait time.Duration) *watchManager {
	return &watchManager{
		client: c, limiter: newConnectionLimiter(c, wait),
		watches: map[query]*watch{}, failures: map[failureType]*failure{},
		restoreAfter: restoreAfter, saved: map[query]*answer{}, restored: map[query]bool{},
		stateReplaced: make(chan struct{}, 1), tokenKnown: make(chan struct{}, 1), filtered: &filteredQueries{more: make(chan struct{}, 1)},
	}
}

// add adds a subscriber to the watch of a query, and starts the watch if there is none. It also returns the current
// result.
func (m *watchManager) add(q query, s *subscription) (*watch, queryResult) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.watches[q]
	if w == nil {
		w = m.startWatch(q)
	}
	w.subscribers[s] = true
	return w, w.result
}

func (m *watchManager) startWatch(q query) *watch {
	ctx, cancel := context.WithCancel(context.Background())
	l := &watchLoop{interval: q.queryType.interval, filtered: m.filtered, pace: newPace()}
	w := &watch{query: q, refresh: &l.refresh, cancel: cancel, done: make(chan struct{}), subscribers: map[*subscription]bool{}}
	l.query = func(ctx context.Context, index uint64) (response, error) { return m.query(ctx, l, q, index) }
	if !q.queryType.local {
		l.askLeader = func(ctx context.Context) (response, error) { return m.query(ctx, l, q.atLeader(), 0) }
	}
	l.decode = func(prev any, r response) (value any, err error) {
		err = guard.Run(m.client.logger, "consul answer", func() error {
			value, err = q.queryType.decode(prev, r)
			return err
		})
		return value, err
	}
	l.report = func(r queryResult, news bool) { m.setResult(w, r, news) }
	l.saved = m.savedSourceOf(l, q)
	w.offered = l.saved.offered
	if m.began.IsZero() {
		m.began = time.Now()
	}
	if !q.queryType.local && !q.queryType.mayStream() {
		l.stateReplaced = func() { notify(m.stateReplaced) }
	}
	m.watches[q] = w
	m.client.metrics.watches.WithLabelValues(q.queryType.name).Inc()
	m.client.logger.Debug("watch started", "query", q.String())
	m.limiter.addUsers(1)
	go func() {
		defer close(w.done)
		defer m.limiter.addUsers(-1)
		l.run(ctx)
	}()
	return w
}

// query sends the query of a loop once a connection is available, and counts the outcome. If Consul refuses one of an
// optional type, there are an empty response and an error; see watchLoop.attempt.
func (m *watchManager) query(ctx context.Context, l *watchLoop, q query, index uint64) (response, error) {
	r, err := m.limiter.do(ctx, index == 0, func(ctx context.Context, wait time.Duration) (response, error) {
		return m.client.query(ctx, q, index, l.maxWait(wait))
	})
	outcome := outcomeOf(err)
	if ctx.Err() == nil {
		m.client.metrics.queries.WithLabelValues(q.queryType.name, string(outcome)).Inc()
	}
	if q.queryType.optional && (outcome == outcomeDenied || outcome == outcomeMissing) {
		return response{body: []byte("{}"), refused: true}, err
	}
	return r, err
}

// remove removes a subscriber. If it was the last one, remove cancels the watch, and reports true: w.done closes soon.
func (m *watchManager) remove(w *watch, s *subscription) (cancelled bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(w.subscribers, s)
	delete(s.updates, w.query)
	if len(w.subscribers) > 0 {
		return false
	}
	delete(m.watches, w.query)
	delete(m.restored, w.query)
	m.recordError(w, queryResult{value: w.result.value}, true)
	m.client.metrics.watches.WithLabelValues(w.query.queryType.name).Dec()
	m.client.logger.Debug("watch stopped", "query", w.query.String())
	w.cancel()
	return true
}

// resultOf returns the current result of a watch.
func (m *watchManager) resultOf(w *watch) queryResult {
	m.mu.Lock()
	defer m.mu.Unlock()
	return w.result
}

// setResult stores the result of an attempt. If it is news, the subscribers get it as an update.
func (m *watchManager) setResult(w *watch, r queryResult, news bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(w.subscribers) == 0 {
		return
	}
	m.noteRestored(w.query, r)
	m.recordError(w, r, false)
	if r.err == nil && failsForToken(w.result.err) {
		notify(m.tokenKnown)
	}
	w.result = r
	if domain := confirmedDomainOf(r); domain != "" {
		m.client.confirmedDomain.Store(&domain)
	}
	if !news {
		return
	}
	for s := range w.subscribers {
		s.updates[w.query] = r
		notify(s.wake)
	}
}

// recordError counts and logs the change of the watch's error to that of the next result. stopped is true if the watch
// ends. The caller holds mu.
func (m *watchManager) recordError(w *watch, next queryResult, stopped bool) {
	m.client.metrics.failing.WithLabelValues(w.query.queryType.name).Add(float64(difference(w.result.err != nil, next.err != nil)))
	m.logFailure(w.query, w.result.err, next.err, failureContext{hasAnswer: next.value != nil, restored: next.restored(), stopped: stopped})
}

// failureType is a way in which watches fail. The log has one line when the first watch begins to fail in this way, and
// one when no watch does any longer.
type failureType struct {
	queryType string // empty: every type
	outcome   outcome
}

// failureTypeOf returns how a query fails. All failures to reach Consul are one type.
func failureTypeOf(q query, err error) failureType {
	o := outcomeOf(err)
	if o == outcomeUnreachable || o == outcomeOK || o == outcomeLimited {
		return failureType{outcome: o}
	}
	return failureType{queryType: q.queryType.name, outcome: o}
}

// failure is what fails in one way.
type failure struct {
	watches map[query]failingWatch
	shown   query // the watch whose problem is reported: the first in the order of before
	problem problem.Problem
}

// failingWatch is a watch that fails.
type failingWatch struct {
	err       error
	hasAnswer bool      // it has the last valid answer
	restored  time.Time // when that was saved, if it is from the state directory
}

// before reports whether the problem of q is reported rather than that of other. That Consul has never answered comes
// first, and then a watch without an answer.
func (f *failure) before(q, other query) bool {
	rank := func(q query) int {
		switch {
		case f.watches[q].hasAnswer:
			return 2
		case q != heartbeat:
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(rank(q), rank(other)), cmp.Compare(q.String(), other.String())) < 0
}

// put adds a watch, or replaces its error.
func (f *failure) put(q query, w failingWatch) {
	f.watches[q] = w
	if len(f.watches) == 1 || f.before(q, f.shown) {
		f.shown = q
	}
}

// remove removes a watch.
func (f *failure) remove(q query) {
	delete(f.watches, q)
	if q != f.shown {
		return
	}
	first := true
	for other := range f.watches {
		if first || f.before(other, f.shown) {
			f.shown, first = other, false
		}
	}
}

// failureContext is what the log says about a failure besides its type.
type failureContext struct {
	hasAnswer bool      // the query has had a good answer
	restored  time.Time // when that was saved, if it is from the state directory
	stopped   bool      // the query ends, so that it neither fails nor succeeds any longer
}

// logFailure logs and reports which type of failure begins when the error of a query changes from was to is. It logs that
// one is over only when an answer shows it: not when the query fails in another way, or stops. The caller holds mu.
func (m *watchManager) logFailure(q query, was, is error, c failureContext) {
	before, after := failureTypeOf(q, was), failureTypeOf(q, is)
	changed := false
	if after.outcome != outcomeOK {
		f := m.failures[after]
		if f == nil {
			f = &failure{watches: map[query]failingWatch{}}
			m.failures[after] = f
		}
		f.put(q, failingWatch{is, c.hasAnswer, c.restored})
		if before != after {
			m.logBegin(q, after, f.watches[q], len(f.watches) == 1 && !m.failsAlso(after, is))
		}
		changed = m.updateProblem(after)
	}
	if before != after && before.outcome != outcomeOK {
		f := m.failures[before]
		f.remove(q)
		if len(f.watches) == 0 && after.outcome == outcomeOK && !c.stopped && !m.failsAlso(before, was) {
			m.client.logger.Info("consul answers such queries again",
				"consul", m.client.Address(), "query", q.String(), "outcome", string(before.outcome))
		}
		changed = m.updateProblem(before) || changed
	}
	if changed {
		m.client.report("queries to consul", m.problems())
	}
}

// failsAlso reports whether queries of another type fail with the same error: Consul answers 500 to everything, for example.
// That is one state, and logged once. The caller holds mu.
func (m *watchManager) failsAlso(as failureType, err error) bool {
	for other, f := range m.failures {
		if other != as && len(f.watches) > 0 && f.watches[f.shown].err.Error() == err.Error() {
			return true
		}
	}
	return false
}

// problems returns a problem for each way in which watches fail, and one for those with the same error. The caller holds mu.
func (m *watchManager) problems() (list []problem.Problem) {
	same := map[problem.Problem][]string{} // the places, by the problem without one
	for _, f := range m.failures {
		p := f.problem
		p.Where = ""
		same[p] = append(same[p], f.problem.Where)
	}
	for p, places := range same {
		p.Where = slices.Min(places)
		if more := len(places) - 1; more > 0 {
			p.Where += fmt.Sprintf(" and queries of %d other types", more)
		}
		list = append(list, p)
	}
	return list
}

// logBegin logs that a watch begins to fail. first says that no other fails in this way.
func (m *watchManager) logBegin(q query, as failureType, w failingWatch, first bool) {
	log, message := m.client.logger.Debug, "cannot read from consul; using the last valid answer"
	if first {
		log = m.client.logger.Warn
	}
	args := []any{"consul", m.client.Address(), "query", q.String(), "outcome", string(as.outcome), "error", w.err}
	switch {
	case !w.restored.IsZero():
		message = "cannot read from consul; using the answer that usher saved"
		args = append(args, "saved", w.restored.UTC())
	case !w.hasAnswer:
		message = "cannot read from consul, and there is no last valid answer"
	}
	log(message, args...)
}

// updateProblem updates the problem of a way in which watches fail, and removes it with the last watch. It reports
// whether it has changed. The caller holds mu.
func (m *watchManager) updateProblem(as failureType) (changed bool) {
	f := m.failures[as]
	if len(f.watches) == 0 {
		delete(m.failures, as)
		return true
	}
	was := f.problem
	f.problem = m.failureProblem(f.shown, as, f.watches[f.shown])
	return f.problem != was
}

// failureProblem returns the problem of a watch that fails in a way. If Consul has never answered at all, nothing can be
// served.
func (m *watchManager) failureProblem(q query, as failureType, w failingWatch) problem.Problem {
	at, severity := "consul at "+m.client.Address(), problem.Degraded
	consequence := m.consequence(q, w)
	if q == heartbeat && !w.hasAnswer && len(m.restored) == 0 {
		severity = problem.Outage
	}
	if as.outcome == outcomeUnreachable {
		return problem.Problem{
			Where: at, Severity: severity,
			What: fmt.Sprintf("it does not answer: %v; %s; check that Consul runs and has a leader, and its address", w.err, consequence),
		}
	}
	return problem.Problem{Where: at + ": query " + q.String(), Severity: severity, What: fmt.Sprintf("it fails: %v; %s", w.err, consequence)}
}

// consequence returns what the failure of a watch means. The caller holds mu.
func (m *watchManager) consequence(q query, w failingWatch) string {
	since := w.restored
	if q == heartbeat && !w.hasAnswer && len(m.restored) > 0 {
		since = m.restoredSince
	}
	switch {
	case !since.IsZero():
		return "Usher uses what it saved at " + since.UTC().Format(time.RFC3339)
	case w.hasAnswer:
		return "Usher uses the last valid answer"
	case q == heartbeat:
		return "it has never answered, so Usher serves nothing"
	}
	return "there is no last valid answer"
}

// subscription is a set of watches that one goroutine needs, with their results.
type subscription struct {
	manager *watchManager
	wake    chan struct{} // receives when there are updates; its capacity is 1
	watches map[query]*watch
	results map[query]queryResult // of the watches that have one, as of the last takeUpdates
	updates map[query]queryResult // since the last takeUpdates; the manager's mutex guards it
}

func (m *watchManager) subscribe() *subscription {
	return &subscription{
		manager: m, wake: make(chan struct{}, 1), watches: map[query]*watch{},
		results: map[query]queryResult{}, updates: map[query]queryResult{},
	}
}

// lacksResults reports whether a query has no result yet.
func (s *subscription) lacksResults() bool { return len(s.results) < len(s.watches) }

// set makes the subscription one to exactly these queries. unanswered are those without a result, which may be new. set
// waits for the watches that end. It reports whether a new query has a result already.
func (s *subscription) set(queries map[query]bool, unanswered []query) (newResults bool) {
	for _, q := range unanswered {
		if s.watches[q] != nil {
			continue
		}
		w, r := s.manager.add(q, s)
		s.watches[q] = w
		if !r.isEmpty() {
			s.results[q], newResults = r, true
		}
	}
	if len(s.watches) > len(queries) {
		s.removeExcept(queries)
	}
	return newResults
}

func (s *subscription) removeExcept(queries map[query]bool) {
	var cancelled []*watch
	for q, w := range s.watches {
		if queries[q] {
			continue
		}
		delete(s.watches, q)
		delete(s.results, q)
		if s.manager.remove(w, s) {
			cancelled = append(cancelled, w)
		}
	}
	for _, w := range cancelled {
		<-w.done
	}
}

// takeUpdates moves the updates to the results. It returns them, and whether all of them are the first of their query.
func (s *subscription) takeUpdates() (updates map[query]queryResult, onlyFirst bool) {
	s.manager.mu.Lock()
	updates = s.updates
	s.updates = map[query]queryResult{}
	s.manager.mu.Unlock()
	onlyFirst = true
	for q := range updates {
		onlyFirst = onlyFirst && s.results[q].isEmpty()
	}
	maps.Copy(s.results, updates)
	return updates, onlyFirst
}

// close ends the subscription to all queries.
func (s *subscription) close() { s.removeExcept(nil) }
