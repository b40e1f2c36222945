package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
)

// typeState is the part of a streamState for one type: Envoy's subscription, what it was sent, and what may have
// changed since.
type typeState struct {
	typ  Type
	sotw bool // the protocol is the state of the world

	clientState
	started        bool   // there was a request
	legacyWildcard bool   // a request without names subscribes to all
	versionInfo    string // from an earlier stream, in the first request of a state-of-the-world Envoy
	reconnected    bool   // Envoy has resources from an earlier stream
	keeps          bool   // what Envoy has does not change for now: the set is restored
	// incomplete is true while the set may lack resources that Envoy has, because one of the type or a listener is
	// held back. With a listener, what it refers to may be missing.
	mayLack bool
	// resendOnSubscribe are names to send when the first request subscribes to them, even if Envoy has their version.
	resendOnSubscribe map[string]bool

	responded   bool      // something was sent
	lastNonce   string    // of the latest response
	awaitingACK *response // the latest response, until Envoy answers it
	refused     []refusal // in the order of the NACKs; nil: Envoy has accepted all that it has answered
	backingOff  bool      // nothing is sent after several NACKs
}

// response is a response. It awaits its ACK as soon as it is made: first among those that are pending in the
// streamState, then while the session writes it, then on its way to Envoy and back.
type response struct {
	typ   Type
	nonce string
	// resources are sorted by name. They are those that change or, in a full state, all that Envoy has afterwards.
	resources []*Resource
	// removals are the removed names. A full state is sent without them: it leaves their resources out.
	removals []string
	changed  []*Resource // those of the resources that Envoy was not sent yet in this version, or is to get again
	added    []string    // those of the resources that Envoy does not have in any version
}

// wildcardName subscribes to all resources of a type.
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#how-the-client-specifies-what-resources-to-return
const wildcardName = "*"

// handleRequest updates the state. It returns the response that the request answers, or nil.
func (t *typeState) handleRequest(r request) (answered *response) {
	if t.sotw && t.lastNonce != "" && r.nonce != t.lastNonce {
		return nil // the answer to the latest response will repeat it all
	}
	if t.awaitingACK != nil && r.nonce == t.awaitingACK.nonce {
		answered, t.awaitingACK = t.awaitingACK, nil
		t.updateRefused(answered, r.errorDetail != nil, r.errorDetail.GetMessage())
	}
	first := !t.started
	if first {
		t.start(r)
	}
	t.legacyWildcard = t.legacyWildcard && len(r.subscribe) == 0
	if t.sotw {
		r.subscribe, r.unsubscribe = t.compareNames(r.subscribe)
	}
	t.changeSubscription(r, first)
	return answered
}

// start takes over what Envoy has from an earlier stream, except for resendOnSubscribe. For listeners and clusters,
// no names subscribe to all.
func (t *typeState) start(r request) {
	t.started, t.versionInfo = true, r.versionInfo
	t.reconnected = r.versionInfo != "" || len(r.initialVersions) > 0
	t.legacyWildcard = t.typ.isFullState()
	t.setWildcard(t.legacyWildcard && len(r.subscribe) == 0)
	for name, version := range r.initialVersions {
		t.put(name, nameState{sent: true, version: version})
	}
	if t.sotw && t.reconnected && !t.typ.isFullState() {
		for _, name := range r.subscribe {
			if name != wildcardName {
				t.put(name, nameState{sent: true, version: unknownVersion})
			}
		}
	}
	for name := range t.resendOnSubscribe {
		t.put(name, nameState{})
	}
	t.resendOnSubscribe = nil
}

// unknownVersion is the version of what a state-of-the-world Envoy may have from an earlier stream. It is no resource's.
const unknownVersion = "unknown"

// compareNames returns how a state-of-the-world request, which lists all names, changes the subscription. It changes
// the wildcard itself.
func (t *typeState) compareNames(names []string) (subscribe, unsubscribe []string) {
	if t.legacyWildcard {
		return nil, nil
	}
	wanted := nameSet(names)
	t.setWildcard(wanted[wildcardName])
	delete(wanted, wildcardName)
	for name := range t.names(t.baseline) {
		if !wanted[name] && t.get(name).named {
			unsubscribe = append(unsubscribe, name)
		}
	}
	for name := range wanted {
		if !t.get(name).named {
			subscribe = append(subscribe, name)
		}
	}
	return subscribe, unsubscribe
}

// changeSubscription adds and removes names. In the delta protocol, a name that is subscribed to again is sent
// again, and one that is unsubscribed from under a wildcard, too.
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#unsubscribing-from-resources
func (t *typeState) changeSubscription(r request, first bool) {
	for _, name := range r.subscribe {
		if name == wildcardName {
			t.setWildcard(true)
			continue
		}
		n := t.get(name)
		n.named, n.dirty = true, n.dirty || t.sotw
		t.put(name, n)
		if !t.sotw && !first {
			t.invalidate(name)
		}
	}
	for _, name := range r.unsubscribe {
		switch {
		case name == wildcardName:
			t.setWildcard(t.legacyWildcard)
		case !t.wildcard:
			t.put(name, nameState{})
		default:
			n := t.get(name)
			n.named = false
			t.put(name, n)
			if !t.sotw {
				t.invalidate(name)
			}
		}
	}
}

// invalidate makes a name be sent again if Envoy subscribes to it now or later, even if it has the current version.
func (t *typeState) invalidate(name string) {
	if !t.started {
		if t.resendOnSubscribe == nil {
			t.resendOnSubscribe = map[string]bool{}
		}
		t.resendOnSubscribe[name] = true
		return
	}
	n := t.get(name)
	if !n.sent && !t.subscribed(name) {
		return // a later subscription sends it
	}
	n.sent, n.dirty, n.version = true, true, ""
	t.put(name, n)
}

// setCollection marks what differs between the previous collection and that of a new set. If it is known what Envoy has from
// an earlier stream, that is the previous one, as if it was sent on this stream.
func (t *typeState) setCollection(s *Set) {
	current := s.collections[t.typ]
	if !t.started || current == nil || current == t.baseline {
		return
	}
	if !t.responded && t.fullState() && t.wildcard && t.versionInfo != "" {
		if had := s.hadBy(t.typ, t.versionInfo); had != nil {
			t.clientState, t.responded = clientState{baseline: had, wildcard: true}, true
		}
	}
	t.rebase(current)
}

// fullState reports whether a response lists all resources, see Type.isFullState.
func (t *typeState) fullState() bool { return t.sotw && t.typ.isFullState() }

// canSend reports whether a response may be sent.
func (t *typeState) canSend() bool {
	return t.started && t.baseline != nil && t.awaitingACK == nil && !t.backingOff &&
		(!t.keeps || !t.fullState()) && !t.wouldRemoveHeldBack()
}

// blocked reports whether a full state would remove something that is held back, or that a held-back listener refers
// to, because it does not list it: Envoy may have been sent it on an earlier stream.
func (t *typeState) wouldRemoveHeldBack() bool {
	return t.fullState() && !t.responded && t.versionInfo != "" && t.mayLack
}

// needsFirstResponse reports whether Envoy gets a response even if it is empty. Envoy's initialization waits for the
// first response to a wildcard.
func (t *typeState) needsFirstResponse() bool { return !t.responded && t.wildcard }

// hasChanges reports whether there may be something to send, and nothing in flight.
func (t *typeState) hasChanges() bool {
	if t.keeps && t.canSend() {
		upserts, _ := t.allowedChanges()
		return len(upserts) > 0
	}
	return t.canSend() && (t.dirty > 0 || t.needsFirstResponse())
}

// allowedChanges returns the changes without those of what Envoy keeps.
func (t *typeState) allowedChanges() (upserts []*Resource, removals []string) {
	upserts, removals = t.changes()
	if !t.keeps {
		return upserts, removals
	}
	return slices.DeleteFunc(upserts, func(r *Resource) bool { return t.withholds(r.Name()) }), nil
}

// withholds reports whether Envoy keeps what it has of a name. It has nothing if it subscribes to the name and has no version.
func (t *typeState) withholds(name string) bool {
	n := t.get(name)
	return t.keeps && (!n.named || n.version != "" || t.baseline.Get(name) == nil)
}

// keepsOld reports whether something differs that Envoy keeps.
func (t *typeState) keepsOld() bool {
	if !t.keeps || t.dirty == 0 {
		return false
	}
	for name, n := range t.overrides {
		if n.dirty && t.withholds(name) {
			return true
		}
	}
	return false
}

// changes returns how what Envoy has differs from what it is to have, sorted by name. Where nothing is to be sent, it
// clears dirty. Removals are for a wildcard. A name that Envoy subscribes to itself is not removed, as in Consul: the
// resource that refers to the name changes or is removed instead. What Envoy keeps stays dirty.
func (t *typeState) changes() (upserts []*Resource, removals []string) {
	if t.dirty == 0 {
		return nil, nil
	}
	for name, n := range t.overrides {
		if !n.dirty {
			continue
		}
		r := t.baseline.Get(name)
		switch {
		case r != nil && t.subscribed(name) && n.version != r.Version():
			upserts = append(upserts, r)
		case t.baseline.exists(name) || !n.sent:
			n.dirty = false
			t.put(name, n)
		case t.keeps:
		case t.fullState() || !t.sotw && t.wildcard:
			removals = append(removals, name)
		default:
			t.markRemoved(name)
		}
	}
	sortByName(upserts)
	slices.Sort(removals)
	return upserts, removals
}

// deferAggregates leaves out aggregates of clusters that Envoy is sent only now: Envoy would send requests there
// before they have any endpoints. They stay dirty, and follow after the ACK of these clusters. A first full state
// has to list all.
func (t *typeState) deferAggregates(upserts []*Resource) []*Resource {
	if t.fullState() && !t.responded || !slices.ContainsFunc(upserts, func(r *Resource) bool { return len(r.members) > 0 }) {
		return upserts
	}
	added := map[string]bool{}
	for _, r := range upserts {
		added[r.Name()] = !t.get(r.Name()).sent
	}
	return slices.DeleteFunc(upserts, func(r *Resource) bool {
		return slices.ContainsFunc(r.members, func(name string) bool { return added[name] })
	})
}

// The most names without a resource to which an Envoy may subscribe, or that it may say it has, per type.
const (
	maxUnknownNames     = 10_000
	maxUnknownNameBytes = 1 << 20
	// Until the set is known, no name is, and a restored one may lack many.
	maxUncheckedNames     = maxRequestNames
	maxUncheckedNameBytes = 8 << 20
)

// checkNameLimits returns an error if Envoy uses too many names without a resource. One that is held back counts as
// known. Call it after push, which looks for the resources.
func (t *typeState) checkNameLimits() error {
	if len(t.overrides) <= maxUnknownNames/10 {
		return nil
	}
	maxNames, maxBytes := maxUnknownNames, maxUnknownNameBytes
	if t.baseline == nil || t.keeps {
		maxNames, maxBytes = maxUncheckedNames, maxUncheckedNameBytes
	}
	var names, bytes int
	for name := range t.overrides {
		if !t.baseline.exists(name) {
			names, bytes = names+1, bytes+len(name)
		}
	}
	if names > maxNames || bytes > maxBytes {
		return fmt.Errorf("envoy asks for %d resources of type %s that do not exist (%d bytes of names); the limit is %d (%d bytes); check its bootstrap, and which program uses this token", names, t.typ, bytes, maxNames, maxBytes)
	}
	return nil
}

// hasHeldBack reports whether Envoy has a resource that is held back, and so needs what the resource refers to.
func (t *typeState) envoyHasHeldBack() bool {
	if t.baseline == nil {
		return false
	}
	for name := range t.baseline.heldBack {
		if t.get(name).sent {
			return true
		}
	}
	return t.started && t.wouldRemoveHeldBack()
}

// lacks returns the names that are held back and that Envoy does not have, in order.
func (t *typeState) lacks() []string {
	if !t.started || t.baseline == nil || len(t.baseline.heldBack) == 0 || t.wouldRemoveHeldBack() {
		return nil
	}
	return slices.DeleteFunc(t.baseline.HeldBack(), func(name string) bool { return t.get(name).sent })
}

// newResponse returns a response, and marks its changes as sent.
func (t *typeState) newResponse(nonce string, upserts []*Resource, removals []string) *response {
	r := &response{typ: t.typ, nonce: nonce, resources: upserts, changed: upserts, removals: removals}
	for _, u := range upserts {
		if !t.get(u.Name()).sent && t.versionInfo == "" {
			r.added = append(r.added, u.Name())
		}
		t.markSent(u)
	}
	for _, name := range removals {
		t.markRemoved(name)
	}
	if t.fullState() {
		r.resources = t.sentResources()
	}
	t.responded, t.lastNonce, t.awaitingACK = true, nonce, r
	return r
}

// sentResources returns what Envoy has, as far as it was sent on this stream or is known from an earlier one, sorted by name.
func (t *typeState) sentResources() []*Resource {
	var list []*Resource
	for name := range t.names(t.baseline) {
		if r := t.get(name).resource; r != nil {
			list = append(list, r)
		}
	}
	sortByName(list)
	return list
}

// versionOf returns the hash of names and versions.
func versionOf(list []*Resource) string {
	h := sha256.New()
	for _, r := range list {
		_, _ = io.WriteString(h, r.Name()+"\x00"+r.Version()+"\x00")
	}
	return hex.EncodeToString(h.Sum(nil))
}

// MoreNames stands for further names at the end of FirstNames.
const MoreNames = "..."

// FirstNames returns the first few of the names, which are enough for a message.
func FirstNames(names []string) []string {
	const most = 10
	if len(names) <= most {
		return names
	}
	return append(slices.Clone(names[:most]), MoreNames)
}

func sortByName(list []*Resource) {
	slices.SortFunc(list, func(a, b *Resource) int { return strings.Compare(a.Name(), b.Name()) })
}
