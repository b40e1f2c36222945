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
	Since(old messages) iter.Seq[string]
}

// list makes messages of a map.
type list[M interface {
	comparable
	proto.Message
}] struct{ ordered.Map[M] }

func (l list[M]) Get(name string) proto.Message {
	var none M
	if m := l.Map.Get(name); m != none {
		return m
	}
	return nil
}

func (l list[M]) Since(old messages) iter.Seq[string] {
	before, _ := old.(list[M])
	return l.ChangedSince(before.Map)
}

// wanted is what is to be made of one type.
type wanted struct {
	typ      xds.Type
	messages messages
	withheld []string // exist, and could not be built
	keep     bool     // nothing is left out that was there before
}

// made is what became of it. It is immutable, and shared by the kinds of Envoys
// that want the same.
type made struct {
	messages   messages
	collection *xds.Collection
	invalid    []string          // the messages that Envoy would refuse
	problems   []problem.Problem // why
	kept       []string          // what the collection has beside the messages
}

// nothing is what was made before anything was.
func nothing() *made {
	return &made{collection: xds.NewCollection(nil, nil)}
}

// next makes what is wanted, starting from what there is. Only messages that
// are others than before are encoded. What is withheld or invalid counts with
// its last good bytes; without any it is named as withheld, so that nobody takes
// it for removed.
func (m *made) next(w wanted) *made {
	if m.is(w) {
		return m
	}
	now := &made{messages: w.messages}
	changed, gone := now.encode(w.typ, m)

	var removed, withheld []string
	for _, name := range gone {
		if w.keep || slices.Contains(w.withheld, name) {
			now.kept = append(now.kept, name)
		} else {
			removed = append(removed, name)
		}
	}
	for _, name := range slices.Concat(w.withheld, now.invalid) {
		if m.collection.Get(name) == nil {
			withheld = append(withheld, name)
		}
	}
	now.collection = m.collection.Next(changed, removed, withheld)
	return now
}

// is says whether what is wanted is there already. False says nothing.
func (m *made) is(w wanted) bool {
	return m.messages == w.messages && m.plain() && len(w.withheld) == 0
}

// plain says that the messages are all there is to it.
func (m *made) plain() bool {
	return len(m.invalid) == 0 && len(m.kept) == 0 && len(m.collection.HeldBack()) == 0
}

// keepsOld says whether something last good is there that may lead to what
// other types no longer have.
func (m *made) keepsOld() bool {
	known := func(name string) bool { return m.collection.Get(name) != nil }
	return len(m.kept) > 0 || slices.ContainsFunc(m.invalid, known)
}

// encode gives the resources that are new or different, and the names that the
// last collection has and the messages do not.
func (m *made) encode(t xds.Type, last *made) (changed []*xds.Resource, gone []string) {
	for name := range m.messages.Since(last.messages) {
		msg := m.messages.Get(name)
		if msg == nil {
			gone = append(gone, name)
		} else if r := m.resource(t, name, msg); r != nil && !last.has(r) {
			changed = append(changed, r)
		}
	}
	for _, name := range last.invalid {
		if msg := m.messages.Get(name); msg != nil && msg == last.messages.Get(name) {
			m.resource(t, name, msg) // says once more why not
		}
	}
	gone = append(gone, last.kept...)
	return changed, slices.DeleteFunc(gone, func(name string) bool { return m.wants(name) || last.collection.Get(name) == nil })
}

// resource encodes a message; nil if Envoy would refuse it.
func (m *made) resource(t xds.Type, name string, msg proto.Message) *xds.Resource {
	r, err := xds.NewResource(t, name, msg)
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
func (m *made) has(r *xds.Resource) bool {
	own := m.collection.Get(r.Name())
	return own != nil && own.Version() == r.Version()
}

// wants says whether there is a message of that name.
func (m *made) wants(name string) bool { return m.messages.Get(name) != nil }
