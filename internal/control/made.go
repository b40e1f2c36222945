package control

import (
	"fmt"
	"slices"
	"sort"

	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/gateway"
	"github.com/usherproxy/usher/xds"
)

// messages are the resources of one type before they are encoded, in the order
// of their names.
type messages interface {
	Len() int
	At(i int) proto.Message
	// Slice is the address of the first, by which two lists are known to be one.
	Slice() any
}

// list makes messages of a slice.
type list[M proto.Message] []M

func (l list[M]) Len() int               { return len(l) }
func (l list[M]) At(i int) proto.Message { return l[i] }

func (l list[M]) Slice() any {
	if len(l) == 0 {
		return nil
	}
	return &l[0]
}

// same says whether two lists are one. False says nothing.
func same(a, b messages) bool {
	return a.Len() == b.Len() && a.Slice() == b.Slice()
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
	problems   []gateway.Problem // why
	kept       []string          // what the collection has beside the messages
}

// nothing is what was made before anything was.
func nothing() *made {
	return &made{messages: list[proto.Message]{}, collection: xds.NewCollection(nil, nil)}
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
	return same(m.messages, w.messages) && m.plain() && len(w.withheld) == 0
}

// plain says that the messages are all there is to it.
func (m *made) plain() bool {
	return len(m.invalid) == 0 && len(m.kept) == 0 && len(m.collection.Withheld()) == 0
}

// keepsOld says whether something last good is there that may lead to what
// other types no longer have.
func (m *made) keepsOld() bool {
	known := func(name string) bool { return m.collection.Get(name) != nil }
	return len(m.kept) > 0 || slices.ContainsFunc(m.invalid, known)
}

// encode gives the resources that are new or different, and the names that the
// last collection has and the messages do not. Both lists of messages are
// sorted, so one pass over them does it.
func (m *made) encode(t xds.Type, last *made) (changed []*xds.Resource, gone []string) {
	old, i := last.messages, 0
	leave := func() {
		gone = append(gone, xds.NameOf(old.At(i)))
		i++
	}
	for j := range m.messages.Len() {
		msg := m.messages.At(j)
		if i < old.Len() && old.At(i) == msg && len(last.invalid) == 0 {
			i++
			continue
		}
		name := xds.NameOf(msg)
		for i < old.Len() && xds.NameOf(old.At(i)) < name {
			leave()
		}
		if i < old.Len() && xds.NameOf(old.At(i)) == name {
			i++
		}
		if r := m.resource(t, msg); r != nil && !last.has(r) {
			changed = append(changed, r)
		}
	}
	for i < old.Len() {
		leave()
	}
	gone = append(gone, last.kept...)
	return changed, slices.DeleteFunc(gone, func(name string) bool { return m.wants(name) || last.collection.Get(name) == nil })
}

// resource encodes a message; nil if Envoy would refuse it.
func (m *made) resource(t xds.Type, msg proto.Message) *xds.Resource {
	r, err := xds.NewResource(t, msg)
	if err == nil {
		return r
	}
	m.invalid = append(m.invalid, xds.NameOf(msg))
	m.problems = append(m.problems, gateway.Problem{
		Where: fmt.Sprintf("%s %q", t, xds.NameOf(msg)),
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
func (m *made) wants(name string) bool {
	n := m.messages.Len()
	i := sort.Search(n, func(i int) bool { return xds.NameOf(m.messages.At(i)) >= name })
	return i < n && xds.NameOf(m.messages.At(i)) == name
}
