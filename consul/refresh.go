package consul

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// refresh makes the loop of a query send a non-blocking query. The zero value is
// ready. The loop calls begin, answered and end; any goroutine may call the
// other methods.
type refresh struct {
	mu     sync.Mutex
	due    bool
	cancel context.CancelCauseFunc // cancels the current turn; nil between two turns
	// asked is when the current turn began. read is when the last turn began whose
	// non-blocking query was answered.
	began, lastRead time.Time
	filtered        bool // Consul's ACLs filtered the last answer
}

// errRefresh is the cause when a refresh cancels a turn. It is not a failure.
var errRefresh = errors.New("a non-blocking query takes its place")

// begin returns the context of one turn of the loop: a query and the pause after
// it. It reports whether a refresh was requested since the last turn began.
func (r *refresh) begin(ctx context.Context) (turn context.Context, due bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	due, r.due = r.due, false
	turn, r.cancel = context.WithCancelCause(ctx)
	r.began = time.Now()
	return turn, due
}

// answered records an answer: whether its query was a good non-blocking one, and
// whether Consul's ACLs filtered it.
func (r *refresh) answered(read, filtered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if read {
		r.lastRead = r.began
	}
	r.filtered = filtered
}

func (r *refresh) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancel(nil)
	r.cancel = nil
}

// request makes the loop's next query non-blocking. If now is true, it also
// cancels the current turn, so that the next query follows at once.
func (r *refresh) request(now bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.due = true
	if now && r.cancel != nil {
		r.cancel(errRefresh)
	}
}

// readSince reports whether a non-blocking query was sent after t and answered.
func (r *refresh) readSince(t time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lastRead.After(t)
}

// isFiltered reports whether Consul's ACLs filtered the last answer.
func (r *refresh) isFiltered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.filtered
}

// Usher spreads the non-blocking queries of a refresh over rereadTime, so that
// thousands of them do not reach Consul at once. After a restored snapshot it waits
// settleTime first: by then the other servers most likely have the snapshot.
// restoreTime later the agent's own copy has it, too, and Usher refreshes the
// queries of the streaming backend once more.
const (
	refreshSpread   = 2 * time.Second
	replicationTime = time.Second
	restoreTime     = 10 * time.Second
)

// stateReplaced records that Consul's state looks as if it was replaced.
func (h *watchManager) noteStateReplaced() { notify(h.stateReplaced) }

// rereading refreshes queries until ctx ends, in the cases in which a blocking
// query does not return after a change: Consul's state was replaced, one of many
// filtered answers shows more, or Consul answers again after an outage.
func (h *watchManager) runRefreshes(ctx context.Context, back <-chan struct{}) {
	replacements, followed := h.stateReplaced, (<-chan time.Time)(nil)
	var refreshed time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-replacements:
			h.refreshAfterRestore(ctx, time.Now())
			replacements, followed = nil, time.After(restoreTime)
		case <-followed:
			h.refreshWatches(ctx, func(w *watch) bool { return w.query.queryType.mayStream() })
			// The refreshed queries have called stateReplaced, too.
			select {
			case <-h.stateReplaced:
			default:
			}
			replacements, followed = h.stateReplaced, nil
		case <-h.filtered.more:
			if now := time.Now(); now.Sub(refreshed) >= filteredTime {
				refreshed = now
				h.refreshWatches(ctx, func(w *watch) bool { return w.refresh.isFiltered() })
			}
		case <-back:
			// The connections may be dead, and the state may have been replaced.
			h.client.renewConnections()
			h.refreshWatches(ctx, func(*watch) bool { return true })
		}
	}
}

// restored refreshes the queries that have sent no non-blocking query since then.
// Most have, because a restored snapshot ends blocking queries. It does not end
// those of the streaming backend.
func (h *watchManager) refreshAfterRestore(ctx context.Context, then time.Time) {
	h.client.logger.Info("consul's state looks as if a snapshot was restored; reading everything again", "consul", h.client.Address())
	sleep(ctx, replicationTime)
	h.refreshWatches(ctx, func(w *watch) bool { return !w.refresh.readSince(then) })
}

// reread refreshes the chosen queries.
func (h *watchManager) refreshWatches(ctx context.Context, chosen func(*watch) bool) {
	const steps = 50
	now := h.mayCancel()
	list := h.watchesWhere(chosen)
	for i, w := range list {
		if i > 0 && i%(1+len(list)/steps) == 0 {
			sleep(ctx, refreshSpread/steps)
		}
		w.refresh.request(now)
	}
}

func (h *watchManager) watchesWhere(chosen func(*watch) bool) []*watch {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []*watch
	for _, w := range h.watches {
		if chosen(w) {
			list = append(list, w)
		}
	}
	return list
}

// mayCut reports whether a refresh may cancel the open queries. Over plain HTTP,
// the agent keeps the connection of a cancelled query until its wait ends. So it
// may not happen twice in that time: then the open queries end by themselves.
func (h *watchManager) mayCancel() bool {
	now := time.Now()
	if h.client.connections() > 0 && !h.lastCancel.IsZero() && now.Sub(h.lastCancel) < plainWait+plainWait/8 {
		return false
	}
	h.lastCancel = now
	return true
}

// When Usher's token gets a right back, no index changes, and no blocking query
// returns. So Usher sends a non-blocking query filteredTime after an answer that
// Consul's ACLs filtered. If more than filteredMost queries have filtered answers,
// this time grows with their number, so that the load on Consul does not. The first
// of them that shows more than before then refreshes all the others.
const (
	filteredTime       = 10 * time.Second
	maxFilteredQueries = 1000
)

// filteredAnswers counts the queries whose last answer Consul's ACLs filtered. A
// nil *filteredAnswers serves a single query.
type filteredAnswers struct {
	queries atomic.Int64
	// more receives when one of many such queries shows more than before. Its
	// capacity is 1.
	more chan struct{}
}

func newFilteredAnswers() *filteredAnswers {
	return &filteredAnswers{more: make(chan struct{}, 1)}
}

// pause returns how long a filtered answer is used before it is read again.
func (f *filteredAnswers) pause() time.Duration {
	if f == nil {
		return filteredTime
	}
	return max(filteredTime, filteredTime*time.Duration(f.queries.Load())/maxFilteredQueries)
}

// count records whether the answer of one query was filtered, and is now.
func (f *filteredAnswers) count(was, is bool) {
	switch {
	case f == nil || was == is:
	case is:
		f.queries.Add(1)
	default:
		f.queries.Add(-1)
	}
}

// showsMore records that a query shows more than before.
func (f *filteredAnswers) showsMore() {
	if f != nil && f.queries.Load() > maxFilteredQueries {
		notify(f.more)
	}
}
