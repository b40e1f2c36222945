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
type ledger struct {
	// level is the collection Envoy is compared with; nil: an empty one.
	level *Collection
	// wildcard is true while Envoy asks for everything.
	wildcard bool
	// odd holds the entries that are not as level says. It is nil when there
	// are none: a map that was emptied keeps its memory.
	odd map[string]entry
	// dirty is how many of them are dirty.
	dirty int
}

// entry is what is known about a name. Zero: Envoy neither asked for it nor has
// it.
type entry struct {
	// named is true when Envoy asked for it by name.
	named bool
	// has is true when Envoy was given it, acknowledged or not.
	has bool
	// dirty is true while what Envoy has may not be what it is to have.
	dirty bool
	// version is what Envoy has; empty when it is to be sent the name again,
	// whatever it has.
	version string
	// resource is nil when it was not given on this stream.
	resource *Resource
}

// usual is the entry of a name of which nothing else is noted.
func (l *ledger) usual(name string) entry {
	r := l.level.Get(name)
	if r == nil {
		return entry{}
	}
	return entry{named: !l.wildcard, has: true, version: r.Version(), resource: r}
}

func (l *ledger) get(name string) entry {
	if e, ok := l.odd[name]; ok {
		return e
	}
	return l.usual(name)
}

func (l *ledger) put(name string, e entry) {
	l.dirty += count(e.dirty) - count(l.odd[name].dirty)
	usual := l.usual(name)
	usual.resource = e.resource // equal versions are equal bytes
	if e != usual {
		if l.odd == nil {
			l.odd = map[string]entry{}
		}
		l.odd[name] = e
		return
	}
	delete(l.odd, name)
	if len(l.odd) == 0 {
		l.odd = nil
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// all gives the entries that are not zero, and perhaps some that are.
func (l *ledger) all() iter.Seq2[string, entry] {
	return func(yield func(string, entry) bool) {
		for name := range l.names(l.level) {
			if !yield(name, l.get(name)) {
				return
			}
		}
	}
}

// names gives the names of a collection, and all that something is noted of.
func (l *ledger) names(c *Collection) iter.Seq[string] {
	return func(yield func(string) bool) {
		for name := range c.All() {
			if !yield(name) {
				return
			}
		}
		for name := range l.odd {
			if c.Get(name) == nil && !yield(name) {
				return
			}
		}
	}
}

// unknown returns how many names are noted that the collection does not have,
// and how many bytes they have. Those that it withholds are known.
func (l *ledger) unknown() (names, bytes int) {
	if len(l.odd) <= maxUnknownNames/10 {
		return 0, 0
	}
	for name := range l.odd {
		if l.level.Get(name) == nil && !l.level.withholds(name) {
			names++
			bytes += len(name)
		}
	}
	return names, bytes
}

// wants says whether Envoy asks for a name.
func (l *ledger) wants(name string) bool { return l.wildcard || l.get(name).named }

// ask notes whether Envoy asks for a name by itself.
func (l *ledger) ask(name string, named bool) {
	e := l.get(name)
	e.named = named
	l.put(name, e)
}

// give notes that Envoy is given a resource.
func (l *ledger) give(r *Resource) {
	e := l.get(r.Name())
	e.has, e.dirty, e.version, e.resource = true, false, r.Version(), r
	l.put(r.Name(), e)
}

// take notes that Envoy has nothing under a name any more.
func (l *ledger) take(name string) { l.put(name, entry{named: l.get(name).named}) }

// advance compares Envoy with a newer collection from now on, and marks what
// differs. It costs what has changed since the collection before.
func (l *ledger) advance(to *Collection) {
	type change struct {
		name  string
		entry entry
	}
	var changes []change
	note := func(name string) { changes = append(changes, change{name, l.get(name)}) }
	if l.level != nil {
		for _, name := range to.since(l.level) {
			note(name)
		}
	} else {
		for name := range l.names(to) {
			note(name)
		}
	}
	l.level = to
	for _, c := range changes {
		c.entry.dirty = c.entry.has || c.entry.named || l.wildcard
		l.put(c.name, c.entry)
	}
}

// setWildcard begins or ends to want everything. What is no longer wanted is
// forgotten, and everything has to be compared anew.
func (l *ledger) setWildcard(on bool) {
	if on == l.wildcard {
		return
	}
	entries := maps.Collect(l.all())
	*l = ledger{wildcard: on}
	for name, e := range entries {
		if on || e.named {
			l.put(name, e)
		}
	}
}
