package xds

import (
	"slices"
	"strings"
)

// topic is the part of a conversation that is about one type: what Envoy wants,
// what it has been given, and what is to be looked at again.
type typeState struct {
	typ Type
	// sotw is true for the state-of-the-world protocol.
	sotw bool

	clientState
	// started is true from the first request on.
	started bool
	// legacy is true while a request without names means everything.
	legacyWildcard bool
	// claims is the version a state-of-the-world Envoy said it has, in its
	// first request: what it was given on an earlier stream.
	versionInfo string
	// partial is true while the set may lack what Envoy has: some resource of the
	// type is withheld, or a listener, and with it what that leads to.
	incomplete bool
	// early are the names that have to be sent again when the first request
	// asks for them, whatever it says Envoy has.
	resendOnSubscribe map[string]struct{}

	// answered is true once anything was sent.
	responded bool
	// nonce is the one of the latest response; empty: there was none.
	lastNonce string
	// inflight is the response that awaits its ACK; at most one.
	inflight *response
	// rejected is true while the latest verdict was a NACK.
	nacked bool
	// paused is true while nothing is sent because Envoy refuses again and again.
	paused bool
}

// fullState says whether responses list everything, see Type.isFullState.
func (t *typeState) fullState() bool { return t.sotw && t.typ.isFullState() }

// tellsRemovals says whether Envoy learns that a resource is gone. It does where
// it has asked for all there are. Where it has asked for a name it does not, as
// with Consul: the resource that names it goes away instead.
func (t *typeState) sendsRemovals() bool {
	if t.sotw {
		return t.typ.isFullState()
	}
	return t.wildcard
}

// force has a name sent again if Envoy wants it now or later, even if it turns
// out to have the current version.
func (t *typeState) invalidate(name string) {
	if !t.started {
		if t.resendOnSubscribe == nil {
			t.resendOnSubscribe = map[string]struct{}{}
		}
		t.resendOnSubscribe[name] = struct{}{}
		return
	}
	e := t.get(name)
	if !e.sent && !t.subscribed(name) {
		return // it is sent once it is wanted
	}
	e.sent, e.dirty, e.version = true, true, ""
	t.put(name, e)
}

// forceChildren is force for what the given parents name.
func (t *typeState) invalidateChildren(parents []*Resource) {
	for _, p := range parents {
		for _, name := range p.children {
			t.invalidate(name)
		}
	}
}

// refresh marks what differs between the collection seen last and a newer one.
func (t *typeState) setCollection(current *Collection) {
	if !t.started || current == nil || current == t.baseline {
		return
	}
	first := t.baseline == nil
	t.rebase(current)
	if first {
		t.resume()
	}
}

// adopt recognises an Envoy that was given exactly this state on an earlier
// stream: it is sent nothing.
func (t *typeState) resume() {
	if !t.fullState() || t.responded || t.versionInfo == "" || t.incomplete {
		return
	}
	var wanted []*Resource
	for name, r := range t.baseline.All() {
		if t.subscribed(name) {
			wanted = append(wanted, r)
		}
	}
	sortByName(wanted)
	if versionOf(wanted) != t.versionInfo {
		return
	}
	for _, r := range wanted {
		t.markSent(r)
	}
	t.responded = true
}

// ready says whether a response may be sent at all.
func (t *typeState) canSend() bool {
	return t.started && t.baseline != nil && t.inflight == nil && !t.paused && !t.blockedByHeldBack()
}

// blocked is true while a full state would remove something by not naming it:
// what is withheld, or what a withheld listener leads to, Envoy may have been
// given on an earlier stream.
func (t *typeState) blockedByHeldBack() bool {
	return t.fullState() && !t.responded && t.versionInfo != "" && t.incomplete
}

// owesAnswer says whether Envoy is to get a response even if it is empty. The
// first request for all resources is always answered: Envoy's initialisation
// waits for it.
func (t *typeState) needsFirstResponse() bool { return !t.responded && t.wildcard }

// hasWork says whether there may be something to send, and nothing in flight.
func (t *typeState) hasWork() bool { return t.canSend() && (t.dirty > 0 || t.needsFirstResponse()) }

// due compares the names that are dirty with what Envoy has, and cleans those
// with nothing to do. Both results are sorted by name.
func (t *typeState) changes() (upserts []*Resource, removals []string) {
	if t.dirty == 0 {
		return nil, nil
	}
	for name, e := range t.overrides {
		if !e.dirty {
			continue
		}
		r := t.baseline.Get(name)
		_, withheld := t.baseline.heldBack[name]
		switch {
		case r != nil && t.subscribed(name) && e.version != r.Version():
			upserts = append(upserts, r)
		case r != nil || withheld || !e.sent:
			e.dirty = false
			t.put(name, e)
		case t.sendsRemovals():
			removals = append(removals, name)
		default:
			t.markRemoved(name)
		}
	}
	sortByName(upserts)
	slices.Sort(removals)
	return upserts, removals
}

// legsFirst leaves out what leads to clusters that Envoy is given only now: it
// would send requests there before they have any instances. What is left out
// stays dirty, and its turn is after the ACK, which tells that they are warm.
// A first full state has to name everything.
func (t *typeState) deferAggregates(upserts []*Resource) []*Resource {
	if t.fullState() && !t.responded || !slices.ContainsFunc(upserts, (*Resource).isAggregate) {
		return upserts
	}
	fresh := map[string]bool{}
	for _, r := range upserts {
		if !t.get(r.Name()).sent {
			fresh[r.Name()] = true
		}
	}
	return slices.DeleteFunc(upserts, func(r *Resource) bool {
		return slices.ContainsFunc(r.targets, func(leg string) bool { return fresh[leg] })
	})
}

// keepsWithheld says whether Envoy has something that cannot be built now, and
// so depends on what it was built with.
func (t *typeState) hasHeldBack() bool {
	if t.baseline == nil {
		return false
	}
	for name := range t.baseline.heldBack {
		if t.get(name).sent {
			return true
		}
	}
	return t.started && t.blockedByHeldBack()
}

// holding lists what Envoy was given on this stream and has, sorted by name.
func (t *typeState) sentResources() []*Resource {
	var list []*Resource
	for _, e := range t.all() {
		if e.sent && e.resource != nil {
			list = append(list, e.resource)
		}
	}
	sortByName(list)
	return list
}

func sortByName(list []*Resource) {
	slices.SortFunc(list, func(a, b *Resource) int { return strings.Compare(a.Name(), b.Name()) })
}
