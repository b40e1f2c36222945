package xds

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// The names that Next stores are those that a comparison finds, apart from duplicates and from names that were added and
// removed.
func TestNextKnowsWhatItChanged(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		c := NewCollection(nil, nil)
		for range 20 {
			next := randomNext(t, rnd, c)
			got, want := slices.Clone(next.changedSince(c)), difference(c, next)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(slices.Compact(got), slices.Compact(want)) {
				t.Fatalf("seed %d: %q changed, a comparison finds %q", seed, got, want)
			}
			c = next
		}
	}
}

// randomNext changes, removes and holds back some resources.
func randomNext(t *testing.T, rnd *rand.Rand, c *Collection) *Collection {
	t.Helper()
	var changed []*Resource
	var removed, heldBack []string
	for _, name := range letters {
		switch rnd.IntN(4) {
		case 0:
			before := c.Get(name)
			if r := sample(t, Route, name, rnd.IntN(3)); before == nil || before.Version() != r.Version() {
				changed = append(changed, r)
			}
		case 1:
			if c.Get(name) != nil {
				removed = append(removed, name)
			}
			if rnd.IntN(2) == 0 {
				heldBack = append(heldBack, name)
			}
		}
	}
	return c.Next(changed, removed, heldBack)
}

func TestNextWithoutChangeIsTheSame(t *testing.T) {
	c := NewCollection(map[string]*Resource{"a": sample(t, Route, "a", 1)}, []string{"b"})
	if c.Next(nil, nil, []string{"b"}) != c {
		t.Error("nothing changed, and the collection is another one")
	}
	next := c.Next(nil, []string{"a"}, []string{"b"})
	if c.Get("a") == nil || next.Get("a") != nil {
		t.Error("the removal was done to the collection before")
	}
}

func TestChangesSinceAnOlderCollection(t *testing.T) {
	first := NewCollection(nil, nil)
	second := first.Next([]*Resource{sample(t, Route, "a", 1)}, nil, nil)
	third := second.Next([]*Resource{sample(t, Route, "b", 1)}, nil, nil)
	if got := slices.Sorted(slices.Values(third.changedSince(first))); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("since the first: %q, want a and b", got)
	}
	if got := third.changedSince(second); !slices.Equal(got, []string{"b"}) {
		t.Errorf("since the second: %q, want b", got)
	}
}
