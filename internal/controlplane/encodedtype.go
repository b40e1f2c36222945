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

// messageMap holds the messages of the resources of one type, by name. Two that are == are equal.
type messageMap interface {
	// Get returns the message of a name; nil if there is none.
	Get(name string) proto.Message
	// ChangedSince returns the names whose messages differ from those in old, which has the same type. A nil old is empty.
	ChangedSince(old messageMap) iter.Seq[string]
}

// typedMessages implements messageMap for one type of message.
type typedMessages[M interface {
	comparable
	proto.Message
}] struct{ ordered.Map[M] }

func (m typedMessages[M]) Get(name string) proto.Message {
	var none M
	if message := m.Map.Get(name); message != none {
		return message
	}
	return nil
}

func (m typedMessages[M]) ChangedSince(old messageMap) iter.Seq[string] {
	before, _ := old.(typedMessages[M])
	return m.Map.ChangedSince(before.Map)
}

// desired says what the resources of one type have to become.
type desired struct {
	typ         xds.Type
	messages    messageMap
	heldBack    []string // resources that exist and could not be built
	keepOrphans bool     // resources that have lost their message stay
}

// encodedType holds the encoded resources of one type. It is immutable, and Envoys that get the same resources share
// it.
type encodedType struct {
	messages   messageMap
	collection *xds.Collection
	invalid    []string          // the messages that Envoy would reject
	problems   []problem.Problem // why
	orphans    []string          // the resources in collection without a message
}

// update returns the encoded resources that are desired now. It encodes only messages that have changed. Resources
// that are held back or invalid keep their last valid bytes. Without any, the collection lists them as held back, so
// that nothing removes them.
func (t *encodedType) update(d desired) *encodedType {
	if t.messages == d.messages && t.isExact() && len(d.heldBack) == 0 {
		return t
	}
	now := &encodedType{messages: d.messages}
	changed, orphans := now.diff(d.typ, t)

	var removed, heldBack []string
	for _, name := range orphans {
		if d.keepOrphans || slices.Contains(d.heldBack, name) {
			now.orphans = append(now.orphans, name)
		} else {
			removed = append(removed, name)
		}
	}
	for _, name := range slices.Concat(d.heldBack, now.invalid) {
		if t.collection.Get(name) == nil {
			heldBack = append(heldBack, name)
		}
	}
	now.collection = t.collection.Next(changed, removed, heldBack)
	return now
}

// isExact reports whether the collection has exactly the messages.
func (t *encodedType) isExact() bool {
	return len(t.invalid) == 0 && len(t.orphans) == 0 && len(t.collection.HeldBack()) == 0
}

// keepsLastValid reports whether a resource keeps its last valid bytes. It may refer to resources of other types that
// have no message any more.
func (t *encodedType) keepsLastValid() bool {
	known := func(name string) bool { return t.collection.Get(name) != nil }
	return len(t.orphans) > 0 || slices.ContainsFunc(t.invalid, known)
}

// diff returns the resources that are new or different, and the names in the collection before that have no message
// now.
func (t *encodedType) diff(typ xds.Type, before *encodedType) (changed []*xds.Resource, orphans []string) {
	for name := range t.messages.ChangedSince(before.messages) {
		message := t.messages.Get(name)
		if message == nil {
			orphans = append(orphans, name)
			continue
		}
		r, old := t.encode(typ, name, message), before.collection.Get(name)
		if r != nil && (old == nil || old.Version() != r.Version()) {
			changed = append(changed, r)
		}
	}
	for _, name := range before.invalid {
		if message := t.messages.Get(name); message != nil && message == before.messages.Get(name) {
			t.encode(typ, name, message) // it is still invalid
		}
	}
	orphans = append(orphans, before.orphans...)
	return changed, slices.DeleteFunc(orphans, func(name string) bool {
		return t.messages.Get(name) != nil || before.collection.Get(name) == nil
	})
}

// encode encodes a message. It returns nil if Envoy would reject it.
func (t *encodedType) encode(typ xds.Type, name string, message proto.Message) *xds.Resource {
	r, err := xds.NewResource(typ, name, message)
	if err == nil {
		return r
	}
	t.invalid = append(t.invalid, name)
	t.problems = append(t.problems, problem.Problem{
		Where: fmt.Sprintf("%s %q", typ, name),
		What:  fmt.Sprintf("Envoy would reject it, so the last valid one stays (a bug in Usher; please report it): %v", err),
	})
	return nil
}
