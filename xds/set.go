package xds

import (
	"iter"
	"maps"
	"slices"
	"sync"
	"time"
	"weak"

	"github.com/usherproxy/usher/internal/ordered"
)

// Set has all resources for the Envoys of one instance and release. It is immutable and shared.
type Set struct {
	collections [NumTypes]*Collection
	restored    time.Time // see AsRestored
	earlier     Earlier   // see WithEarlier
	// ownEndpoints means that the mark is not for endpoints; see WithOwnEndpoints.
	ownEndpoints bool
}

// NewSet returns a set of collections by their Type. A nil collection means that the type's resources are not known
// yet: nothing is sent for it, not even an empty response. If a type has not changed, pass the previous set's
// collection, so that sessions can skip it.
func NewSet(collections [NumTypes]*Collection) *Set { return &Set{collections: collections} }

// AsRestored returns the set with a mark: it was made from what the source knew at that time, because the source does not
// answer now. It may be older than what an Envoy has from another server. So an Envoy that has listeners from an earlier
// stream keeps what it has, until there is a set without the mark. Zero stands for no mark.
func (s *Set) AsRestored(at time.Time) *Set {
	marked := *s
	marked.restored = at
	return &marked
}

// WithEarlier returns the set with clusters that its Envoys may have from earlier sets.
func (s *Set) WithEarlier(e Earlier) *Set {
	knowing := *s
	knowing.earlier = e
	return &knowing
}

// WithOwnEndpoints returns the restored set with endpoints that the source gives now: every Envoy gets those of its clusters.
func (s *Set) WithOwnEndpoints() *Set {
	marked := *s
	marked.ownEndpoints = true
	return &marked
}

// SameAs reports whether both sets have the same collections and marks.
func (s *Set) SameAs(other *Set) bool {
	return s.collections == other.collections && s.restored.Equal(other.restored) && s.ownEndpoints == other.ownEndpoints
}

// Restored returns the time of AsRestored; zero: the set is not restored.
func (s *Set) Restored() time.Time { return s.restored }

// Collection returns the resources of a type; nil if they are not known yet.
func (s *Set) Collection(t Type) *Collection { return s.collections[t] }

// Earlier returns the argument of WithEarlier.
func (s *Set) Earlier() Earlier { return s.earlier }

// hadBy returns what an Envoy has that accepted a full state of the type with this version; nil: not known.
func (s *Set) hadBy(t Type, version string) *Collection {
	switch c := s.collections[t]; {
	case c != nil && c.Version() == version:
		return c
	case t == Cluster:
		return s.earlier.Get(version)
	}
	return nil
}

// hasHeldBack reports whether a resource of the type is held back.
func (s *Set) hasHeldBack(t Type) bool {
	c := s.collections[t]
	return c != nil && len(c.heldBack) > 0
}

// Collection has all resources of one type. It is immutable and shared by sets. For Get, Len and All, nil is empty.
type Collection struct {
	resources ordered.Map[*Resource]
	heldBack  map[string]bool

	mu      sync.Mutex
	version string // see Version; empty: not needed yet
	// changed are the names that differ from changedFrom. A strong pointer would keep old collections alive.
	changedFrom weak.Pointer[Collection]
	changed     []string
}

// NewCollection returns a collection of resources by their names. A resource that is held back exists but cannot be
// built: an Envoy that has it keeps it, and another one does not get it. Do not modify the arguments afterwards.
func NewCollection(resources map[string]*Resource, heldBack []string) *Collection {
	return &Collection{resources: ordered.From(resources), heldBack: nameSet(heldBack)}
}

// Next returns c with other or more resources, without the removed ones, and with other names held back; c itself if
// nothing changes. It costs what changes.
func (c *Collection) Next(changed []*Resource, removed, heldBack []string) *Collection {
	next := &Collection{resources: c.resources, heldBack: nameSet(heldBack)}
	if len(changed)+len(removed) == 0 && maps.Equal(next.heldBack, c.heldBack) {
		return c
	}
	for _, r := range changed {
		next.resources = next.resources.With(r.Name(), r)
	}
	for _, name := range removed {
		next.resources = next.resources.Without(name)
	}
	return next
}

// exists reports whether there is a resource, which may be held back. Nil is an empty collection.
func (c *Collection) exists(name string) bool {
	return c.Get(name) != nil || c != nil && c.heldBack[name]
}

// items returns the resources; none for nil.
func (c *Collection) items() ordered.Map[*Resource] {
	if c == nil {
		return ordered.Map[*Resource]{}
	}
	return c.resources
}

// Get returns a resource, or nil.
func (c *Collection) Get(name string) *Resource { return c.items().Get(name) }

// Len is the number of resources.
func (c *Collection) Len() int { return c.items().Len() }

// All returns the resources by their names, in order.
func (c *Collection) All() iter.Seq2[string, *Resource] { return c.items().All() }

// HeldBack returns the names that are held back, in order.
func (c *Collection) HeldBack() []string { return slices.Sorted(maps.Keys(c.heldBack)) }

// Version is the hash of all names and versions, in hexadecimal: equal resources have equal ones, in every process.
func (c *Collection) Version() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.version == "" {
		list := make([]*Resource, 0, c.Len())
		for _, r := range c.All() {
			list = append(list, r)
		}
		c.version = versionOf(list)
	}
	return c.version
}

// Equal reports whether an Envoy would get the same from both.
func (c *Collection) Equal(other *Collection) bool {
	return c == other || c != nil && other != nil &&
		maps.Equal(c.heldBack, other.heldBack) && len(difference(other, c)) == 0
}

// changedSince returns the names that differ from old. All sessions that had old share the result.
func (c *Collection) changedSince(old *Collection) []string {
	if c == old {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if from := weak.Make(old); c.changedFrom != from {
		c.changedFrom, c.changed = from, difference(old, c)
	}
	return c.changed
}

// ChangedSince returns the names of the resources that are not in old, that differ, and that are only in old; nil is empty.
func (c *Collection) ChangedSince(old *Collection) (added, changed, removed []string) {
	if c == old || c == nil {
		return nil, nil, nil
	}
	if old == nil {
		old = &Collection{}
	}
	for _, name := range c.changedSince(old) {
		switch before, now := old.Get(name), c.Get(name); {
		case now == nil && before != nil && !c.heldBack[name]:
			removed = append(removed, name)
		case now != nil && before == nil:
			added = append(added, name)
		case now != before:
			changed = append(changed, name)
		}
	}
	return added, changed, removed
}

func difference(old, current *Collection) []string {
	names := released(old.heldBack, current.heldBack)
	for name := range current.resources.ChangedSince(old.resources) {
		before, now := old.Get(name), current.Get(name)
		if before == nil || now == nil || before.Version() != now.Version() {
			names = append(names, name)
		}
	}
	return names
}

// released returns the names that are no longer held back: only now it is known whether they still exist.
func released(before, now map[string]bool) []string {
	var names []string
	for name := range before {
		if !now[name] {
			names = append(names, name)
		}
	}
	return names
}

func nameSet(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, name := range names {
		set[name] = true
	}
	return set
}
