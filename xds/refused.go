package xds

import (
	"slices"
	"strings"
)

// refusal is a resource of which Envoy has rejected the version that it was sent last.
type refusal struct {
	name    string // empty: the response had no resource
	nonce   string // of the response
	missing bool   // Envoy has no version, because it has rejected each one
}

// updateRefused updates what Envoy refuses after its answer, which is an ACK without a message. What it has refused stays so
// until it is sent again or removed: Envoy's ACK of other resources says nothing about it.
func (t *typeState) updateRefused(answered *response, nacked bool, message string) {
	sent := make(map[string]bool, len(answered.resources))
	for _, r := range answered.resources {
		sent[r.Name()] = true
	}
	var again []refusal
	t.refused = slices.DeleteFunc(slices.Clone(t.refused), func(r refusal) bool {
		if sent[r.name] {
			again = append(again, r)
		}
		return sent[r.name] || r.name == ""
	})
	t.forgetRemoved()
	if nacked {
		t.refused = append(t.refused, answered.refusals(again, message)...)
	}
}

// forgetRemoved drops what Envoy has refused and no longer has to have.
func (t *typeState) forgetRemoved() {
	if t.awaitingACK == nil {
		t.refused = slices.DeleteFunc(t.refused, func(r refusal) bool { return r.name != "" && !t.get(r.name).sent })
	}
	if len(t.refused) == 0 {
		t.refused = nil // frees its memory
	}
}

// refusedNames returns the names of what Envoy refuses, and of what it lacks therefore, in order.
func (t *typeState) refusedNames() (refused, missing []string) {
	for _, r := range t.refused {
		if r.name == "" {
			continue
		}
		refused = append(refused, r.name)
		if r.missing {
			missing = append(missing, r.name)
		}
	}
	slices.Sort(refused)
	slices.Sort(missing)
	return refused, missing
}

// refusals returns what Envoy refuses with a NACK of the response: those that its message names, because Envoy applies what
// is valid beside them, or all that Envoy may refuse. before are those of the resources that it has refused before.
func (r *response) refusals(before []refusal, message string) []refusal {
	missing := nameSet(r.added)
	var names []string
	for _, old := range before {
		names = append(names, old.name)
		missing[old.name] = missing[old.name] || old.missing
	}
	for _, changed := range r.changed {
		names = append(names, changed.Name())
	}
	if len(names) == 0 { // Envoy refuses a removal
		return []refusal{{nonce: r.nonce}}
	}
	slices.Sort(names)
	var all []refusal
	for _, name := range namedBy(message, slices.Compact(names)) {
		all = append(all, refusal{name: name, nonce: r.nonce, missing: missing[name]})
	}
	return all
}

// cutOff is the end of a message of Envoy that is not complete.
const cutOff = "...(truncated)"

// namedBy returns those of the names that a NACK's message has, or all if there are none or it is cut off.
func namedBy(message string, names []string) []string {
	named := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !mentions(message, name) })
	if len(named) == 0 || strings.HasSuffix(message, cutOff) {
		return names
	}
	return named
}

// mentions reports whether a message has a name, and not only one that it is the beginning of, such as port 8080 for 80.
func mentions(message, name string) bool {
	for {
		_, after, found := strings.Cut(message, name)
		if !found {
			return false
		}
		if after == "" || after[0] < '0' || after[0] > '9' {
			return true
		}
		message = after
	}
}
