package consul

import (
	"context"
	"sync"
	"time"

	"github.com/usherproxy/usher/internal/guard"
)

// hub runs one blocking query for each question that somebody has, however many
// have it. The last one to lose interest ends it.
type hub struct {
	client *Client
	budget *budget

	mu      sync.Mutex
	watches map[query]*watch
	trouble map[trouble]int // watches that fail, by how

	// replacements receives when Consul's state looks as if it was replaced. Its
	// capacity is 1.
	replacements chan struct{}
	filtered     *filteredAnswers
	cut          time.Time // when reread cancelled the open queries last; only rereading uses it
}

// watch is a query that is running. Its fields below done belong to hub.mu.
type watch struct {
	query   query
	refresh *refresh
	cancel  context.CancelFunc
	done    chan struct{} // closed when its goroutine has ended

	fact  fact
	users map[*lease]struct{}
}

// trouble is a way in which watches fail; the log has one line when it begins
// and one when it is over.
type trouble struct {
	kind    string // empty: every kind
	outcome outcome
}

func newHub(c *Client, wait time.Duration) *hub {
	return &hub{client: c, budget: newBudget(c, wait), watches: map[query]*watch{}, trouble: map[trouble]int{}, replacements: make(chan struct{}, 1), filtered: newFilteredAnswers()}
}

// acquire starts the query unless it runs already. The lease hears of every
// change of the fact.
func (h *hub) acquire(q query, l *lease) *watch {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.watches[q]
	if w == nil {
		w = h.start(q)
	}
	w.users[l] = struct{}{}
	return w
}

func (h *hub) start(q query) *watch {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watch{query: q, cancel: cancel, done: make(chan struct{}), users: map[*lease]struct{}{}}
	h.watches[q] = w
	h.client.metrics.watch(q.kind.name, 1)
	h.client.logger.Debug("watch", "query", q.String())
	l := &loop{}
	w.refresh = &l.refresh
	*l = loop{
		ask: func(ctx context.Context, index uint64) (answer, error) {
			a, err := h.budget.ask(ctx, index == 0, func(ctx context.Context, wait time.Duration) (answer, error) {
				return h.client.ask(ctx, q, index, l.longest(wait))
			})
			if ctx.Err() == nil {
				h.client.metrics.query(q.kind.name, outcomeOf(err))
			}
			if o := outcomeOf(err); q.kind.optional && (o == outcomeDenied || o == outcomeMissing) {
				return answer{body: []byte("{}"), refused: true}, nil
			}
			return a, err
		},
		decode: func(prev any, a answer) (value any, err error) {
			err = guard.Run(h.client.logger, "consul answer", func() error {
				value, err = q.kind.decode(prev, a)
				return err
			})
			return value, err
		},
		every:    q.kind.every,
		filtered: h.filtered,
		learn:    func(f fact, changed bool) { h.learn(w, f, changed) },
	}
	if !q.kind.local && !q.kind.mayStream() {
		l.replaced = h.stateReplaced
	}
	h.budget.join()
	go func() {
		defer close(w.done)
		defer h.budget.leave()
		l.run(ctx)
	}()
	return w
}

// release gives the watch back. It says whether that was the last user: then
// the query is being cancelled, and w.done closes soon.
func (h *hub) release(w *watch, l *lease) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(w.users, l)
	delete(l.news, w.query)
	if len(w.users) > 0 {
		return false
	}
	delete(h.watches, w.query)
	h.report(w, nil)
	w.fact.err = nil
	h.client.metrics.watch(w.query.kind.name, -1)
	h.client.logger.Debug("stop", "query", w.query.String())
	w.cancel()
	return true
}

// known gives the fact of a watch.
func (h *hub) known(w *watch) fact {
	h.mu.Lock()
	defer h.mu.Unlock()
	return w.fact
}

// learn takes over a new fact and wakes whoever needs it.
func (h *hub) learn(w *watch, f fact, changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(w.users) == 0 {
		return
	}
	h.report(w, f.err)
	w.fact = f
	if !changed {
		return
	}
	for l := range w.users {
		l.news[w.query] = f
		l.rouse()
	}
}

// report logs what begins and what ends when the watch's error becomes err.
func (h *hub) report(w *watch, err error) {
	h.countFailing(w, err)
	h.tell(w.query, w.fact.err, err)
}

// tell logs which trouble begins and which ends when the error of a query changes
// from was to is. The caller holds mu.
func (h *hub) tell(q query, was, is error) {
	before, after := troubleOf(q, was), troubleOf(q, is)
	if before == after {
		return
	}
	if after.outcome != outcomeOK {
		h.trouble[after]++
		log := h.client.logger.Debug
		if h.trouble[after] == 1 {
			log = h.client.logger.Warn
		}
		log("reading consul fails; the last good answer counts",
			"consul", h.client.Address(), "query", q.String(), "outcome", string(after.outcome), "error", is)
	}
	if before.outcome != outcomeOK {
		h.trouble[before]--
		if h.trouble[before] == 0 {
			delete(h.trouble, before)
			h.client.logger.Info("reading consul no longer fails this way",
				"consul", h.client.Address(), "query", q.String(), "outcome", string(before.outcome))
		}
	}
}

func (h *hub) countFailing(w *watch, err error) {
	was, is := w.fact.err != nil, err != nil
	switch {
	case is && !was:
		h.client.metrics.fail(w.query.kind.name, 1)
	case was && !is:
		h.client.metrics.fail(w.query.kind.name, -1)
	}
}

// troubleOf puts all that cannot reach Consul into one.
func troubleOf(q query, err error) trouble {
	t := trouble{kind: q.kind.name, outcome: outcomeOf(err)}
	if t.outcome == outcomeUnreachable || t.outcome == outcomeOK || t.outcome == outcomeLimited {
		t.kind = ""
	}
	return t
}

// lease is one user's share of a hub: the watches that it needs now. It belongs
// to one goroutine.
type lease struct {
	hub  *hub
	wake chan struct{} // of capacity 1: something that is needed has changed
	held map[query]*holding
	turn uint64
	open map[query]bool // held, and not answered yet when it was needed last
	news map[query]fact // what changed since it was taken; guarded by hub.mu
}

type holding struct {
	watch *watch
	turn  uint64 // the last one in which it was needed
}

func (h *hub) lease() *lease {
	return &lease{hub: h, wake: make(chan struct{}, 1), held: map[query]*holding{}, open: map[query]bool{}, news: map[query]fact{}}
}

// rouse wakes the lease's owner. Anybody may call it.
func (l *lease) rouse() {
	select {
	case l.wake <- struct{}{}:
	default: // it has not yet woken from the one before
	}
}

// need gives what is known of the query, and keeps it running until a sweep
// finds that nobody needed it since the sweep before.
func (l *lease) need(q query) fact {
	h := l.held[q]
	if h == nil {
		h = &holding{watch: l.hub.acquire(q, l)}
		l.held[q] = h
	}
	h.turn = l.turn
	f := l.hub.known(h.watch)
	if f.value == nil && f.err == nil {
		l.open[q] = true
	} else {
		delete(l.open, q)
	}
	return f
}

// take gives the facts that changed since it was called last.
func (l *lease) take() map[query]fact {
	l.hub.mu.Lock()
	defer l.hub.mu.Unlock()
	news := l.news
	l.news = map[query]fact{}
	return news
}

// sweep gives back what was not needed since the last sweep, and waits for the
// queries that end with it.
func (l *lease) sweep() {
	var ended []*watch
	for q, h := range l.held {
		if h.turn == l.turn {
			continue
		}
		delete(l.held, q)
		delete(l.open, q)
		if l.hub.release(h.watch, l) {
			ended = append(ended, h.watch)
		}
	}
	for _, w := range ended {
		<-w.done
	}
	l.turn++
}

// close gives everything back.
func (l *lease) close() {
	l.turn++
	l.sweep()
}

// read gives the typed value of the query, nil before the first good answer.
func read[T any](l *lease, q query) (*T, fact) {
	f := l.need(q)
	v, _ := f.value.(*T)
	return v, f
}
