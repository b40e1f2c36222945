package xds

import (
	"maps"
	"slices"
	"strings"

	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
)

// topic is the part of a conversation that is about one type: what Envoy wants,
// what it has been given, and what is to be looked at again.
type topic struct {
	typ Type
	// sotw is true for the state-of-the-world protocol.
	sotw bool

	// sub is what Envoy wants. It may be read only while the topic is open:
	// between two requests the stream server modifies it.
	sub     cache.Subscription
	open    bool
	deliver func(*response)
	// started is true from the first request on.
	started bool
	// claims is the version a state-of-the-world Envoy said it has, in its
	// first request: what it was given on an earlier stream.
	claims string

	// has is what Envoy was last given, acknowledged or not. A rejected
	// resource is not offered again until it changes.
	has map[string]given
	// dirty are the names for which has may differ from what is wanted.
	dirty map[string]struct{}
	// seen is the collection up to which dirty is complete; nil: none.
	seen *Collection

	// answered is true once anything was sent.
	answered bool
	// inflight is the response that awaits its ACK; at most one.
	inflight *response
	// rejected is true while the latest verdict was a NACK.
	rejected bool
}

// given is what Envoy has under a name.
type given struct {
	// version is empty when Envoy has to be sent the name again, whatever
	// it has.
	version string
	// resource is nil when it was not given on this stream.
	resource *Resource
}

// fullState says whether responses list everything, see Type.isFullState.
func (t *topic) fullState() bool { return t.sotw && t.typ.isFullState() }

// wants says whether Envoy subscribes to a name.
func (t *topic) wants(name string) bool {
	if t.sub.IsWildcard() {
		return true
	}
	_, ok := t.sub.SubscribedResources()[name]
	return ok
}

// tellsRemovals says whether Envoy learns that a resource is gone. It does where
// it has asked for all there are. Where it has asked for a name it does not, as
// with Consul: the resource that names it goes away instead.
func (t *topic) tellsRemovals() bool {
	if t.sotw {
		return t.typ.isFullState()
	}
	return t.sub.IsWildcard()
}

// force has a name sent again if Envoy wants it now or later, even if it turns
// out to have the current version.
func (t *topic) force(name string) {
	t.has[name] = given{resource: t.has[name].resource}
	t.dirty[name] = struct{}{}
}

// forceChildren is force for what the given parents name.
func (t *topic) forceChildren(parents []*Resource) {
	for _, p := range parents {
		for _, name := range p.children {
			t.force(name)
		}
	}
}

// forget drops what is known about a name Envoy no longer wants.
func (t *topic) forget(name string) {
	delete(t.has, name)
	delete(t.dirty, name)
}

// touch marks names to be looked at.
func (t *topic) touch(names []string) {
	for _, name := range names {
		t.dirty[name] = struct{}{}
	}
}

// refresh marks what differs between the collection seen last and a newer one.
func (t *topic) refresh(current *Collection) {
	if !t.open || current == nil {
		return
	}
	if t.seen != nil {
		t.touch(current.since(t.seen))
		t.seen = current
		return
	}
	t.seen = current
	if t.adopt() {
		return
	}
	for name := range t.has {
		t.dirty[name] = struct{}{}
	}
	if t.sub.IsWildcard() {
		t.touch(slices.Collect(maps.Keys(current.resources)))
		return
	}
	t.touch(slices.Collect(maps.Keys(t.sub.SubscribedResources())))
}

// adopt recognises an Envoy that was given exactly this state on an earlier
// stream: it is sent nothing.
func (t *topic) adopt() bool {
	if !t.fullState() || t.answered || t.claims == "" || len(t.seen.withheld) > 0 {
		return false
	}
	state := map[string]given{}
	for name, r := range t.seen.resources {
		if t.wants(name) {
			state[name] = given{version: r.Version(), resource: r}
		}
	}
	if versionOf(resourcesOf(state)) != t.claims {
		return false
	}
	t.has, t.answered = state, true
	return true
}

// ready says whether a response may be sent at all.
func (t *topic) ready() bool {
	return t.open && t.seen != nil && t.inflight == nil && !t.blocked()
}

// blocked is true while a full state would remove something by not naming it:
// a withheld resource that Envoy may have been given on an earlier stream.
func (t *topic) blocked() bool {
	return t.fullState() && !t.answered && t.claims != "" && len(t.seen.withheld) > 0
}

// owesAnswer says whether Envoy is to get a response even if it is empty. The
// first request for all resources is always answered: Envoy's initialisation
// waits for it.
func (t *topic) owesAnswer() bool { return !t.answered && t.sub.IsWildcard() }

// hasWork says whether there may be something to send, and nothing in flight.
func (t *topic) hasWork() bool { return t.ready() && (len(t.dirty) > 0 || t.owesAnswer()) }

// due compares the names that are dirty with what Envoy has, and cleans those
// with nothing to do. Both results are sorted by name.
func (t *topic) due() (upserts []*Resource, removals []string) {
	for name := range t.dirty {
		before, had := t.has[name]
		r, exists := t.seen.resources[name]
		_, withheld := t.seen.withheld[name]
		switch {
		case exists && t.wants(name) && before.version != r.Version():
			upserts = append(upserts, r)
		case exists || withheld || !had:
			delete(t.dirty, name)
		case t.tellsRemovals():
			removals = append(removals, name)
		default:
			t.forget(name)
		}
	}
	slices.SortFunc(upserts, func(a, b *Resource) int { return strings.Compare(a.Name(), b.Name()) })
	slices.Sort(removals)
	return upserts, removals
}

// legsFirst leaves out what leads to clusters that Envoy is given only now: it
// would send requests there before they have any instances. What is left out
// stays dirty, and its turn is after the ACK, which tells that they are warm.
// A first full state has to name everything.
func (t *topic) legsFirst(upserts []*Resource) []*Resource {
	if t.fullState() && !t.answered {
		return upserts
	}
	fresh := map[string]bool{}
	for _, r := range upserts {
		if _, had := t.has[r.Name()]; !had {
			fresh[r.Name()] = true
		}
	}
	return slices.DeleteFunc(upserts, func(r *Resource) bool {
		return slices.ContainsFunc(r.legs, func(leg string) bool { return fresh[leg] })
	})
}

// keepsWithheld says whether Envoy has something that cannot be built now, and
// so depends on what it was built with.
func (t *topic) keepsWithheld() bool {
	if t.seen == nil {
		return false
	}
	for name := range t.seen.withheld {
		if _, ok := t.has[name]; ok {
			return true
		}
	}
	return t.open && t.blocked()
}
