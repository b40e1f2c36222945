package xds

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
)

// conversation decides what one Envoy is sent, and when. It has no goroutine
// and no lock; its owner calls one method at a time.
//
// The rules, most of them Consul's:
//
//   - Per type one response at a time, until Envoy answered it.
//   - Secrets, clusters and endpoints go out as soon as they differ. They never
//     wait for each other: Envoy acknowledges a cluster only when the cluster's
//     endpoints and secrets have arrived.
//   - An aggregate cluster waits until Envoy acknowledged the clusters that it
//     leads to and that are new: it has no instances before.
//   - Listeners and routes wait until Envoy acknowledged those, and has asked
//     for the endpoints of the clusters it was sent.
//   - Clusters, endpoints, secrets and token buckets are removed last, when no
//     listener and no route that Envoy has may need them.
//   - A cluster's endpoints are sent again after the cluster, a listener's
//     routes after the listener: Envoy waits for them again.
//   - What Envoy rejected is not offered again until it changes.
type streamState struct {
	set   *Set
	types [NumTypes]typeState
	// owed are the load assignments Envoy has to ask for because it was
	// sent their clusters, and has not yet.
	awaitingEDS []string
	// outbox are the responses to send, in this order.
	pending []*response
	// nonces is how many responses there were.
	responseCount uint64
	// impatient is true in the push that waits no longer.
	ackTimedOut bool
}

func newStreamState(sotw bool) *streamState {
	c := &streamState{}
	for t := range c.types {
		c.types[t] = typeState{typ: Type(t), sotw: sotw}
	}
	return c
}

// hear takes a request.
func (c *streamState) handleRequest(t Type, r request) ackResult {
	v := c.types[t].handleRequest(r)
	switch {
	case t == Cluster && v.errorDetail != nil:
		c.awaitingEDS = nil
	case t == Endpoint:
		c.pruneAwaitingEDS()
	}
	return v
}

// update takes a newer set.
func (c *streamState) setResources(s *Set) { c.set = s }

// push puts into the outbox what can be sent now. It returns true when something
// has to wait for Envoy.
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

// pushAnyway is push after waiting for too long: order is given up in favour of
// delivery.
func (c *streamState) pushUnordered() {
	c.awaitingEDS = nil
	c.ackTimedOut = true
	c.push()
	c.ackTimedOut = false
}

// send makes a response with what is due of a type, if anything is.
func (c *streamState) respond(typ Type, removing bool) {
	t := &c.types[typ]
	if !t.canSend() {
		return
	}
	upserts, removals := t.changes()
	upserts = t.deferAggregates(upserts)
	if !removing {
		removals = nil
	}
	if len(upserts)+len(removals) == 0 && !t.needsFirstResponse() {
		return
	}
	c.responseCount++
	c.pending = append(c.pending, t.newResponse(newNonce(c.responseCount), upserts, removals))
	if child, ok := typ.child(); ok {
		c.types[child].invalidateChildren(upserts)
	}
	if typ == Cluster {
		c.awaitEDS(upserts)
	}
}

// newNonce names a response. Nobody can guess it, so that an answer proves that
// the response was read.
func newNonce(number uint64) string { return strconv.FormatUint(number, 10) + "-" + rand.Text()[:13] }

// unanswered reports whether a response awaits its answer.
func (c *streamState) awaitsACK() bool {
	return slices.ContainsFunc(c.types[:], func(t typeState) bool { return t.inflight != nil })
}

// The most names that an Envoy may ask for, or say that it has, of which a type
// has no resource.
const (
	maxUnknownNames     = 10_000
	maxUnknownNameBytes = 1 << 20
	// Before the set is known, none is known to exist.
	maxUncheckedNames     = maxRequestNames
	maxUncheckedNameBytes = 8 << 20
)

// tooMuch returns an error when Envoy names too many resources of a type that do
// not exist. It is called after push, which looks at what exists.
func (c *streamState) checkNameLimits(t Type) error {
	mostNames, mostBytes := maxUnknownNames, maxUnknownNameBytes
	if c.types[t].baseline == nil {
		mostNames, mostBytes = maxUncheckedNames, maxUncheckedNameBytes
	}
	names, bytes := c.types[t].unknownNames()
	if names > mostNames || bytes > mostBytes {
		return fmt.Errorf("the Envoy names %d resources of type %s that do not exist (%d bytes of names); at most %d and %d bytes are kept", names, t, bytes, mostNames, mostBytes)
	}
	return nil
}

// take empties the outbox.
func (c *streamState) takePending() []*response {
	out := c.pending
	c.pending = nil
	return out
}

// owe notes which load assignments Envoy has to ask for next.
func (c *streamState) awaitEDS(clusters []*Resource) {
	for _, cluster := range clusters {
		c.awaitingEDS = append(c.awaitingEDS, cluster.children...)
	}
	c.pruneAwaitingEDS()
}

// collect drops from owed what Envoy has asked for, and what does not exist.
func (c *streamState) pruneAwaitingEDS() {
	if len(c.awaitingEDS) == 0 || c.set == nil {
		return
	}
	endpoints, asked := c.set.collections[Endpoint], &c.types[Endpoint]
	c.awaitingEDS = slices.DeleteFunc(c.awaitingEDS, func(name string) bool {
		return endpoints.Get(name) == nil || asked.started && asked.subscribed(name)
	})
	if len(c.awaitingEDS) == 0 {
		c.awaitingEDS = nil
	}
}

// holdsTraffic says whether listeners and routes have to wait.
func (c *streamState) listenersBlocked() bool {
	if c.ackTimedOut {
		return false
	}
	return len(c.awaitingEDS) > 0 || slices.ContainsFunc(dependencies, func(t Type) bool { return c.types[t].inflight != nil })
}

// settled says whether Envoy has acknowledged all listeners and routes, so that
// nothing it has needs what is to be removed.
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

// waits says whether something is held back that only Envoy can release, by an
// ACK or by a request.
func (c *streamState) waitsForEnvoy() bool {
	if c.listenersBlocked() {
		return c.types[Listener].hasWork() || c.types[Route].hasWork()
	}
	return !c.types[Listener].started && slices.ContainsFunc(dependencies, func(t Type) bool { return c.types[t].hasWork() })
}
