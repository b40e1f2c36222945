package ordered

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Maps that were changed at random, from each other, say what Go's maps say
// after the same changes, and differ in what those differ.
func TestMapIsAMap(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		keys := 1 + rnd.IntN(500)
		m := From(filled(rnd, keys))
		want := maps.Collect(m.All())
		type version struct {
			m    Map[int]
			want map[string]int
		}
		versions := []version{{m, want}, {Map[int]{}, nil}}
		for range 40 {
			from := versions[rnd.IntN(len(versions))]
			m, want := from.m, maps.Clone(from.want)
			if want == nil {
				want = map[string]int{}
			}
			for range rnd.IntN(4 * keys) {
				key := name(rnd.IntN(keys))
				if rnd.IntN(3) == 0 {
					m = m.Without(key)
					delete(want, key)
					continue
				}
				v := 1 + rnd.IntN(3)
				m = m.With(key, v)
				want[key] = v
			}
			versions = append(versions, version{m, want})
		}
		for _, a := range versions {
			holds(t, a.m, a.want)
			b := versions[rnd.IntN(len(versions))]
			if diff := cmp.Diff(differences(b.want, a.want), slices.Collect(a.m.ChangedSince(b.m))); diff != "" {
				t.Fatalf("seed %d: what differs -, ChangedSince +:\n%s", seed, diff)
			}
			if a.m.Equal(b.m) != maps.Equal(a.want, b.want) {
				t.Fatalf("seed %d: Equal says %v", seed, a.m.Equal(b.m))
			}
		}
	}
}

func holds(t *testing.T, m Map[int], want map[string]int) {
	t.Helper()
	if m.Len() != len(want) {
		t.Fatalf("Len is %d, want %d", m.Len(), len(want))
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Collect(m.Keys())); diff != "" {
		t.Fatalf("keys: want -, got +:\n%s", diff)
	}
	for key, v := range want {
		if got := m.Get(key); got != v {
			t.Fatalf("Get(%s) is %d, want %d", key, got, v)
		}
	}
	for _, key := range []string{"", "k0000x", "z"} {
		if got := m.Get(key); got != 0 {
			t.Fatalf("Get(%q) is %d", key, got)
		}
	}
}

func TestWhatChangesNothingGivesTheSame(t *testing.T) {
	m := From(map[string]int{"a": 1, "b": 2})
	for what, got := range map[string]Map[int]{
		"a value that is there":  m.With("b", 2),
		"a key that is not":      m.Without("c"),
		"no value":               m.With("c", 0),
		"OrSame of an equal Map": From(map[string]int{"a": 1, "b": 2}).OrSame(m),
	} {
		if got != m {
			t.Errorf("%s: another Map", what)
		}
	}
	if m.With("b", 3).OrSame(m) == m || m.Without("a").With("b", 0) != (Map[int]{}) || From(map[string]int{"a": 0}) != (Map[int]{}) {
		t.Error("a change is lost")
	}
}

func TestByTakesTheFirst(t *testing.T) {
	m := By([]string{"b1", "a1", "b2"}, func(s string) string { return s[:1] })
	if diff := cmp.Diff([]string{"a1", "b1"}, slices.Collect(m.Values())); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
}

// A change shares nearly everything with what it was made of, and Since does
// not look at it.
func TestAChangeIsSmall(t *testing.T) {
	all := map[string]int{}
	for i := range 10_000 {
		all[name(i)] = 1
	}
	m := From(all)
	next := m.With(name(5000), 2)
	own := 0
	for i, b := range next.root.blocks {
		if m.root.blocks[i] != b {
			own += len(*b)
		}
	}
	if own == 0 || own > maxBlock {
		t.Errorf("a change copied %d entries, want a block of at most %d", own, maxBlock)
	}
}

func BenchmarkMap(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		all := map[string]int{}
		for i := range n {
			all[name(i)] = 1
		}
		m := From(all)
		key := name(n / 2)
		b.Run(fmt.Sprintf("change of %d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				m = m.With(key, i)
			}
		})
		b.Run(fmt.Sprintf("difference of %d", n), func(b *testing.B) {
			next := m.With(key, -1)
			for b.Loop() {
				for range next.ChangedSince(m) {
				}
			}
		})
	}
}

func name(i int) string { return fmt.Sprintf("k%04d", i) }

func filled(rnd *rand.Rand, keys int) map[string]int {
	m := map[string]int{}
	for i := range keys {
		if rnd.IntN(2) == 0 {
			m[name(i)] = 1 + rnd.IntN(3)
		}
	}
	return m
}

func differences(old, now map[string]int) []string {
	var out []string
	for key := range now {
		if old[key] != now[key] {
			out = append(out, key)
		}
	}
	for key := range old {
		if _, still := now[key]; !still {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}
