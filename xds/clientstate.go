package xds

import (
	"iter"
	"slices"
)

// clientState is, for every name of a type, whether Envoy subscribes to it and what Envoy was sent.
//
// It stores only how that differs from a collection, which is nothing for an Envoy that is up to date. So it takes
// next to no memory, however many resources Envoy has; see BenchmarkMemoryOfAnEnvoy.
type clientState struct {
	baseline *Collection // to compare with; nil is an empty one
	wildcard bool        // Envoy subscribes to all resources
	// overrides are the states that are not the default; nil if there are none, because an empty map keeps its memory.
	overrides map[string]nameState
	dirty     int // how many of them are dirty
}

// nameState is the state of a name. Zero: Envoy does not subscribe to it and does not have it.
type nameState struct {
	named    bool      // Envoy subscribes to the name itself
	sent     bool      // Envoy was sent the resource, acknowledged or not, or invalidate says so
	dirty    bool      // what Envoy has may differ from what it is to have
	version  string    // what Envoy has; if it is empty, the resource is sent in any case
	resource *Resource // nil: it was not sent on this stream, and Envoy's earlier full state is not known
}

// defaultState is the state of a name without an override: Envoy has what the baseline has.
func (s *clientState) defaultState(name string) nameState {
	r := s.baseline.Get(name)
	if r == nil {
		return nameState{}
	}
	return nameState{named: !s.wildcard, sent: true, version: r.Version(), resource: r}
}

func (s *clientState) get(name string) nameState {
	if n, ok := s.overrides[name]; ok {
		return n
	}
	return s.defaultState(name)
}

func (s *clientState) put(name string, n nameState) {
	if s.overrides[name].dirty {
		s.dirty--
	}
	if n.dirty {
		s.dirty++
	}
	unchanged := s.defaultState(name)
	unchanged.resource = n.resource // equal versions are equal bytes
	if n != unchanged {
		if s.overrides == nil {
			s.overrides = map[string]nameState{}
		}
		s.overrides[name] = n
		return
	}
	delete(s.overrides, name)
	if len(s.overrides) == 0 {
		s.overrides = nil
	}
}

// names returns the names of a collection and of all overrides.
func (s *clientState) names(c *Collection) iter.Seq[string] {
	return func(yield func(string) bool) {
		for name := range c.All() {
			if !yield(name) {
				return
			}
		}
		for name := range s.overrides {
			if c.Get(name) == nil && !yield(name) {
				return
			}
		}
	}
}

// subscribed reports whether Envoy subscribes to a name.
func (s *clientState) subscribed(name string) bool { return s.wildcard || s.get(name).named }

func (s *clientState) markSent(r *Resource) {
	s.put(r.Name(), nameState{named: s.get(r.Name()).named, sent: true, version: r.Version(), resource: r})
}

func (s *clientState) markRemoved(name string) { s.put(name, nameState{named: s.get(name).named}) }

// rebase replaces the baseline and marks the names that differ as dirty. It costs what has changed.
func (s *clientState) rebase(to *Collection) {
	var changed []string
	if s.baseline != nil {
		changed = to.changedSince(s.baseline)
	} else {
		changed = slices.Collect(s.names(to))
	}
	states := make([]nameState, len(changed))
	for i, name := range changed {
		states[i] = s.get(name)
	}
	s.baseline = to
	for i, name := range changed {
		states[i].dirty = states[i].sent || states[i].named || s.wildcard
		s.put(name, states[i])
	}
}

// setWildcard subscribes to all resources, or no longer. Without a wildcard, names that Envoy does not subscribe to
// are forgotten. Everything is compared again.
func (s *clientState) setWildcard(on bool) {
	if on == s.wildcard {
		return
	}
	before := *s
	*s = clientState{wildcard: on}
	for name := range before.names(before.baseline) {
		if n := before.get(name); on || n.named {
			s.put(name, n)
		}
	}
}
