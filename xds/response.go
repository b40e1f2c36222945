package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
)

// response is one response, from the moment it is made to its verdict.
type response struct {
	typ Type
	// nonce is its name on the stream.
	nonce string
	// resources are those in the message: what changes for Envoy or, in a
	// full state, everything Envoy has after it. Sorted by name.
	resources []*Resource
	// removals are the names that Envoy is to forget. A full state tells them
	// by not naming them.
	removals []string
}

// newResponse books what a response changes. Nothing is in flight before.
func (t *typeState) newResponse(nonce string, upserts []*Resource, removals []string) *response {
	for _, u := range upserts {
		t.markSent(u)
	}
	for _, name := range removals {
		t.markRemoved(name)
	}
	r := &response{typ: t.typ, nonce: nonce, resources: upserts, removals: removals}
	if t.fullState() {
		r.resources = t.sentResources()
	}
	t.responded, t.lastNonce, t.inflight = true, nonce, r
	return r
}

// size is the number of bytes of the resources in the message.
func (r *response) size() int {
	n := 0
	for _, c := range r.resources {
		n += c.Size()
	}
	return n
}

// version identifies the content.
func (r *response) version() string { return versionOf(r.resources) }

// versionOf is the version of a list: the hash of its names and versions.
func versionOf(list []*Resource) string {
	h := sha256.New()
	for _, r := range list {
		_, _ = io.WriteString(h, r.Name()+"\x00"+r.Version()+"\x00")
	}
	return hex.EncodeToString(h.Sum(nil))
}

// names are those of the resources in the message, a few of them at most.
func (r *response) names() []string {
	const most = 10
	var names []string
	for _, c := range r.resources {
		if len(names) == most {
			return append(names, "...")
		}
		names = append(names, c.Name())
	}
	return names
}
