package xds

import (
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
)

// Collection is what is known of one type. Neither the map nor the slice may be
// modified once a Set has it.
type Collection struct {
	// Known is false while the inputs of the type are not complete: then
	// nothing at all is sent for it, not even an empty answer.
	Known bool
	// Resources by name.
	Resources map[string]*Resource
	// Withheld are names that exist but could not be built. An Envoy that
	// has one keeps what it has; an Envoy that does not gets nothing.
	Withheld []string
}

// Set is everything one kind of Envoy is to have. It is immutable and shared.
//
// A type that did not change since the previous Set should be given with the
// same Resources map: sessions then skip it without looking inside.
type Set struct {
	collections [NumTypes]*collection
}

// NewSet makes a set; the index is the Type.
func NewSet(collections [NumTypes]Collection) *Set {
	s := &Set{}
	for t, c := range collections {
		s.collections[t] = newCollection(c)
	}
	return s
}

// Collection gives what the set holds of a type.
func (s *Set) Collection(t Type) Collection { return s.collections[t].Collection }

// collectionIDs numbers the collections of this process, from 1.
var collectionIDs atomic.Uint64

// collection adds to a Collection what sessions share when they compare it with
// its predecessor.
type collection struct {
	Collection
	withheld map[string]struct{}
	id       uint64

	mu sync.Mutex
	// changed are the names that differ from the collection numbered
	// changedFrom. A number, not a pointer: sets must not keep their
	// predecessors alive.
	changedFrom uint64
	changed     []string
}

func newCollection(c Collection) *collection {
	withheld := make(map[string]struct{}, len(c.Withheld))
	for _, name := range c.Withheld {
		withheld[name] = struct{}{}
	}
	return &collection{Collection: c, withheld: withheld, id: collectionIDs.Add(1)}
}

// since lists the names for which c says something else than old did. Sessions
// that have seen the same predecessor share one comparison.
func (c *collection) since(old *collection) []string {
	if c == old || c.equals(old) {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changedFrom != old.id {
		c.changedFrom, c.changed = old.id, difference(old, c)
	}
	return c.changed
}

// equals compares identities only, so it is cheap; false says nothing.
func (c *collection) equals(old *collection) bool {
	return reflect.ValueOf(c.Resources).Pointer() == reflect.ValueOf(old.Resources).Pointer() &&
		slices.Equal(c.Withheld, old.Withheld)
}

func difference(old, current *collection) []string {
	var names []string
	for name, r := range current.Resources {
		if before := old.Resources[name]; before != r && (before == nil || before.Version() != r.Version()) {
			names = append(names, name)
		}
	}
	for name := range old.Resources {
		if _, ok := current.Resources[name]; !ok {
			names = append(names, name)
		}
	}
	// A name that is withheld no longer has to be looked at again: only now
	// is it known whether it is gone.
	for name := range old.withheld {
		if _, ok := current.withheld[name]; !ok {
			names = append(names, name)
		}
	}
	return names
}
