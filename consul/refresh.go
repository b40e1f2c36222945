package consul

import (
	"context"
	"errors"
	"sync"
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
