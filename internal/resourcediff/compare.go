package resourcediff

import (
	"maps"
	"slices"
	"strings"
)

// Difference is one field of a resource that differs.
type Difference struct {
	TypeURL       string
	Name          string // of the resource
	Path          string // fields joined by dots; [] after a list; empty: one side does not have the resource
	Before, After string // JSON, or "absent"
}

// Compare returns the differences of two sets of resources in canonical form, in
// a stable order.
func Compare(before, after Resources) []Difference {
	var out []Difference
	for _, t := range comparedTypes {
		typeURL := t.url
		for _, name := range union(before[typeURL], after[typeURL]) {
			a, inBefore := before[typeURL][name]
			b, inAfter := after[typeURL][name]
			for _, d := range diff("", pair{a, inBefore}, pair{b, inAfter}) {
				d.TypeURL, d.Name = typeURL, name
				out = append(out, d)
			}
		}
	}
	return out
}

// pair is a value, and whether it is there.
type pair struct {
	value Tree
	there bool
}

func (p pair) String() string {
	if !p.there {
		return "absent"
	}
	return Text(p.value)
}

// diff returns the smallest differences below a path.
func diff(path string, before, after pair) []Difference {
	a, aIsObject := before.value.(map[string]any)
	b, bIsObject := after.value.(map[string]any)
	if aIsObject && bIsObject {
		var out []Difference
		for _, key := range union(a, b) {
			va, inA := a[key]
			vb, inB := b[key]
			out = append(out, diff(strings.TrimPrefix(path+"."+key, "."), pair{va, inA}, pair{vb, inB})...)
		}
		return out
	}
	la, aIsList := before.value.([]any)
	lb, bIsList := after.value.([]any)
	if aIsList && bIsList && len(la) == len(lb) {
		var out []Difference
		for i := range la {
			out = append(out, diff(path+"[]", pair{la[i], true}, pair{lb[i], true})...)
		}
		return out
	}
	if before.there == after.there && Text(before.value) == Text(after.value) {
		return nil
	}
	return []Difference{{Path: path, Before: before.String(), After: after.String()}}
}

// union returns the keys of both, sorted.
func union(a, b map[string]Tree) []string {
	keys := append(slices.Collect(maps.Keys(a)), slices.Collect(maps.Keys(b))...)
	slices.Sort(keys)
	return slices.Compact(keys)
}
