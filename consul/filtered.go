package consul

import (
	"sync/atomic"
	"time"
)

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
