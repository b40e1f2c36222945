package xds

import (
	"crypto/rand"
	"fmt"
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
//   - An aggregate cluster waits until Envoy has acknowledged the new clusters that it refers to: they have no
//     endpoints before.
//   - Listeners and routes wait until Envoy has acknowledged those, and has subscribed to the endpoints of the
//     clusters that it was sent.
//   - Clusters, endpoints, secrets and token buckets are removed last, when no listener and no route of Envoy may
//     need them.
//   - A cluster's endpoints are sent again after the cluster, and a listener's routes after the listener: Envoy
//     waits for them again.
//   - A rejected update is not sent again until it changes.
type streamState struct {
	set   *Set // nil: not known yet
	types [NumTypes]typeState
	// awaitingEDS are the load assignments to which Envoy has to subscribe, because it was sent their clusters, and
	// has not yet.
	awaitingEDS []string
	// pending are the next responses, in order.
	pending       []*response
	responseCount uint64
	// ackTimedOut is true during a push that does not wait.
	ackTimedOut bool
}

func newStreamState(sotw bool) *streamState {
	c := &streamState{}
	for t := range c.types {
		c.types[t] = typeState{typ: Type(t), sotw: sotw}
	}
	return c
}

// handleRequest updates the state of a type. It sends nothing.
func (c *streamState) handleRequest(t Type, r request) ackResult {
	ack := c.types[t].handleRequest(r)
	if t == Cluster && ack.errorDetail != nil {
		c.awaitingEDS = nil
	}
	c.pruneAwaitingEDS()
	return ack
}

// push makes the responses that can be sent now. It returns true if others wait for Envoy.
func (c *streamState) push() (waits bool) {
	if c.set == nil {
		return false
	}
	for t := range c.types {
		c.types[t].incomplete = c.set.hasHeldBack(Listener) || c.set.hasHeldBack(Type(t))
		c.types[t].setCollection(c.set.collections[t])
	}
	c.pruneAwaitingEDS()
	for _, t := range dependencies {
		c.respond(t, false)
	}
	if !c.listenersBlocked() {
		c.respond(Listener, true)
		c.respond(Route, true)
		if c.listenersAcked() {
			for _, t := range []Type{Cluster, Endpoint, Secret, TokenBucket} {
				c.respond(t, true)
			}
		}
	}
	return c.waitsForEnvoy()
}

// pushUnordered is push after ackTimeout: it sends everything instead of waiting.
func (c *streamState) pushUnordered() {
	c.awaitingEDS = nil
	c.ackTimedOut = true
	c.push()
	c.ackTimedOut = false
}

// respond makes a response with the changes of a type, if there are any.
func (c *streamState) respond(typ Type, withRemovals bool) {
	t := &c.types[typ]
	if !t.canSend() {
		return
	}
	upserts, removals := t.changes()
	upserts = t.deferAggregates(upserts)
	if !withRemovals {
		removals = nil
	}
	if len(upserts)+len(removals) == 0 && !t.needsFirstResponse() {
		return
	}
	c.responseCount++
	// The nonce cannot be guessed, so that an ACK proves that the response was read.
	nonce := strconv.FormatUint(c.responseCount, 10) + "-" + rand.Text()[:13]
	c.pending = append(c.pending, t.newResponse(nonce, upserts, removals))
	if child, ok := childTypes[typ]; ok {
		c.types[child].invalidateChildren(upserts)
	}
	if typ == Cluster {
		for _, cluster := range upserts {
			c.awaitingEDS = append(c.awaitingEDS, cluster.children...)
		}
		c.pruneAwaitingEDS()
	}
}

// takePending returns the next responses, once.
func (c *streamState) takePending() []*response {
	out := c.pending
	c.pending = nil
	return out
}

// awaitsACK reports whether a response awaits its ACK.
func (c *streamState) awaitsACK() bool {
	return slices.ContainsFunc(c.types[:], func(t typeState) bool { return t.inflight != nil })
}

// The most names without a resource to which an Envoy may subscribe, or that it may say it has, per type.
const (
	maxUnknownNames     = 10_000
	maxUnknownNameBytes = 1 << 20
	// Until the set is known, no name is.
	maxUncheckedNames     = maxRequestNames
	maxUncheckedNameBytes = 8 << 20
)

// checkNameLimits returns an error if Envoy uses too many names of a type without a resource. Call it after push,
// which looks for the resources.
func (c *streamState) checkNameLimits(t Type) error {
	maxNames, maxBytes := maxUnknownNames, maxUnknownNameBytes
	if c.types[t].baseline == nil {
		maxNames, maxBytes = maxUncheckedNames, maxUncheckedNameBytes
	}
	names, bytes := c.types[t].unknownNames()
	if names > maxNames || bytes > maxBytes {
		return fmt.Errorf("too many unknown names of type %s: %d (%d bytes); the limit is %d (%d bytes)", t, names, bytes, maxNames, maxBytes)
	}
	return nil
}

// pruneAwaitingEDS removes the load assignments to which Envoy has subscribed, and those that do not exist.
func (c *streamState) pruneAwaitingEDS() {
	if len(c.awaitingEDS) == 0 || c.set == nil {
		return
	}
	endpoints, t := c.set.collections[Endpoint], &c.types[Endpoint]
	c.awaitingEDS = slices.DeleteFunc(c.awaitingEDS, func(name string) bool {
		return endpoints.Get(name) == nil || t.started && t.subscribed(name)
	})
	if len(c.awaitingEDS) == 0 {
		c.awaitingEDS = nil // frees its memory
	}
}

// listenersBlocked reports whether listeners and routes have to wait.
func (c *streamState) listenersBlocked() bool {
	return !c.ackTimedOut && (len(c.awaitingEDS) > 0 ||
		slices.ContainsFunc(dependencies, func(t Type) bool { return c.types[t].inflight != nil }))
}

// listenersAcked reports whether Envoy has acknowledged all listeners and routes, so that it needs nothing that is
// to be removed.
func (c *streamState) listenersAcked() bool {
	if !c.types[Listener].started && !c.ackTimedOut {
		return false
	}
	for _, typ := range []Type{Listener, Route} {
		t := &c.types[typ]
		if t.inflight != nil || t.nacked || t.started && t.dirty > 0 || t.hasHeldBack() {
			return false
		}
	}
	return true
}

// waitsForEnvoy reports whether a change waits for an ACK or a request.
func (c *streamState) waitsForEnvoy() bool {
	if c.listenersBlocked() {
		return c.types[Listener].hasChanges() || c.types[Route].hasChanges()
	}
	return !c.types[Listener].started && slices.ContainsFunc(dependencies, func(t Type) bool { return c.types[t].hasChanges() })
}
