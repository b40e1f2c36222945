package xds

import (
	"iter"
	"maps"
)

// ledger says of every name of a type whether Envoy asked for it, and what Envoy
// was last given under it.
//
// An Envoy that is up to date has exactly what a collection says. Only where it
// differs from that is something kept, so that it costs next to nothing, however
// many resources it has. go-control-plane's stream servers keep two maps of all
// names for each Envoy; BenchmarkMemoryOfAnEnvoy shows the difference.
type clientState struct {
	// level is the collection Envoy is compared with; nil: an empty one.
	baseline *Collection
	// wildcard is true while Envoy asks for everything.
	wildcard bool
	// odd holds the entries that are not as level says. It is nil when there
	// are none: a map that was emptied keeps its memory.
	overrides map[string]nameState
	// dirty is how many of them are dirty.
	dirty int
}

// entry is what is known about a name. Zero: Envoy neither asked for it nor has
// it.
type nameState struct {
	// named is true when Envoy asked for it by name.
	named bool
	// has is true when Envoy was given it, acknowledged or not.
	sent bool
	// dirty is true while what Envoy has may not be what it is to have.
	dirty bool
	// version is what Envoy has; empty when it is to be sent the name again,
	// whatever it has.
	version string
	// resource is nil when it was not given on this stream.
	resource *Resource
}

// usual is the entry of a name of which nothing else is noted.
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
	l.dirty += count(e.dirty) - count(l.overrides[name].dirty)
	usual := l.defaultState(name)
	usual.resource = e.resource // equal versions are equal bytes
	if e != usual {
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

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// all gives the entries that are not zero, and perhaps some that are.
func (l *clientState) all() iter.Seq2[string, nameState] {
	return func(yield func(string, nameState) bool) {
		for name := range l.nameIterator(l.baseline) {
			if !yield(name, l.get(name)) {
				return
			}
		}
	}
}

// names gives the names of a collection, and all that something is noted of.
func (l *clientState) nameIterator(c *Collection) iter.Seq[string] {
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

// unknown returns how many names are noted that the collection does not have,
// and how many bytes they have. Those that it withholds are known.
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

// wants says whether Envoy asks for a name.
func (l *clientState) subscribed(name string) bool { return l.wildcard || l.get(name).named }

// ask notes whether Envoy asks for a name by itself.
func (l *clientState) setNamed(name string, named bool) {
	e := l.get(name)
	e.named = named
	l.put(name, e)
}

// give notes that Envoy is given a resource.
func (l *clientState) markSent(r *Resource) {
	e := l.get(r.Name())
	e.sent, e.dirty, e.version, e.resource = true, false, r.Version(), r
	l.put(r.Name(), e)
}

// take notes that Envoy has nothing under a name any more.
func (l *clientState) markRemoved(name string) { l.put(name, nameState{named: l.get(name).named}) }

// advance compares Envoy with a newer collection from now on, and marks what
// differs. It costs what has changed since the collection before.
func (l *clientState) rebase(to *Collection) {
	type change struct {
		name  string
		entry nameState
	}
	var changes []change
	note := func(name string) { changes = append(changes, change{name, l.get(name)}) }
	if l.baseline != nil {
		for _, name := range to.changedSince(l.baseline) {
			note(name)
		}
	} else {
		for name := range l.nameIterator(to) {
			note(name)
		}
	}
	l.baseline = to
	for _, c := range changes {
		c.entry.dirty = c.entry.sent || c.entry.named || l.wildcard
		l.put(c.name, c.entry)
	}
}

// setWildcard begins or ends to want everything. What is no longer wanted is
// forgotten, and everything has to be compared anew.
func (l *clientState) setWildcard(on bool) {
	if on == l.wildcard {
		return
	}
	entries := maps.Collect(l.all())
	*l = clientState{wildcard: on}
	for name, e := range entries {
		if on || e.named {
			l.put(name, e)
		}
	}
}
