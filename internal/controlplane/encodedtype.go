package controlplane

import (
	"fmt"
	"iter"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/xds"
)

// messages are the resources of one type before they are encoded, by their
// names. Two that are == are the same.
type messages interface {
	// Get gives the message of a name; nil if there is none.
	Get(name string) proto.Message
	// Since gives the names of which they say something else than old, which
	// are of the same type; nil: there was nothing.
	ChangedSince(old messages) iter.Seq[string]
}

// list makes messages of a map.
type typedMessages[M interface {
	comparable
	proto.Message
}] struct{ ordered.Map[M] }

func (l typedMessages[M]) Get(name string) proto.Message {
	var none M
	if m := l.Map.Get(name); m != none {
		return m
	}
	return nil
}

func (l typedMessages[M]) ChangedSince(old messages) iter.Seq[string] {
	before, _ := old.(typedMessages[M])
	return l.Map.ChangedSince(before.Map)
}

// wanted is what is to be made of one type.
type desired struct {
	typ         xds.Type
	messages    messages
	heldBack    []string // exist, and could not be built
	keepRemoved bool     // nothing is left out that was there before
}

// made is what became of it. It is immutable, and shared by the kinds of Envoys
// that want the same.
type encodedType struct {
	messages   messages
	collection *xds.Collection
	invalid    []string          // the messages that Envoy would refuse
	problems   []problem.Problem // why
	kept       []string          // what the collection has beside the messages
}

// nothing is what was made before anything was.
func noEncodedType() *encodedType {
	return &encodedType{collection: xds.NewCollection(nil, nil)}
}

// next makes what is wanted, starting from what there is. Only messages that
// are others than before are encoded. What is withheld or invalid counts with
// its last good bytes; without any it is named as withheld, so that nobody takes
// it for removed.
func (m *encodedType) update(w desired) *encodedType {
	if m.is(w) {
		return m
	}
	now := &encodedType{messages: w.messages}
	changed, gone := now.diff(w.typ, m)

	var removed, withheld []string
	for _, name := range gone {
		if w.keepRemoved || slices.Contains(w.heldBack, name) {
			now.kept = append(now.kept, name)
		} else {
			removed = append(removed, name)
		}
	}
	for _, name := range slices.Concat(w.heldBack, now.invalid) {
		if m.collection.Get(name) == nil {
			withheld = append(withheld, name)
		}
	}
	now.collection = m.collection.Next(changed, removed, withheld)
	return now
}

// is says whether what is wanted is there already. False says nothing.
func (m *encodedType) is(w desired) bool {
	return m.messages == w.messages && m.isExact() && len(w.heldBack) == 0
}

// plain says that the messages are all there is to it.
func (m *encodedType) isExact() bool {
	return len(m.invalid) == 0 && len(m.kept) == 0 && len(m.collection.HeldBack()) == 0
}

// keepsOld says whether something last good is there that may lead to what
// other types no longer have.
func (m *encodedType) keepsLastGood() bool {
	known := func(name string) bool { return m.collection.Get(name) != nil }
	return len(m.kept) > 0 || slices.ContainsFunc(m.invalid, known)
}

// encode gives the resources that are new or different, and the names that the
// last collection has and the messages do not.
func (m *encodedType) diff(t xds.Type, last *encodedType) (changed []*xds.Resource, gone []string) {
	for name := range m.messages.ChangedSince(last.messages) {
		msg := m.messages.Get(name)
		if msg == nil {
			gone = append(gone, name)
		} else if r := m.resource(t, name, msg); r != nil && !last.hasVersion(r) {
			changed = append(changed, r)
		}
	}
	for _, name := range last.invalid {
		if msg := m.messages.Get(name); msg != nil && msg == last.messages.Get(name) {
			m.resource(t, name, msg) // says once more why not
		}
	}
	gone = append(gone, last.kept...)
	return changed, slices.DeleteFunc(gone, func(name string) bool { return m.hasMessage(name) || last.collection.Get(name) == nil })
}

// resource encodes a message; nil if Envoy would refuse it.
func (m *encodedType) resource(t xds.Type, name string, msg proto.Message) *xds.Resource {
	r, err := xds.NewNamedResource(t, name, msg)
	if err == nil {
		return r
	}
	m.invalid = append(m.invalid, name)
	m.problems = append(m.problems, problem.Problem{
		Where: fmt.Sprintf("%s %q", t, name),
		What:  fmt.Sprintf("not valid for Envoy, so the last good one stays: %v", err),
	})
	return nil
}

// has says whether the collection has the resource with the same bytes.
func (m *encodedType) hasVersion(r *xds.Resource) bool {
	own := m.collection.Get(r.Name())
	return own != nil && own.Version() == r.Version()
}

// wants says whether there is a message of that name.
func (m *encodedType) hasMessage(name string) bool { return m.messages.Get(name) != nil }
