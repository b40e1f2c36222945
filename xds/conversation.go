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
type conversation struct {
	set    *Set
	topics [NumTypes]topic
	// owed are the load assignments Envoy has to ask for because it was
	// sent their clusters, and has not yet.
	owed []string
	// outbox are the responses to send, in this order.
	outbox []*response
	// nonces is how many responses there were.
	nonces uint64
	// impatient is true in the push that waits no longer.
	impatient bool
}

func newConversation(sotw bool) *conversation {
	c := &conversation{}
	for t := range c.topics {
		c.topics[t] = topic{typ: Type(t), sotw: sotw}
	}
	return c
}

// hear takes a request.
func (c *conversation) hear(t Type, r request) verdict {
	v := c.topics[t].hear(r)
	switch {
	case t == Cluster && v.problem != nil:
		c.owed = nil
	case t == Endpoint:
		c.collect()
	}
	return v
}

// update takes a newer set.
func (c *conversation) update(s *Set) { c.set = s }

// push puts into the outbox what can be sent now. It returns true when something
// has to wait for Envoy.
func (c *conversation) push() (waits bool) {
	if c.set == nil {
		return false
	}
	for t := range c.topics {
		c.topics[t].partial = c.set.withholds(Listener) || c.set.withholds(Type(t))
		c.topics[t].refresh(c.set.collections[t])
	}
	c.collect()
	for _, t := range dependencies {
		c.send(t, false)
	}
	if !c.holdsTraffic() {
		c.send(Listener, true)
		c.send(Route, true)
		if c.settled() {
			for _, t := range []Type{Cluster, Endpoint, Secret, TokenBucket} {
				c.send(t, true)
			}
		}
	}
	return c.waits()
}

// pushAnyway is push after waiting for too long: order is given up in favour of
// delivery.
func (c *conversation) pushAnyway() {
	c.owed = nil
	c.impatient = true
	c.push()
	c.impatient = false
}

// send makes a response with what is due of a type, if anything is.
func (c *conversation) send(typ Type, removing bool) {
	t := &c.topics[typ]
	if !t.ready() {
		return
	}
	upserts, removals := t.due()
	upserts = t.legsFirst(upserts)
	if !removing {
		removals = nil
	}
	if len(upserts)+len(removals) == 0 && !t.owesAnswer() {
		return
	}
	c.nonces++
	c.outbox = append(c.outbox, t.newResponse(newNonce(c.nonces), upserts, removals))
	if child, ok := typ.child(); ok {
		c.topics[child].forceChildren(upserts)
	}
	if typ == Cluster {
		c.owe(upserts)
	}
}

// newNonce names a response. Nobody can guess it, so that an answer proves that
// the response was read.
func newNonce(number uint64) string { return strconv.FormatUint(number, 10) + "-" + rand.Text()[:13] }

// unanswered reports whether a response awaits its answer.
func (c *conversation) unanswered() bool {
	return slices.ContainsFunc(c.topics[:], func(t topic) bool { return t.inflight != nil })
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
func (c *conversation) tooMuch(t Type) error {
	mostNames, mostBytes := maxUnknownNames, maxUnknownNameBytes
	if c.topics[t].level == nil {
		mostNames, mostBytes = maxUncheckedNames, maxUncheckedNameBytes
	}
	names, bytes := c.topics[t].unknown()
	if names > mostNames || bytes > mostBytes {
		return fmt.Errorf("the Envoy names %d resources of type %s that do not exist (%d bytes of names); at most %d and %d bytes are kept", names, t, bytes, mostNames, mostBytes)
	}
	return nil
}

// take empties the outbox.
func (c *conversation) take() []*response {
	out := c.outbox
	c.outbox = nil
	return out
}

// owe notes which load assignments Envoy has to ask for next.
func (c *conversation) owe(clusters []*Resource) {
	for _, cluster := range clusters {
		c.owed = append(c.owed, cluster.children...)
	}
	c.collect()
}

// collect drops from owed what Envoy has asked for, and what does not exist.
func (c *conversation) collect() {
	if len(c.owed) == 0 || c.set == nil {
		return
	}
	endpoints, asked := c.set.collections[Endpoint], &c.topics[Endpoint]
	c.owed = slices.DeleteFunc(c.owed, func(name string) bool {
		return endpoints.Get(name) == nil || asked.started && asked.wants(name)
	})
	if len(c.owed) == 0 {
		c.owed = nil
	}
}

// holdsTraffic says whether listeners and routes have to wait.
func (c *conversation) holdsTraffic() bool {
	if c.impatient {
		return false
	}
	return len(c.owed) > 0 || slices.ContainsFunc(dependencies, func(t Type) bool { return c.topics[t].inflight != nil })
}

// settled says whether Envoy has acknowledged all listeners and routes, so that
// nothing it has needs what is to be removed.
func (c *conversation) settled() bool {
	if !c.topics[Listener].started && !c.impatient {
		return false
	}
	for _, typ := range []Type{Listener, Route} {
		t := &c.topics[typ]
		if t.inflight != nil || t.rejected || t.started && t.dirty > 0 || t.keepsWithheld() {
			return false
		}
	}
	return true
}

// waits says whether something is held back that only Envoy can release, by an
// ACK or by a request.
func (c *conversation) waits() bool {
	if c.holdsTraffic() {
		return c.topics[Listener].hasWork() || c.topics[Route].hasWork()
	}
	return !c.topics[Listener].started && slices.ContainsFunc(dependencies, func(t Type) bool { return c.topics[t].hasWork() })
}
