package consul

import (
	"context"
	"fmt"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// restoreAfter is how long Consul may take for a first answer. After that, or after a failure, a saved answer takes its
// place until Consul answers.
const restoreAfter = 500 * time.Millisecond

// savedSource is what the loop of a watch needs of the state directory.
type savedSource struct {
	keep    bool                             // the loop keeps good responses, to be saved
	take    func() (value any, from *answer) // returns the saved answer and its value; nil if there is none
	after   func() time.Duration             // returns how long to wait for a first response
	offered chan struct{}                    // receives when there may be a saved answer; its capacity is 1
}

// restore makes the saved answer the last valid one if Consul has not given one, and there is one. If Consul refuses the
// query, a saved refusal is of no use.
func (l *watchLoop) restore(refused bool) bool {
	if l.result.value != nil || !l.saved.keep {
		return false
	}
	value, from := l.saved.take()
	if from == nil || refused && from.refused {
		return false
	}
	l.result.value, l.result.answer = value, from
	return true
}

// queryOrRestore sends a query. While there is no response for a while, and has never been one, it restores the saved
// answer.
func (l *watchLoop) queryOrRestore(ctx context.Context, index uint64) (r response, err error) {
	if !l.saved.keep || l.result.value != nil {
		return l.query(ctx, index)
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		r, err = l.query(ctx, index)
	}()
	late := time.After(l.saved.after())
	for silent := false; ; {
		select {
		case <-answered:
			return r, err
		case <-late:
			silent = true
		case <-l.saved.offered:
		}
		if silent && l.restore(false) {
			l.result.err = &callError{outcome: outcomeUnreachable, err: noAnswer(restoreAfter)}
			l.report(l.result, true)
		}
	}
}

// rest sleeps. A saved answer that comes in the meantime is restored.
func (l *watchLoop) rest(ctx context.Context, d time.Duration) {
	if !l.saved.keep || l.result.value != nil || d <= 0 {
		sleep(ctx, d)
		return
	}
	end := time.After(d)
	for {
		select {
		case <-ctx.Done():
			return
		case <-end:
			return
		case <-l.saved.offered:
			if l.restore(false) {
				l.report(l.result, true)
			}
		}
	}
}

// savedSourceOf returns what the loop of a watch needs; the zero value without a state directory.
func (m *watchManager) savedSourceOf(l *watchLoop, q query) savedSource {
	if !m.keepAnswers || savedTypes[q.queryType.name] != q.queryType {
		return savedSource{}
	}
	return savedSource{
		keep: true, after: m.patience, offered: make(chan struct{}, 1),
		take: func() (any, *answer) {
			a := m.savedAnswer(q)
			if a == nil {
				return nil, nil
			}
			value, err := l.decode(nil, a.response())
			if err == nil {
				err = checkSaved(value, time.Now())
			}
			if err != nil {
				m.withdraw(q)
				m.client.logger.Warn("usher does not use a saved answer, and waits for consul's", "query", q.String(), "saved", a.saved.UTC(), "error", err)
				return nil, nil
			}
			return value, a
		},
	}
}

// checkSaved returns an error if a value is of no use any more.
func checkSaved(value any, now time.Time) error {
	if leaf, ok := value.(*gateway.Leaf); ok && !leaf.ValidBefore.IsZero() && now.After(leaf.ValidBefore) {
		return fmt.Errorf("the certificate expired at %s", leaf.ValidBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// patience returns how long a watch waits for its first response. If Consul has answered nothing yet, all watches together
// wait once: each answer leads to further queries.
func (m *watchManager) patience() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.answered {
		return m.restoreAfter
	}
	return m.restoreAfter - time.Since(m.began)
}

// savedAnswer returns the saved answer to a query; nil if there is none.
func (m *watchManager) savedAnswer(q query) *answer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.saved[q]
}

// offer makes saved answers available to the watches of their queries. Of two for one query, the newer one counts.
func (m *watchManager) offer(answers map[query]*answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for q, a := range answers {
		if before := m.saved[q]; before != nil && before.saved.After(a.saved) {
			continue
		}
		m.saved[q] = a
		if w := m.watches[q]; w != nil && w.offered != nil && w.result.value == nil {
			notify(w.offered)
		}
	}
}

// withdraw ends offer for some queries.
func (m *watchManager) withdraw(queries ...query) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, q := range queries {
		delete(m.saved, q)
	}
}

// noteRestored records whether a watch uses a saved answer. The caller holds mu.
func (m *watchManager) noteRestored(q query, r queryResult) {
	if at := r.restored(); !at.IsZero() {
		if len(m.restored) == 0 || at.Before(m.restoredSince) {
			m.restoredSince = at
		}
		m.restored[q] = true
	} else if len(m.restored) > 0 {
		delete(m.restored, q)
	}
	if r.err == nil && r.value != nil {
		m.answered = true
		if len(m.saved) > 0 {
			delete(m.saved, q)
		}
	}
}
