package xds

import (
	"maps"

	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
)

// request is what both protocols say in a request.
type request struct {
	// subscription is the state after the request.
	subscription cache.Subscription
	// again are names asked for expressly, unwanted those given up; delta
	// only. The state of the world tells by the whole list.
	again, unwanted []string
	// versions are what a delta Envoy has from an earlier stream, by name;
	// claims is what a state-of-the-world Envoy has.
	versions map[string]string
	claims   string
	// nonce names the response that the request answers; empty: none.
	nonce string
	// problem is not nil in a NACK.
	problem *statuspb.Status
	deliver func(*response)
}

// verdict is what a request said about the response it answers.
type verdict struct {
	// response is nil if the request answers none.
	response *response
	// problem is Envoy's message; nil in an ACK.
	problem *statuspb.Status
}

// take brings a topic up to date with a request. It sends nothing.
func (t *topic) take(r request) verdict {
	v := t.settle(r)
	before := t.sub
	t.sub, t.open, t.deliver = r.subscription, true, r.deliver
	switch {
	case !t.started:
		t.start(r)
	case t.sotw:
		t.replace(before)
	default:
		t.amend(before, r)
	}
	return v
}

// settle ends the wait for an ACK, if this is it.
func (t *topic) settle(r request) verdict {
	answered := t.inflight
	if answered == nil {
		return verdict{}
	}
	if !answered.sealed {
		if t.sotw {
			// The ordered state-of-the-world server drops what is
			// queued for a type when a request for it comes first.
			answered.undo()
			t.inflight = nil
		}
		return verdict{}
	}
	if r.nonce == "" || r.nonce != answered.nonce() {
		return verdict{}
	}
	t.inflight = nil
	t.rejected = r.problem != nil
	return verdict{response: answered, problem: r.problem}
}

// start takes over what Envoy has from an earlier stream. What has to be sent
// again because its parent was sent already stays so.
func (t *topic) start(r request) {
	t.started, t.claims = true, r.claims
	for name, version := range r.versions {
		if _, forced := t.has[name]; !forced {
			t.has[name] = given{version: version}
		}
	}
}

// amend follows a delta request. A name that is asked for again is sent again;
// one that is given up while everything is wanted has to be told about once
// more. https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#unsubscribing-from-resources
func (t *topic) amend(before cache.Subscription, r request) {
	for _, name := range r.unwanted {
		switch {
		case name == "*":
		case t.sub.IsWildcard():
			t.force(name)
		default:
			t.forget(name)
		}
	}
	for _, name := range r.again {
		if name != "*" {
			t.force(name)
		}
	}
	t.changeWildcard(before)
}

// replace follows a state-of-the-world request, which lists every name.
func (t *topic) replace(before cache.Subscription) {
	wanted := t.sub.SubscribedResources()
	for name := range before.SubscribedResources() {
		if !t.wants(name) {
			t.forget(name)
		}
	}
	for name := range wanted {
		if _, ok := before.SubscribedResources()[name]; !ok {
			t.dirty[name] = struct{}{}
		}
	}
	t.changeWildcard(before)
}

// changeWildcard follows a subscription to everything that began or ended.
func (t *topic) changeWildcard(before cache.Subscription) {
	if before.IsWildcard() == t.sub.IsWildcard() {
		return
	}
	t.seen = nil
	maps.DeleteFunc(t.has, func(name string, _ given) bool { return !t.wants(name) })
}
