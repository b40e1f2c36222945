// Package ordered has an immutable map of which changed copies are cheap, and
// so is the question in what two of them differ.
//
// A change of one instance among thousands passes through every stage, each of
// which hands on a whole new value. With Go's maps every stage would copy
// thousands of entries and compare as many. The libraries for immutable maps
// make the copies cheap, but none says what two maps do not share.
package ordered

import (
	"cmp"
	"iter"
	"slices"
)

// Map is an immutable map from strings, in their order. Values are compared by
// ==, and the zero value of V is that of a key without an entry. Two Maps that
// are == say the same; two that are not may do so, too. The zero Map is empty.
type Map[V comparable] struct {
	root *root[V]
}

// root is a version of a map. Versions share the blocks that they have in
// common.
type root[V comparable] struct {
	blocks []*block[V] // none is empty; in the order of their keys
	size   int
}

// block is a run of entries, in the order of their keys.
type block[V comparable] []entry[V]

type entry[V comparable] struct {
	key   string
	value V
}

// A block has at most fullBlock entries, and is made with half of that. A
// change copies one block and the list of blocks, so that with some thousands
// of entries both are about as long.
const fullBlock = 64

// From gives a Map with the entries of m.
func From[V comparable](m map[string]V) Map[V] {
	var none V
	keys := make([]string, 0, len(m))
	for key, v := range m {
		if v != none {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return sorted(keys, m)
}

// By gives a Map of values by their keys. Of two with one key the first counts.
func By[V comparable](values []V, key func(V) string) Map[V] {
	m := make(map[string]V, len(values))
	for _, v := range slices.Backward(values) {
		m[key(v)] = v
	}
	return From(m)
}

func sorted[V comparable](keys []string, m map[string]V) Map[V] {
	if len(keys) == 0 {
		return Map[V]{}
	}
	r := &root[V]{size: len(keys)}
	for run := range slices.Chunk(keys, fullBlock/2) {
		b := make(block[V], 0, len(run))
		for _, key := range run {
			b = append(b, entry[V]{key, m[key]})
		}
		r.blocks = append(r.blocks, &b)
	}
	return Map[V]{r}
}

// Len is the number of entries.
func (m Map[V]) Len() int {
	if m.root == nil {
		return 0
	}
	return m.root.size
}

// Get gives the value of a key; the zero value if there is none.
func (m Map[V]) Get(key string) V {
	if b, i, found := m.find(key); found {
		return (*m.root.blocks[b])[i].value
	}
	var none V
	return none
}

// find gives where a key is, or where it belongs. An empty map has no place.
func (m Map[V]) find(key string) (b, i int, found bool) {
	if m.root == nil {
		return 0, 0, false
	}
	b, found = slices.BinarySearchFunc(m.root.blocks, key, func(b *block[V], key string) int { return cmp.Compare((*b)[0].key, key) })
	if found {
		return b, 0, true
	}
	b = max(b-1, 0)
	i, found = slices.BinarySearchFunc(*m.root.blocks[b], key, func(e entry[V], key string) int { return cmp.Compare(e.key, key) })
	return b, i, found
}

// All gives the entries in the order of their keys.
func (m Map[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for at := m.begin(); !at.end(); at.step() {
			if e := at.entry(); !yield(e.key, e.value) {
				return
			}
		}
	}
}

// Keys gives the keys in their order.
func (m Map[V]) Keys() iter.Seq[string] {
	return func(yield func(string) bool) {
		m.All()(func(key string, _ V) bool { return yield(key) })
	}
}

// Values gives the values in the order of their keys.
func (m Map[V]) Values() iter.Seq[V] {
	return func(yield func(V) bool) {
		m.All()(func(_ string, v V) bool { return yield(v) })
	}
}

// With gives a Map in which key has the value, m itself if it has it already.
func (m Map[V]) With(key string, value V) Map[V] {
	var none V
	b, i, found := m.find(key)
	switch {
	case value == none:
		return m.Without(key)
	case m.root == nil:
		return From(map[string]V{key: value})
	case !found:
		return m.replace(b, slices.Insert(slices.Clone(*m.root.blocks[b]), i, entry[V]{key, value}))
	case (*m.root.blocks[b])[i].value == value:
		return m
	}
	changed := slices.Clone(*m.root.blocks[b])
	changed[i].value = value
	return m.replace(b, changed)
}

// Without gives a Map without the key, m itself if it has none.
func (m Map[V]) Without(key string) Map[V] {
	b, i, found := m.find(key)
	if !found {
		return m
	}
	return m.replace(b, slices.Delete(slices.Clone(*m.root.blocks[b]), i, i+1))
}

// replace gives a Map with other entries in the place of a block's.
func (m Map[V]) replace(at int, entries block[V]) Map[V] {
	old := m.root
	size := old.size - len(*old.blocks[at]) + len(entries)
	if size == 0 {
		return Map[V]{}
	}
	next := make([]*block[V], 0, len(old.blocks)+1)
	next = append(next, old.blocks[:at]...)
	if len(entries) > fullBlock {
		left, right := entries[:fullBlock/2:fullBlock/2], entries[fullBlock/2:]
		next = append(next, &left, &right)
	} else if len(entries) > 0 {
		next = append(next, &entries)
	}
	next = append(next, old.blocks[at+1:]...)
	return Map[V]{&root[V]{blocks: next, size: size}}
}

// ChangedSince gives the keys, in order, of which m says something else than old: that
// have another value, or are in one of the two only. It passes over what the
// two share.
func (m Map[V]) ChangedSince(old Map[V]) iter.Seq[string] {
	return func(yield func(string) bool) {
		was, is := old.begin(), m.begin()
		for !was.end() || !is.end() {
			if was.skips(&is) {
				continue
			}
			var differs string
			switch order := was.compare(is); {
			case order < 0:
				differs = was.entry().key
				was.step()
			case order > 0:
				differs = is.entry().key
				is.step()
			default:
				same := was.entry() == is.entry()
				differs = is.entry().key
				was.step()
				is.step()
				if same {
					continue
				}
			}
			if !yield(differs) {
				return
			}
		}
	}
}

// Equal says whether two Maps have the same entries.
func (m Map[V]) Equal(other Map[V]) bool {
	if m.Len() != other.Len() {
		return false
	}
	for range m.ChangedSince(other) {
		return false
	}
	return true
}

// OrSame gives other if it says the same as m, and else m: what has not changed
// stays the same.
func (m Map[V]) OrSame(other Map[V]) Map[V] {
	if m.Equal(other) {
		return other
	}
	return m
}

// place is a place in a map: an entry, or the end.
type place[V comparable] struct {
	blocks []*block[V] // those not passed yet
	i      int         // in the first of them
}

func (m Map[V]) begin() place[V] {
	if m.root == nil {
		return place[V]{}
	}
	return place[V]{blocks: m.root.blocks}
}

func (p place[V]) end() bool { return len(p.blocks) == 0 }

func (p place[V]) entry() entry[V] { return (*p.blocks[0])[p.i] }

func (p *place[V]) step() {
	p.i++
	if p.i == len(*p.blocks[0]) {
		*p = place[V]{blocks: p.blocks[1:]}
	}
}

// skips passes both over the rest of a block that they share. Walking in the
// order of the keys, they come to it at the same time.
func (p *place[V]) skips(other *place[V]) bool {
	if p.end() || other.end() || p.blocks[0] != other.blocks[0] {
		return false
	}
	p.blocks, other.blocks = p.blocks[1:], other.blocks[1:]
	p.i, other.i = 0, 0
	return true
}

// compare orders two places by their keys. The end is behind everything.
func (p place[V]) compare(other place[V]) int {
	switch {
	case p.end():
		return 1
	case other.end():
		return -1
	}
	return cmp.Compare(p.entry().key, other.entry().key)
}
