package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"slices"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// response is one response, from the moment it is queued to its verdict.
type response struct {
	topic *topic
	// upserts and removals are what changes for Envoy.
	upserts  []*Resource
	removals []string
	// state is everything Envoy has after it; only for full states.
	state []*Resource
	// before is what Envoy had under the names that change; absent names
	// had nothing. first: nothing was sent for the type before.
	before map[string]given
	first  bool

	// sealed is true from the moment the stream server takes the content.
	sealed bool
	delta  *discoveryv3.DeltaDiscoveryResponse
	sotw   *discoveryv3.DiscoveryResponse
}

// newResponse books what a response changes. Nothing is in flight before.
func (t *topic) newResponse(upserts []*Resource, removals []string) *response {
	r := &response{
		topic: t, upserts: upserts, removals: removals,
		before: make(map[string]given, len(upserts)+len(removals)), first: !t.answered,
	}
	for _, u := range upserts {
		r.record(u.Name())
		t.has[u.Name()] = given{version: u.Version(), resource: u}
	}
	for _, name := range removals {
		r.record(name)
		delete(t.has, name)
	}
	if t.fullState() {
		r.state = resourcesOf(t.has)
	}
	t.answered, t.inflight = true, r
	return r
}

func (r *response) record(name string) {
	if g, ok := r.topic.has[name]; ok {
		r.before[name] = g
	}
	delete(r.topic.dirty, name)
}

// undo books back a response that was never sent.
func (r *response) undo() {
	t := r.topic
	for _, u := range r.upserts {
		delete(t.has, u.Name())
		t.dirty[u.Name()] = struct{}{}
	}
	for name, g := range r.before {
		t.has[name] = given{resource: g.resource}
		t.dirty[name] = struct{}{}
	}
	t.answered = !r.first
}

// nonce is the response's name on the stream; empty before it was sent.
func (r *response) nonce() string {
	if r.topic.sotw {
		return r.sotw.GetNonce()
	}
	return r.delta.GetNonce()
}

// seal makes the message. A name that was given up while the response waited in
// the queue is left out.
func (r *response) seal() {
	r.sealed = true
	if r.topic.sotw {
		r.sotw = r.sotwMessage()
		return
	}
	r.upserts = slices.DeleteFunc(r.upserts, func(u *Resource) bool { return !r.topic.wants(u.Name()) })
	r.delta = &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl:          r.topic.typ.URL(),
		Resources:        make([]*discoveryv3.Resource, 0, len(r.upserts)),
		RemovedResources: r.removals,
	}
	for _, u := range r.upserts {
		r.delta.Resources = append(r.delta.Resources, u.wire)
	}
}

func (r *response) sotwMessage() *discoveryv3.DiscoveryResponse {
	carried := r.carried()
	m := &discoveryv3.DiscoveryResponse{
		TypeUrl:     r.topic.typ.URL(),
		VersionInfo: versionOf(carried),
		Resources:   make([]*anypb.Any, 0, len(carried)),
	}
	for _, c := range carried {
		m.Resources = append(m.Resources, c.wire.GetResource())
	}
	return m
}

// carried are the resources in the message.
func (r *response) carried() []*Resource {
	if r.topic.fullState() {
		return r.state
	}
	return r.upserts
}

// size is the number of bytes of the resources in the message.
func (r *response) size() int {
	n := 0
	for _, c := range r.carried() {
		n += c.Size()
	}
	return n
}

// resourcesOf lists what Envoy has, sorted by name.
func resourcesOf(has map[string]given) []*Resource {
	list := make([]*Resource, 0, len(has))
	for _, g := range has {
		if g.resource != nil {
			list = append(list, g.resource)
		}
	}
	slices.SortFunc(list, func(a, b *Resource) int { return strings.Compare(a.Name(), b.Name()) })
	return list
}

// versionOf is the version of a list: the hash of its names and versions.
func versionOf(list []*Resource) string {
	h := sha256.New()
	for _, r := range list {
		_, _ = io.WriteString(h, r.Name()+"\x00"+r.Version()+"\x00")
	}
	return hex.EncodeToString(h.Sum(nil))
}

// version identifies the content in logs.
func (r *response) version() string { return versionOf(r.carried()) }

// names are those of the resources in the message, a few of them at most.
func (r *response) names() []string {
	const most = 10
	var names []string
	for _, c := range r.carried() {
		if len(names) == most {
			return append(names, "...")
		}
		names = append(names, c.Name())
	}
	return names
}
