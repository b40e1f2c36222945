package xds

import (
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// knownTokens are hashes of credentials that were authorized recently: those of open streams, and at most maxKnownTokens of
// streams that have ended. A stream with one of them counts against fewer limits. The admission's lock guards them.
type knownTokens struct {
	open  map[uint64]int // how many streams have the token; never 0
	ended *simplelru.LRU[uint64, time.Time]
}

func newKnownTokens() *knownTokens {
	ended, err := simplelru.NewLRU[uint64, time.Time](maxKnownTokens, nil)
	if err != nil {
		panic(err) // the size is a constant
	}
	return &knownTokens{open: map[uint64]int{}, ended: ended}
}

// has reports whether a token was authorized recently.
func (t *knownTokens) has(token uint64) bool {
	if t.open[token] > 0 {
		return true
	}
	end, ended := t.ended.Peek(token)
	return ended && time.Since(end) < knownTime
}

// begin adds a stream with a token that was authorized.
func (t *knownTokens) begin(token uint64) {
	t.open[token]++
}

// end removes a stream that begin added.
func (t *knownTokens) end(token uint64) {
	if t.open[token]--; t.open[token] == 0 {
		delete(t.open, token)
		t.ended.Add(token, time.Now())
	}
}
