package consul

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// refresh makes the loop of a watch send a non-blocking query. The zero value is ready. The loop calls begin and record;
// any goroutine may call the other methods.
type refresh struct {
	mu     sync.Mutex
	due    bool
	cancel context.CancelCauseFunc // cancels the latest cycle; nil before the first
	// began is the start of the latest cycle, and lastRead that of the latest one with an answered non-blocking query.
	began, lastRead time.Time
	filtered        bool // Consul's ACLs filtered the last response
}

// interruption is an error by which goroutines of this package interrupt each other. Nobody else sees it.
type interruption string

func (e interruption) Error() string { return string(e) }

// errRefresh is the cause when a refresh cancels a cycle. It is not a failure.
var errRefresh = interruption("a non-blocking query takes its place")

// begin ends the last cycle, starts one, and returns its context. A cycle is a query and the pause after it. It
// reports whether a refresh was requested since the last cycle began.
func (r *refresh) begin(ctx context.Context) (cycle context.Context, due bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cancel != nil {
		r.cancel(nil)
	}
	due, r.due = r.due, false
	cycle, r.cancel = context.WithCancelCause(ctx)
	r.began = time.Now()
	return cycle, due
}

// record records a response: whether its query was a good non-blocking one, and whether Consul's ACLs filtered it.
func (r *refresh) record(read, filtered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if read {
		r.lastRead = r.began
	}
	r.filtered = filtered
}

// request makes the loop's next query non-blocking. If now is true, it also cancels the current cycle, so that the next
// query follows at once.
func (r *refresh) request(now bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.due = true
	if now && r.cancel != nil {
		r.cancel(errRefresh)
	}
}

// last returns when the latest answered non-blocking query was sent, and whether Consul's ACLs filtered the last
// response.
func (r *refresh) last() (read time.Time, filtered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lastRead, r.filtered
}

// Usher spreads the non-blocking queries of a refresh over refreshSpread, so that thousands of them do not reach Consul
// at once. After a restored Consul snapshot it waits replicationTime first: by then the other servers most likely have the
// snapshot. restoreTime later the agent's own copy has it, too, and Usher refreshes the queries of the streaming
// backend once more.
const (
	refreshSpread   = 2 * time.Second
	replicationTime = time.Second
	restoreTime     = 10 * time.Second
)

// runRefreshes refreshes queries until ctx ends, in the cases in which a blocking query does not return after a change:
// Consul's state was replaced, one of many filtered responses shows more, Consul answers again after an outage, or the client uses another address.
// When Consul knows Usher's token again, it ends the pauses of all queries that failed because it did not.
func (m *watchManager) runRefreshes(ctx context.Context, recovered <-chan struct{}) {
	replaced, secondTime := m.stateReplaced, (<-chan time.Time)(nil)
	var filteredAt time.Time // when the filtered queries were last refreshed
	for {
		select {
		case <-ctx.Done():
			return
		case <-replaced:
			m.refreshAfterRestore(ctx, time.Now())
			replaced, secondTime = nil, time.After(restoreTime)
		case <-secondTime:
			m.refreshWatches(ctx, m.mayCancel(), func(w *watch) bool { return w.query.queryType.mayStream() })
			// The refreshed queries have written to stateReplaced, too.
			select {
			case <-m.stateReplaced:
			default:
			}
			replaced, secondTime = m.stateReplaced, nil
		case <-m.filtered.more:
			if now := time.Now(); now.Sub(filteredAt) >= filteredTime {
				filteredAt = now
				m.refreshWatches(ctx, m.mayCancel(), func(w *watch) bool { _, filtered := w.refresh.last(); return filtered })
			}
		case <-recovered:
			// The connections may be dead, and the state may have been replaced.
			m.client.watchHTTP.CloseIdleConnections()
			m.client.aclHTTP.CloseIdleConnections()
			m.refreshWatches(ctx, m.mayCancel(), func(*watch) bool { return true })
		case <-m.tokenKnown:
			// A query that has just failed does not block, so to cancel it costs no connection.
			m.refreshWatches(ctx, true, func(w *watch) bool { return failsForToken(w.result.err) })
		}
	}
}

// refreshAfterRestore refreshes the queries that have sent no non-blocking query since the restore. Most have, because
// a restored Consul snapshot ends blocking queries. It does not end those of the streaming backend.
func (m *watchManager) refreshAfterRestore(ctx context.Context, restored time.Time) {
	m.client.logger.Info("a consul snapshot seems to have been restored; reading everything again", "consul", m.client.Address())
	sleep(ctx, replicationTime)
	m.refreshWatches(ctx, m.mayCancel(), func(w *watch) bool { read, _ := w.refresh.last(); return !read.After(restored) })
}

// refreshWatches refreshes the chosen watches; if now is true, at once. It calls chosen with mu held.
func (m *watchManager) refreshWatches(ctx context.Context, now bool, chosen func(*watch) bool) {
	const steps = 50
	m.mu.Lock()
	list := slices.DeleteFunc(slices.Collect(maps.Values(m.watches)), func(w *watch) bool { return !chosen(w) })
	m.mu.Unlock()
	for i, w := range list {
		if i > 0 && i%(1+len(list)/steps) == 0 {
			sleep(ctx, refreshSpread/steps)
		}
		w.refresh.request(now)
	}
}

// mayCancel reports whether a refresh may cancel the open queries. Over plain HTTP, the agent keeps the connection of a
// cancelled query until its wait ends. So that may not happen twice before the open queries end by themselves.
func (m *watchManager) mayCancel() bool {
	now, at := time.Now(), m.client.targets.current()
	if m.client.maxConnections() > 0 && m.cancelledAt == at && now.Sub(m.lastCancel) < plainWait+plainWait/8 {
		return false
	}
	m.lastCancel, m.cancelledAt = now, at
	return true
}

// When Usher's token gets a permission back, no index changes, and no blocking query returns. So Usher sends a
// non-blocking query filteredTime after a response that Consul's ACLs filtered. If there are more than maxFilteredQueries
// such queries, this time grows with their number, so that the load on Consul does not. The first of them that shows
// more than before then refreshes all the others.
const (
	filteredTime       = 10 * time.Second
	maxFilteredQueries = 1000
)

// filteredQueries counts the queries whose last response Consul's ACLs filtered.
type filteredQueries struct {
	queries atomic.Int64
	// more receives when one of many such queries shows more than before. Its capacity is 1.
	more chan struct{}
}

// pause returns how long a filtered response is used before it is read again.
func (f *filteredQueries) pause() time.Duration {
	return max(filteredTime, filteredTime*time.Duration(f.queries.Load())/maxFilteredQueries)
}

// count records whether the response to one query was filtered, and is now.
func (f *filteredQueries) count(was, is bool) { f.queries.Add(difference(was, is)) }

// difference returns 1 if something begins, -1 if it ends, and 0 if it stays as it was.
func difference(was, is bool) int64 {
	switch {
	case is && !was:
		return 1
	case was && !is:
		return -1
	}
	return 0
}

// showsMore records that a query shows more than before.
func (f *filteredQueries) showsMore() {
	if f.queries.Load() > maxFilteredQueries {
		notify(f.more)
	}
}
