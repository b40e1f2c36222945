package xds

import (
	"slices"
	"time"
)

// Earlier are the clusters of the last few sets of a gateway. With them, a server knows which clusters a state-of-the-world
// Envoy has that connects again, and can remove clusters last. Listeners and routes that are removed do not wait, so they
// need no such memory. It is immutable; nil is empty.
type Earlier []replacement

// replacement is a change of a gateway's clusters.
type replacement struct {
	at          time.Time
	before, now *Collection
	both        *Collection // now and what is only in before: what an Envoy has until it has the new listeners and routes
}

// The replacements that are kept. Collections share what does not change, so they need little memory.
const (
	maxReplacements = 8
	keepReplacement = 5 * time.Minute // at least; the next change of the gateway drops it
)

// With returns e with the replacement of clusters by others, and without those that are too old or too many.
func (e Earlier) With(before, now *Collection) Earlier {
	e = slices.DeleteFunc(slices.Clone(e), func(r replacement) bool { return time.Since(r.at) > keepReplacement })
	known := func(r replacement) bool { return r.before == before && r.now == now }
	if before == now || before == nil || slices.ContainsFunc(e, known) {
		return e
	}
	var removed []*Resource
	_, _, names := now.ChangedSince(before)
	for _, name := range names {
		removed = append(removed, before.Get(name))
	}
	e = append(e, replacement{time.Now(), before, now, now.Next(removed, nil, nil)})
	return e[max(0, len(e)-maxReplacements):]
}

// Get returns the clusters whose Collection.Version is the given one; nil: there are none.
func (e Earlier) Get(version string) *Collection {
	for _, r := range slices.Backward(e) {
		for _, c := range []*Collection{r.both, r.before} {
			if c.Version() == version {
				return c
			}
		}
	}
	return nil
}
