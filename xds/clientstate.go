package xds

import (
	"iter"
	"slices"
)

// clientState is, for every name of a type, whether Envoy subscribes to it and what Envoy was sent.
//
// It stores only how that differs from a collection, which is nothing for an Envoy that is up to date. So it takes
// next to no memory, however many resources Envoy has. go-control-plane's stream servers keep two maps with all
// names for each Envoy; BenchmarkMemoryOfAnEnvoy shows the difference.
type clientState struct {
	// baseline is the collection to compare with. Nil is an empty one.
	baseline *Collection
	// wildcard is true while Envoy subscribes to all resources.
	wildcard bool
	// overrides are the states that are not the default. It is nil if there are none, because an empty map keeps its
	// memory.
	overrides map[string]nameState
	// dirty is how many of them are dirty.
	dirty int
}

// nameState is the state of a name. The zero value means that Envoy does not subscribe to the name and does not have
// it.
type nameState struct {
	// named is true if Envoy subscribes to the name itself.
	named bool
	// sent is true if Envoy was sent the resource, whether it has acknowledged it or not.
	sent bool
	// dirty is true while what Envoy has may differ from what it is to have.
	dirty bool
	// version is what Envoy has. If it is empty, the resource is sent in any case.
	version string
	// resource is nil if it was not sent on this stream.
	resource *Resource
}

// defaultState is the state of a name without an override: Envoy has what the baseline has.
func (l *clientState) defaultState(name string) nameState {
	r := l.baseline.Get(name)
	if r == nil {
		return nameState{}
	}
	return nameState{named: !l.wildcard, sent: true, version: r.Version(), resource: r}
}

func (l *clientState) get(name string) nameState {
	if e, ok := l.overrides[name]; ok {
		return e
	}
	return l.defaultState(name)
}

func (l *clientState) put(name string, e nameState) {
	if l.overrides[name].dirty {
		l.dirty--
	}
	if e.dirty {
		l.dirty++
	}
	unchanged := l.defaultState(name)
	unchanged.resource = e.resource // equal versions are equal bytes
	if e != unchanged {
		if l.overrides == nil {
			l.overrides = map[string]nameState{}
		}
		l.overrides[name] = e
		return
	}
	delete(l.overrides, name)
	if len(l.overrides) == 0 {
		l.overrides = nil
	}
}

// names returns the names of a collection and of all overrides.
func (l *clientState) names(c *Collection) iter.Seq[string] {
	return func(yield func(string) bool) {
		for name := range c.All() {
			if !yield(name) {
				return
			}
		}
		for name := range l.overrides {
			if c.Get(name) == nil && !yield(name) {
				return
			}
		}
	}
}

// unknownNames returns the number of overrides without a resource, and the bytes of their names. A resource that is
// held back counts as known.
func (l *clientState) unknownNames() (names, bytes int) {
	if len(l.overrides) <= maxUnknownNames/10 {
		return 0, 0
	}
	for name := range l.overrides {
		if l.baseline.Get(name) == nil && !l.baseline.isHeldBack(name) {
			names++
			bytes += len(name)
		}
	}
	return names, bytes
}

// subscribed reports whether Envoy subscribes to a name.
func (l *clientState) subscribed(name string) bool { return l.wildcard || l.get(name).named }

func (l *clientState) markSent(r *Resource) {
	l.put(r.Name(), nameState{named: l.get(r.Name()).named, sent: true, version: r.Version(), resource: r})
}

func (l *clientState) markRemoved(name string) {
	l.put(name, nameState{named: l.get(name).named})
}

// rebase replaces the baseline and marks the names that differ as dirty. It costs what has changed.
func (l *clientState) rebase(to *Collection) {
	var changed []string
	if l.baseline != nil {
		changed = to.changedSince(l.baseline)
	} else {
		changed = slices.Collect(l.names(to))
	}
	states := make([]nameState, len(changed))
	for i, name := range changed {
		states[i] = l.get(name)
	}
	l.baseline = to
	for i, name := range changed {
		states[i].dirty = states[i].sent || states[i].named || l.wildcard
		l.put(name, states[i])
	}
}

// setWildcard subscribes to all resources, or no longer. Without a wildcard, names that Envoy does not subscribe to
// are forgotten. Everything is compared again.
func (l *clientState) setWildcard(on bool) {
	if on == l.wildcard {
		return
	}
	before := *l
	*l = clientState{wildcard: on}
	for name := range before.names(before.baseline) {
		if e := before.get(name); on || e.named {
			l.put(name, e)
		}
	}
}
