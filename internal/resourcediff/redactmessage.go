package resourcediff

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/usherproxy/usher/internal/redaction"
)

// RedactMessage returns a copy of a resource without what Redact replaces in its tree.
func RedactMessage(a *anypb.Any) (*anypb.Any, error) {
	r := Resources{}
	if err := r.Add("", a); err != nil {
		return nil, err
	}
	tree, _ := r.Redact()[a.TypeUrl][""].(map[string]any)
	redacted := proto.CloneOf(a)
	return redacted, applyTree(redacted.ProtoReflect(), tree)
}

// applyTree changes the texts of a message to those of its redacted tree.
func applyTree(m protoreflect.Message, tree map[string]any) error {
	if known, ok := m.Interface().(*anypb.Any); ok {
		return applyInside(known, tree)
	}
	for name, t := range tree {
		field := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		if field == nil {
			continue // @type
		}
		if err := applyField(m, field, t); err != nil {
			return err
		}
	}
	return nil
}

// hasOwnJSON reports whether a message has a special form in JSON, which does not have its fields.
func hasOwnJSON(m protoreflect.MessageDescriptor) bool {
	return m != nil && m.ParentFile().Package() == "google.protobuf" && m.Name() != "Any" && m.Name() != "Empty"
}

// applyOwnJSON replaces a message by its redacted form in JSON. One without texts cannot have been redacted in part.
func applyOwnJSON(m protoreflect.Message, t Tree) error {
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	redacted := m.New().Interface()
	if err := protojson.Unmarshal(text, redacted); err != nil {
		if t != redaction.Redacted {
			return err
		}
		hideAll(m) // such as a duration
		return nil
	}
	proto.Reset(m.Interface())
	proto.Merge(m.Interface(), redacted)
	return nil
}

// applyInside is applyTree for what an Any carries.
func applyInside(a *anypb.Any, tree map[string]any) error {
	if a.TypeUrl == "" {
		return nil // it carries nothing
	}
	inside, err := a.UnmarshalNew()
	if err != nil {
		return err
	}
	m := inside.ProtoReflect()
	if wrapped, ok := tree["value"]; ok && hasOwnJSON(m.Descriptor()) {
		err = applyOwnJSON(m, wrapped)
	} else {
		err = applyTree(m, tree)
	}
	if err != nil {
		return err
	}
	return anypb.MarshalFrom(a, inside, proto.MarshalOptions{Deterministic: true})
}

func applyField(m protoreflect.Message, field protoreflect.FieldDescriptor, t Tree) error {
	if hasOwnJSON(field.Message()) && !field.IsList() {
		return applyOwnJSON(m.Mutable(field).Message(), t)
	}
	switch t := t.(type) {
	case string:
		applyText(m, field, t)
	case []any:
		list := m.Mutable(field).List()
		for i, item := range t {
			if hasOwnJSON(field.Message()) {
				if err := applyOwnJSON(list.Get(i).Message(), item); err != nil {
					return err
				}
				continue
			}
			switch item := item.(type) {
			case string:
				if field.Kind() == protoreflect.StringKind {
					list.Set(i, protoreflect.ValueOfString(item))
				}
			case map[string]any:
				if err := applyTree(list.Get(i).Message(), item); err != nil {
					return err
				}
			}
		}
	case map[string]any:
		if !field.IsMap() {
			return applyTree(m.Mutable(field).Message(), t)
		}
		return applyMap(m.Mutable(field).Map(), field, t)
	}
	return nil
}

// applyMap is applyTree for the values of a map.
func applyMap(values protoreflect.Map, field protoreflect.FieldDescriptor, tree map[string]any) (err error) {
	values.Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
		item, there := tree[fmt.Sprint(key)]
		if there && hasOwnJSON(field.MapValue().Message()) {
			err = applyOwnJSON(value.Message(), item)
			return err == nil
		}
		switch t := item.(type) {
		case string:
			if field.MapValue().Kind() == protoreflect.StringKind {
				values.Set(key, protoreflect.ValueOfString(t))
			}
		case map[string]any:
			err = applyTree(value.Message(), t)
		}
		return err == nil
	})
	return err
}

// applyText sets a field to a text of the tree. What was not text before stands for all that is in it.
func applyText(m protoreflect.Message, field protoreflect.FieldDescriptor, text string) {
	switch {
	case field.IsList() || field.IsMap():
		if text == redaction.Redacted {
			m.Clear(field)
		}
	case field.Kind() == protoreflect.StringKind:
		m.Set(field, protoreflect.ValueOfString(text))
	case field.Kind() == protoreflect.BytesKind && text == redaction.Redacted:
		m.Set(field, protoreflect.ValueOfBytes([]byte(redaction.Redacted)))
	case field.Message() != nil && text == redaction.Redacted:
		hideAll(m.Mutable(field).Message())
	case field.Message() == nil && text == redaction.Redacted: // a number
		m.Clear(field)
	}
}

// hideAll replaces all texts in a message, and clears everything else in it.
func hideAll(m protoreflect.Message) {
	if packed, ok := m.Interface().(*anypb.Any); ok {
		proto.Reset(packed)
		return
	}
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsList() || field.IsMap():
			m.Clear(field)
		case field.Kind() == protoreflect.StringKind:
			m.Set(field, protoreflect.ValueOfString(redaction.Redacted))
		case field.Kind() == protoreflect.BytesKind:
			m.Set(field, protoreflect.ValueOfBytes([]byte(redaction.Redacted)))
		case field.Message() != nil:
			hideAll(value.Message())
		default:
			m.Clear(field)
		}
		return true
	})
}
