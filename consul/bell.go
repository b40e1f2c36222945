package consul

import (
	"context"
	"errors"
	"sync"
	"time"
)

// bell makes a loop ask without an index. The zero value is ready. The loop
// calls begin, answered and end; any goroutine may call the others.
type bell struct {
	mu   sync.Mutex
	rung bool
	stop context.CancelCauseFunc // ends what the loop does; nil between two turns
	// asked is when the turn began, and read when the latest began that was
	// answered without an index.
	asked, read time.Time
	hidden      bool // Consul's ACLs leave something out
}

// errRung is why a loop's turn ended. It is no failure.
var errRung = errors.New("asked for again without an index")

// begin returns the context of one turn of the loop: a question and the pause
// after it. It reports whether the bell has rung since the turn before began.
func (b *bell) begin(ctx context.Context) (turn context.Context, rung bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	rung, b.rung = b.rung, false
	turn, b.stop = context.WithCancelCause(ctx)
	b.asked = time.Now()
	return turn, rung
}

// answered takes note of an answer. read says that it was one without an index,
// hidden that Consul's ACLs leave something out.
func (b *bell) answered(read, hidden bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if read {
		b.read = b.asked
	}
	b.hidden = hidden
}

func (b *bell) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stop(nil)
	b.stop = nil
}

// ring makes the loop's next question one without an index. With now, that is at
// once: the question that is open is given up, or the pause.
func (b *bell) ring(now bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rung = true
	if now && b.stop != nil {
		b.stop(errRung)
	}
}

// readSince reports whether a question without an index was asked after the time,
// and answered.
func (b *bell) readSince(t time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.read.After(t)
}

// isHidden reports whether Consul's ACLs leave something out.
func (b *bell) isHidden() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hidden
}
