package xds

import (
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/usherproxy/usher/internal/ordered"
)

// Set is everything one kind of Envoy is to have. It is immutable and shared.
type Set struct {
	collections [NumTypes]*Collection
}

// NewSet makes a set; the index is the Type. A collection that is nil says that
// the inputs of its type are not complete: nothing at all is sent for it, not
// even an empty answer.
//
// A type that did not change should be given with the same collection as in the
// set before: sessions then skip it without looking inside.
func NewSet(collections [NumTypes]*Collection) *Set {
	return &Set{collections: collections}
}

// Collection gives what the set holds of a type; nil if that is not known.
func (s *Set) Collection(t Type) *Collection { return s.collections[t] }

// withholds reports whether some resource of a type is withheld.
func (s *Set) hasHeldBack(t Type) bool {
	c := s.collections[t]
	return c != nil && len(c.heldBack) > 0
}

// collectionIDs numbers the collections of this process, from 1.
var collectionIDs atomic.Uint64

// Collection is all there is of one type. It is immutable and shared by sets.
type Collection struct {
	resources ordered.Map[*Resource]
	heldBack  map[string]struct{}
	id        uint64

	mu sync.Mutex
	// changed are the names that differ from the collection numbered
	// changedFrom. A number, not a pointer: collections must not keep their
	// predecessors alive.
	changedFrom uint64
	changed     []string
}

// NewCollection makes a collection of resources by their names. What is
// withheld exists but could not be built: an Envoy that has such a name keeps
// what it has, and one that does not gets nothing. Neither argument may be
// modified afterwards.
func NewCollection(resources map[string]*Resource, withheld []string) *Collection {
	return &Collection{resources: ordered.From(resources), heldBack: nameSet(withheld), id: collectionIDs.Add(1)}
}

// Next gives the collection that comes after c: with other or more resources,
// without the removed ones, and with other names withheld. It costs what has
// changed. If nothing has changed it is c itself.
func (c *Collection) Next(changed []*Resource, removed, withheld []string) *Collection {
	names := nameSet(withheld)
	if len(changed)+len(removed) == 0 && maps.Equal(names, c.heldBack) {
		return c
	}
	next := &Collection{
		resources: c.resources, heldBack: names, id: collectionIDs.Add(1),
		changedFrom: c.id, changed: onlyInFirst(c.heldBack, names),
	}
	for _, r := range changed {
		next.resources = next.resources.With(r.Name(), r)
		next.changed = append(next.changed, r.Name())
	}
	for _, name := range removed {
		next.resources = next.resources.Without(name)
		next.changed = append(next.changed, name)
	}
	return next
}

// withholds reports whether a name exists that could not be built. A nil
// collection is an empty one.
func (c *Collection) isHeldBack(name string) bool {
	if c == nil {
		return false
	}
	_, withheld := c.heldBack[name]
	return withheld
}

// Get gives the resource of a name, nil if there is none. A nil collection is an
// empty one.
func (c *Collection) Get(name string) *Resource {
	if c == nil {
		return nil
	}
	return c.resources.Get(name)
}

// Len is the number of resources.
func (c *Collection) Len() int { return c.resources.Len() }

// All gives the resources by their names, in order. A nil collection is an
// empty one.
func (c *Collection) All() iter.Seq2[string, *Resource] {
	if c == nil {
		c = &Collection{}
	}
	return c.resources.All()
}

// HeldBack lists the names that exist but could not be built, in order.
func (c *Collection) HeldBack() []string { return slices.Sorted(maps.Keys(c.heldBack)) }

// Equal says whether an Envoy would get the same from both.
func (c *Collection) Equal(other *Collection) bool {
	return c == other || c != nil && other != nil &&
		maps.Equal(c.heldBack, other.heldBack) && len(difference(other, c)) == 0
}

// since lists the names for which c says something else than old did. Sessions
// that have seen the same predecessor share one comparison, and those that have
// seen the one that c was made from need none.
func (c *Collection) changedSince(old *Collection) []string {
	if c == old {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changedFrom != old.id {
		c.changedFrom, c.changed = old.id, difference(old, c)
	}
	return c.changed
}

func difference(old, current *Collection) []string {
	// A name that is withheld no longer has to be looked at again: only now
	// is it known whether it is gone.
	names := onlyInFirst(old.heldBack, current.heldBack)
	for name := range current.resources.ChangedSince(old.resources) {
		before, now := old.Get(name), current.Get(name)
		if before == nil || now == nil || before.Version() != now.Version() {
			names = append(names, name)
		}
	}
	return names
}

// noLonger gives the names that were in one set and are not in the next.
func onlyInFirst(before, now map[string]struct{}) []string {
	var names []string
	for name := range before {
		if _, still := now[name]; !still {
			names = append(names, name)
		}
	}
	return names
}

func nameSet(names []string) map[string]struct{} {
	set := make(map[string]struct{}, len(names))
	for _, name := range names {
		set[name] = struct{}{}
	}
	return set
}
