package consul

import (
	"context"
	"time"
)

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
