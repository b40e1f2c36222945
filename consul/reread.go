package consul

import (
	"context"
	"time"
)

// Reading everything again takes rereadTime, so that thousands of queries do not
// ask at once. After a restored snapshot it begins when the other servers are
// likely to have it, and what the streaming backend answers is read once more
// when the agent's own copy of it has followed for sure.
const (
	rereadTime  = 2 * time.Second
	settleTime  = time.Second
	restoreTime = 10 * time.Second
)

// sign says that Consul's state looks as if another one had been put in its place.
func (h *hub) sign() { notify(h.signs) }

// rereading makes queries be asked without an index where blocking queries cannot
// tell of a change, until ctx ends: after a sign, when one of many answers is
// filtered no longer, and when Consul is back.
func (h *hub) rereading(ctx context.Context, back <-chan struct{}) {
	signs, followed := h.signs, (<-chan time.Time)(nil)
	var lifted time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-signs:
			h.restored(ctx, time.Now())
			signs, followed = nil, time.After(restoreTime)
		case <-followed:
			h.reread(ctx, func(w *watch) bool { return w.query.kind.mayStream() })
			// What was read again has left a sign, too.
			select {
			case <-h.signs:
			default:
			}
			signs, followed = h.signs, nil
		case <-h.hiding.lifted:
			if now := time.Now(); now.Sub(lifted) >= hiddenTime {
				lifted = now
				h.reread(ctx, func(w *watch) bool { return w.bell.isHidden() })
			}
		case <-back:
			// The connections may be dead, and the state may be another one.
			h.client.renew()
			h.reread(ctx, func(*watch) bool { return true })
		}
	}
}

// restored reads again what has not been read since the sign. Most queries have:
// a restored snapshot ends them, but not those of the streaming backend.
func (h *hub) restored(ctx context.Context, sign time.Time) {
	h.client.logger.Info("consul's state looks as if a snapshot had been restored; everything is read again", "consul", h.client.Address())
	sleep(ctx, settleTime)
	h.reread(ctx, func(w *watch) bool { return !w.bell.readSince(sign) })
}

// reread makes the chosen queries ask without an index.
func (h *hub) reread(ctx context.Context, chosen func(*watch) bool) {
	const steps = 50
	now := h.mayCut()
	list := h.choose(chosen)
	for i, w := range list {
		if i > 0 && i%(1+len(list)/steps) == 0 {
			sleep(ctx, rereadTime/steps)
		}
		w.bell.ring(now)
	}
}

func (h *hub) choose(chosen func(*watch) bool) []*watch {
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

// mayCut reports whether the open queries may be given up. Over plain HTTP each
// holds a connection of the agent's until its wait ends, so that it may not happen
// twice in that time: then they are asked without an index when they end.
func (h *hub) mayCut() bool {
	now := time.Now()
	if h.client.connections() > 0 && !h.cut.IsZero() && now.Sub(h.cut) < plainWait+plainWait/8 {
		return false
	}
	h.cut = now
	return true
}
