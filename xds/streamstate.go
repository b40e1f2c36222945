package xds

import (
	"crypto/rand"
	"slices"
	"strconv"
)

// streamState decides what is sent to one Envoy, and when. It has no goroutines and no locks; its owner calls one
// method at a time.
//
// The rules, most of them Consul's:
//
//   - Each type has one response at a time, until Envoy has answered it.
//   - Secrets, clusters and endpoints are sent as soon as they change. They never wait for each other: Envoy
//     acknowledges a cluster only when the cluster's endpoints and secrets have arrived.
//   - An aggregate cluster waits for the ACK of its new members: they have no endpoints before.
//   - Listeners and routes wait for the ACK of those, and until Envoy subscribes to the endpoints of new clusters.
//   - Clusters, endpoints, secrets and token buckets are removed last, when no listener and no route may need them.
//   - A cluster's endpoints are sent again after the cluster, and a listener's routes after the listener: Envoy
//     waits for them again.
//   - A rejected update is not sent again until it changes.
//   - A restored set changes nothing that an Envoy has that serves. It gets the names that it subscribes to and lacks.
type streamState struct {
	set   *Set // nil: not known yet
	types [NumTypes]typeState
	// awaitingEDS are the load assignments whose clusters Envoy was sent, and to which it has not subscribed yet.
	awaitingEDS   []string
	pending       []*response // the next ones, in order
	responseCount uint64
	ackTimedOut   bool // during a push that does not wait
}

func newStreamState(sotw bool) *streamState {
	s := &streamState{}
	for t := range s.types {
		s.types[t] = typeState{typ: Type(t), sotw: sotw}
	}
	return s
}

// handleRequest updates the state of a type. It returns the response that the request answers, or nil.
func (s *streamState) handleRequest(t Type, r request) (answered *response) {
	answered = s.types[t].handleRequest(r)
	if t == Cluster && answered != nil && r.errorDetail != nil {
		s.awaitingEDS = nil
	}
	return answered
}

// push makes the responses that can be sent now. It returns true if others wait for Envoy.
func (s *streamState) push() (waits bool) {
	if s.set == nil {
		return false
	}
	for t := range s.types {
		s.types[t].mayLack = s.set.hasHeldBack(Listener) || s.set.hasHeldBack(Type(t))
		s.types[t].keeps = s.keeps(Type(t))
		s.types[t].setCollection(s.set)
		if s.types[t].keeps {
			s.types[t].changes() // only what differs stays dirty
		}
	}
	for _, t := range dependencies {
		s.respond(t, false)
	}
	s.pruneAwaitingEDS()
	if !s.listenersBlocked() {
		s.respond(Listener, true)
		s.respond(Route, true)
		if s.listenersAcked() {
			for _, t := range removalOrder {
				s.respond(t, true)
			}
		}
	}
	return s.waitsForEnvoy()
}

// keeps reports whether Envoy keeps what it has of a type. If the set is restored, an Envoy that has listeners keeps what it
// has: it serves. One without listeners gets everything. Until it asks for listeners, it keeps what it has.
//
// It gets what it lacks, because it may be starting: a listener waits for its routes and secrets, and a cluster for its
// endpoints. These may be older than the listener. But it has nothing in their place, and a cluster that no route names does
// no harm. Endpoints that are not restored change, too.
func (s *streamState) keeps(t Type) bool {
	if s.set.restored.IsZero() || t == Endpoint && s.set.ownEndpoints {
		return false
	}
	listeners := &s.types[Listener]
	return s.types[t].reconnected && (!listeners.started || listeners.reconnected)
}

// keepsOld reports whether something differs that Envoy keeps.
func (s *streamState) keepsOld() bool {
	return slices.ContainsFunc(s.types[:], func(t typeState) bool { return t.keepsOld() })
}

// pushUnordered is push after ackTimeout: it sends everything instead of waiting.
func (s *streamState) pushUnordered() {
	s.awaitingEDS = nil
	s.ackTimedOut = true
	s.push()
	s.ackTimedOut = false
}

// respond makes a response with the changes of a type, if there are any.
func (s *streamState) respond(typ Type, withRemovals bool) {
	t := &s.types[typ]
	if !t.canSend() {
		return
	}
	upserts, removals := t.allowedChanges()
	t.forgetRemoved()
	upserts = t.deferAggregates(upserts)
	if !withRemovals {
		removals = nil
	}
	if len(upserts)+len(removals) == 0 && (t.keeps || !t.needsFirstResponse()) {
		return
	}
	s.responseCount++
	// It cannot be guessed, so that an ACK proves that the response was read.
	nonce := strconv.FormatUint(s.responseCount, 10) + "-" + rand.Text()[:13]
	s.pending = append(s.pending, t.newResponse(nonce, upserts, removals))
	for _, parent := range upserts {
		for _, name := range parent.children {
			s.types[childTypes[typ]].invalidate(name)
		}
		if typ == Cluster {
			s.awaitingEDS = append(s.awaitingEDS, parent.children...)
		}
	}
}

// next removes the next response from those that are pending, and returns it; nil if there is none.
func (s *streamState) next() *response {
	if len(s.pending) == 0 {
		return nil
	}
	r := s.pending[0]
	if s.pending = s.pending[1:]; len(s.pending) == 0 {
		s.pending = nil // frees its memory
	}
	return r
}

// awaitsACK reports whether a response awaits its ACK.
func (s *streamState) awaitsACK() bool {
	return slices.ContainsFunc(s.types[:], func(t typeState) bool { return t.awaitingACK != nil })
}

// pruneAwaitingEDS removes the load assignments to which Envoy has subscribed, and those that do not exist.
func (s *streamState) pruneAwaitingEDS() {
	endpoints, t := s.set.collections[Endpoint], &s.types[Endpoint]
	s.awaitingEDS = slices.DeleteFunc(s.awaitingEDS, func(name string) bool {
		return endpoints.Get(name) == nil || t.started && t.subscribed(name)
	})
	if len(s.awaitingEDS) == 0 {
		s.awaitingEDS = nil // frees its memory
	}
}

// listenersBlocked reports whether listeners and routes have to wait.
func (s *streamState) listenersBlocked() bool {
	return !s.ackTimedOut && (len(s.awaitingEDS) > 0 ||
		slices.ContainsFunc(dependencies, func(t Type) bool { return s.types[t].awaitingACK != nil }))
}

// listenersAcked reports whether Envoy has acknowledged all listeners and routes, and so needs nothing that is removed.
func (s *streamState) listenersAcked() bool {
	if !s.types[Listener].started && !s.ackTimedOut {
		return false
	}
	for _, typ := range []Type{Listener, Route} {
		t := &s.types[typ]
		if t.awaitingACK != nil || len(t.refused) > 0 || t.started && t.dirty > 0 || t.envoyHasHeldBack() {
			return false
		}
	}
	return true
}

// waitsForEnvoy reports whether a change waits for an ACK or a request.
func (s *streamState) waitsForEnvoy() bool {
	if s.listenersBlocked() {
		return s.types[Listener].hasChanges() || s.types[Route].hasChanges()
	}
	return !s.types[Listener].started && slices.ContainsFunc(dependencies, func(t Type) bool { return s.types[t].hasChanges() })
}
