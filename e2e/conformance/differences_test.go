//go:build e2e

package conformance

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// allowance is a difference that is meant: one field of one type, and why.
type allowance struct {
	typeURL string
	path    string // as difference.path
	reason  string
}

// allowed are all differences that are meant. One that no case needs fails.
var allowed = []allowance{}

// difference is one field that Consul and Usher write differently.
type difference struct {
	typeURL string
	name    string // of the resource
	path    string // fields joined by dots; [] after a list
	consul  string // JSON, or "absent"
	usher   string
}

func (d difference) String() string {
	kind := d.typeURL[strings.LastIndex(d.typeURL, ".")+1:]
	return fmt.Sprintf("%s %s: %s\n  consul: %s\n  usher:  %s", kind, d.name, d.path, d.consul, d.usher)
}

// compare gives the differences of two sets of resources in canonical form, in
// a stable order.
func compare(consul, usher resources) []difference {
	var out []difference
	for _, typeURL := range append(slices.Clone(wildcardTypes), resource.EndpointType, resource.RouteType) {
		for _, name := range union(consul[typeURL], usher[typeURL]) {
			a, inConsul := consul[typeURL][name]
			b, inUsher := usher[typeURL][name]
			for _, d := range diff("", pair{a, inConsul}, pair{b, inUsher}) {
				d.typeURL, d.name = typeURL, name
				out = append(out, d)
			}
		}
	}
	return out
}

// pair is a value, and whether it is there.
type pair struct {
	value tree
	there bool
}

func (p pair) String() string {
	if !p.there {
		return "absent"
	}
	return text(p.value)
}

// diff gives the smallest differences below a path.
func diff(path string, consul, usher pair) []difference {
	a, aIsObject := consul.value.(map[string]any)
	b, bIsObject := usher.value.(map[string]any)
	if aIsObject && bIsObject {
		var out []difference
		for _, key := range union(a, b) {
			va, inA := a[key]
			vb, inB := b[key]
			out = append(out, diff(strings.TrimPrefix(path+"."+key, "."), pair{va, inA}, pair{vb, inB})...)
		}
		return out
	}
	la, aIsList := consul.value.([]any)
	lb, bIsList := usher.value.([]any)
	if aIsList && bIsList && len(la) == len(lb) {
		var out []difference
		for i := range la {
			out = append(out, diff(path+"[]", pair{la[i], true}, pair{lb[i], true})...)
		}
		return out
	}
	if consul.there == usher.there && text(consul.value) == text(usher.value) {
		return nil
	}
	return []difference{{path: path, consul: consul.String(), usher: usher.String()}}
}

// union gives the keys of both, sorted.
func union(a, b map[string]tree) []string {
	keys := append(slices.Collect(maps.Keys(a)), slices.Collect(maps.Keys(b))...)
	slices.Sort(keys)
	return slices.Compact(keys)
}

// unexplained gives the differences that nothing allows, and marks what allowed
// the others as used.
func unexplained(found []difference, used map[allowance]bool) []difference {
	var out []difference
	for _, d := range found {
		i := slices.IndexFunc(allowed, func(a allowance) bool { return a.typeURL == d.typeURL && a.path == d.path })
		if i < 0 {
			out = append(out, d)
			continue
		}
		used[allowed[i]] = true
	}
	return out
}
