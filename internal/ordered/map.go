// Package ordered has an immutable map of which changed copies are cheap. Comparing two such maps is cheap as well.
//
// When one of thousands of endpoints changes, the change passes through every stage from the watch to the set, and
// each stage hands on a whole new value. With Go's maps, each would copy and compare thousands of items. Libraries for
// immutable maps make copies cheap, but none of them returns what two maps do not share.
package ordered

import (
	"cmp"
	"iter"
	"slices"
)

// Map is an immutable map with string keys, in their order. The zero value of V stands for no value. Two Maps that
// are equal by == have the same items; two that are not may have the same items, too. The zero Map is empty.
type Map[V comparable] struct {
	root *root[V]
}

// root has the items of one version of a map. Versions share blocks.
type root[V comparable] struct {
	blocks []*block[V] // in the order of their keys; none is empty
	size   int
}

// block is a run of items, in the order of their keys.
type block[V comparable] []item[V]

type item[V comparable] struct {
	key   string
	value V
}

// maxBlock is how many items a block may have. A new block has half of that. A change copies one block and the list of
// blocks; for some thousands of items both have about the same length.
const maxBlock = 64

// From returns a Map with the items of m.
func From[V comparable](m map[string]V) Map[V] {
	var none V
	keys := make([]string, 0, len(m))
	for key, v := range m {
		if v != none {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return Map[V]{}
	}
	slices.Sort(keys)
	r := &root[V]{size: len(keys)}
	for run := range slices.Chunk(keys, maxBlock/2) {
		b := make(block[V], 0, len(run))
		for _, key := range run {
			b = append(b, item[V]{key, m[key]})
		}
		r.blocks = append(r.blocks, &b)
	}
	return Map[V]{r}
}

// By returns a Map of values by their keys. If a key occurs twice, the first value counts.
func By[V comparable](values []V, key func(V) string) Map[V] {
	m := make(map[string]V, len(values))
	for _, v := range slices.Backward(values) {
		m[key(v)] = v
	}
	return From(m)
}

// version returns the root; an empty one for the zero Map.
func (m Map[V]) rootOrEmpty() root[V] {
	if m.root == nil {
		return root[V]{}
	}
	return *m.root
}

// Len returns the number of items.
func (m Map[V]) Len() int { return m.rootOrEmpty().size }

// Get returns the value of a key, or the zero value.
func (m Map[V]) Get(key string) (value V) {
	if b, i, found := m.find(key); found {
		value = (*m.root.blocks[b])[i].value
	}
	return value
}

// find returns the block and the index at which a key is or would be.
func (m Map[V]) find(key string) (b, i int, found bool) {
	blocks := m.rootOrEmpty().blocks
	if len(blocks) == 0 {
		return 0, 0, false
	}
	b, found = slices.BinarySearchFunc(blocks, key, func(b *block[V], key string) int { return cmp.Compare((*b)[0].key, key) })
	if !found {
		b = max(b-1, 0)
	}
	i, found = slices.BinarySearchFunc(*blocks[b], key, func(e item[V], key string) int { return cmp.Compare(e.key, key) })
	return b, i, found
}

// All returns the items in the order of their keys.
func (m Map[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for c := m.cursor(); !c.done(); {
			if e := c.take(); !yield(e.key, e.value) {
				return
			}
		}
	}
}

// Keys returns the keys in order.
func (m Map[V]) Keys() iter.Seq[string] {
	return func(yield func(string) bool) { m.All()(func(key string, _ V) bool { return yield(key) }) }
}

// Values returns the values in the order of their keys.
func (m Map[V]) Values() iter.Seq[V] {
	return func(yield func(V) bool) { m.All()(func(_ string, v V) bool { return yield(v) }) }
}

// With returns a Map in which key has the value; m itself if it has it already.
func (m Map[V]) With(key string, value V) Map[V] {
	var none V
	b, i, found := m.find(key)
	switch {
	case value == none:
		return m.Without(key)
	case m.root == nil:
		return From(map[string]V{key: value})
	case !found:
		return m.replaceBlock(b, slices.Insert(slices.Clone(*m.root.blocks[b]), i, item[V]{key, value}))
	case (*m.root.blocks[b])[i].value == value:
		return m
	}
	changed := slices.Clone(*m.root.blocks[b])
	changed[i].value = value
	return m.replaceBlock(b, changed)
}

// Without returns a Map without the key; m itself if it does not have it.
func (m Map[V]) Without(key string) Map[V] {
	b, i, found := m.find(key)
	if !found {
		return m
	}
	return m.replaceBlock(b, slices.Delete(slices.Clone(*m.root.blocks[b]), i, i+1))
}

// replaceBlock returns a Map with a new block at an index. It splits one that is too long.
func (m Map[V]) replaceBlock(at int, b block[V]) Map[V] {
	old := m.root
	size := old.size - len(*old.blocks[at]) + len(b)
	if size == 0 {
		return Map[V]{}
	}
	parts := []*block[V]{&b}
	switch {
	case len(b) == 0:
		parts = nil
	case len(b) > maxBlock:
		left, right := b[:maxBlock/2:maxBlock/2], b[maxBlock/2:]
		parts = []*block[V]{&left, &right}
	}
	return Map[V]{&root[V]{blocks: slices.Concat(old.blocks[:at], parts, old.blocks[at+1:]), size: size}}
}

// ChangedSince returns the keys, in order, whose values in m and old differ, and those that only one of the two has.
// It skips what the two share.
func (m Map[V]) ChangedSince(old Map[V]) iter.Seq[string] {
	return func(yield func(string) bool) {
		before, now := old.cursor(), m.cursor()
		for !before.done() || !now.done() {
			if before.skipShared(&now) {
				continue
			}
			var was, is item[V] // zero: there is none
			order := before.compare(now)
			if order <= 0 {
				was = before.take()
			}
			if order >= 0 {
				is = now.take()
			}
			if was != is && !yield(cmp.Or(is.key, was.key)) {
				return
			}
		}
	}
}

// Equal reports whether two Maps have the same items.
func (m Map[V]) Equal(other Map[V]) bool {
	if m.Len() != other.Len() {
		return false
	}
	for range m.ChangedSince(other) {
		return false
	}
	return true
}

// OrSame returns other if it has the same items as m, otherwise m. So a Map stays == as long as nothing changes.
func (m Map[V]) OrSame(other Map[V]) Map[V] {
	if m.Equal(other) {
		return other
	}
	return m
}

// cursor is a position in a map.
type cursor[V comparable] struct {
	blocks []*block[V] // the current one and the following ones; empty at the end
	i      int         // in the current block
}

func (m Map[V]) cursor() cursor[V] { return cursor[V]{blocks: m.rootOrEmpty().blocks} }

func (c cursor[V]) done() bool { return len(c.blocks) == 0 }

// take returns the item at the cursor, and moves to the next one.
func (c *cursor[V]) take() item[V] {
	taken := (*c.blocks[0])[c.i]
	c.i++
	if c.i == len(*c.blocks[0]) {
		*c = cursor[V]{blocks: c.blocks[1:]}
	}
	return taken
}

// skipShared moves both cursors to the next block if they are in the same block. Since both follow the order of the
// keys, they are then at the same item.
func (c *cursor[V]) skipShared(other *cursor[V]) bool {
	if c.done() || other.done() || c.blocks[0] != other.blocks[0] {
		return false
	}
	*c, *other = cursor[V]{blocks: c.blocks[1:]}, cursor[V]{blocks: other.blocks[1:]}
	return true
}

// compare compares the keys of two cursors. The end comes after all keys.
func (c cursor[V]) compare(other cursor[V]) int {
	switch {
	case c.done():
		return 1
	case other.done():
		return -1
	}
	return cmp.Compare((*c.blocks[0])[c.i].key, (*other.blocks[0])[other.i].key)
}
