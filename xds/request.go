package xds

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
)

// everything is the name that means all resources of a type.
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#how-the-client-specifies-what-resources-to-return
const everything = "*"

// request is what both protocols say in a request.
type request struct {
	typeURL string
	node    *corev3.Node
	// names are those that a delta Envoy asks for beside what it has asked
	// for before, and all that a state-of-the-world Envoy asks for.
	names []string
	// unwanted are given up; delta only.
	unwanted []string
	// versions are what a delta Envoy has from an earlier stream, by name;
	// claims is what a state-of-the-world Envoy has.
	versions map[string]string
	claims   string
	// nonce names the response that the request answers; empty: none.
	nonce string
	// problem is not nil in a NACK.
	problem *statuspb.Status
}

// verdict is what a request said about the response it answers.
type verdict struct {
	// response is nil if the request answers none.
	response *response
	// problem is Envoy's message; nil in an ACK.
	problem *statuspb.Status
}

// hear brings a topic up to date with a request. It sends nothing.
func (t *topic) hear(r request) verdict {
	if t.sotw && t.nonce != "" && r.nonce != t.nonce {
		return verdict{} // the answer to the latest response says it all again
	}
	v := t.settle(r)
	first := !t.started
	if first {
		t.start(r)
	}
	if t.sotw {
		t.replace(r.names)
	} else {
		t.amend(r, first)
	}
	return v
}

// settle ends the wait for an ACK, if this is it.
func (t *topic) settle(r request) verdict {
	answered := t.inflight
	if answered == nil || r.nonce != answered.nonce {
		return verdict{}
	}
	t.inflight = nil
	t.rejected = r.problem != nil
	return verdict{response: answered, problem: r.problem}
}

// start takes over what Envoy has from an earlier stream. What has to be sent
// again because its parent was sent already is not believed to be there.
//
// For listeners and clusters no names mean all, until there are any. For the
// other types no names mean none.
func (t *topic) start(r request) {
	t.started, t.claims = true, r.claims
	t.legacy = t.typ.isFullState()
	t.setWildcard(t.legacy && len(r.names) == 0)
	for name, version := range r.versions {
		t.put(name, entry{has: true, version: version})
	}
	for _, name := range t.early {
		t.put(name, entry{})
	}
	t.early = nil
}

// amend follows a delta request. A name that is asked for again is sent again;
// one that is given up while everything is wanted has to be told about once
// more. https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#unsubscribing-from-resources
func (t *topic) amend(r request, first bool) {
	t.legacy = t.legacy && len(r.names) == 0
	for _, name := range r.names {
		if name == everything {
			t.setWildcard(true)
			continue
		}
		t.ask(name, true)
		if !first {
			t.force(name)
		}
	}
	for _, name := range r.unwanted {
		switch {
		case name == everything:
			t.setWildcard(t.legacy)
		case t.wildcard:
			t.ask(name, false)
			t.force(name)
		default:
			t.put(name, entry{})
		}
	}
}

// replace follows a state-of-the-world request, which lists every name.
func (t *topic) replace(names []string) {
	t.legacy = t.legacy && len(names) == 0
	if t.legacy {
		return
	}
	wanted := nameSet(names)
	_, all := wanted[everything]
	delete(wanted, everything)
	t.setWildcard(all)
	for name, e := range t.all() {
		if _, ok := wanted[name]; ok || !e.named {
			continue
		}
		e.named = false
		if !all {
			e = entry{}
		}
		t.put(name, e)
	}
	for name := range wanted {
		if e := t.get(name); !e.named {
			e.named, e.dirty = true, true
			t.put(name, e)
		}
	}
}
