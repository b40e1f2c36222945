package xds

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// A comparison with the collection before finds what Next was given, and what is no longer held back.
func TestChangedSinceFindsWhatNextChanged(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		c := NewCollection(nil, nil)
		for range 20 {
			next, want := randomNext(t, rnd, c)
			got := slices.Clone(next.changedSince(c))
			slices.Sort(got)
			if !slices.Equal(slices.Compact(got), want) {
				t.Fatalf("seed %d: %q changed, a comparison finds %q", seed, want, got)
			}
			c = next
		}
	}
}

// randomNext changes, removes and holds back some resources. It returns the names that differ, sorted.
func randomNext(t *testing.T, rnd *rand.Rand, c *Collection) (next *Collection, differ []string) {
	t.Helper()
	var changed []*Resource
	var removed, heldBack []string
	for _, name := range letters {
		switch rnd.IntN(4) {
		case 0:
			before := c.Get(name)
			if r := sample(t, Route, name, rnd.IntN(3)); before == nil || before.Version() != r.Version() {
				changed, differ = append(changed, r), append(differ, name)
			}
		case 1:
			if c.Get(name) != nil {
				removed, differ = append(removed, name), append(differ, name)
			}
			if rnd.IntN(2) == 0 {
				heldBack = append(heldBack, name)
			}
		}
	}
	for _, name := range c.HeldBack() {
		if !slices.Contains(heldBack, name) {
			differ = append(differ, name)
		}
	}
	slices.Sort(differ)
	return c.Next(changed, removed, heldBack), slices.Compact(differ)
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
