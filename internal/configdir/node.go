package configdir

import (
	"fmt"
	"strings"
)

// kind says what a node is.
type kind uint8

const (
	null kind = iota
	scalar
	list
	object
)

// node is a value of a file with the place it stands at. HCL, JSON and YAML
// are all read into nodes, so that everything after that can name a line.
type node struct {
	at     place
	kind   kind
	scalar any     // string, bool, int64 or float64
	items  []*node // of a list
	fields []field // of an object, in the file's order, names unique
}

// field is a member of an object.
type field struct {
	name  string
	at    place
	value *node
}

// place is where something stands. Lines count from 1.
type place struct {
	file string
	line int
}

// String gives "file:line".
func (p place) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

// get gives the member of an object whose name means the same as name, or nil.
func (n *node) get(name string) *field {
	if n == nil {
		return nil
	}
	for i := range n.fields {
		if normal(n.fields[i].name) == normal(name) {
			return &n.fields[i]
		}
	}
	return nil
}

// exactly gives the member of an object that is spelled as name, or nil.
func (n *node) exactly(name string) *field {
	for i := range n.fields {
		if n.fields[i].name == name {
			return &n.fields[i]
		}
	}
	return nil
}

// single gives the element of a list of one, and anything else as it is.
// Consul's HCL and JSON let a list of one stand for its element.
func (n *node) single() *node {
	if n != nil && n.kind == list && len(n.items) == 1 {
		return n.items[0]
	}
	return n
}

// text gives the string of the member name, "" where there is none.
func (n *node) text(name string) string {
	f := n.get(name)
	if f == nil {
		return ""
	}
	s, _ := f.value.scalar.(string)
	return s
}

// says is false for what means the same as nothing: null, "", 0, false, and
// lists and objects of nothing else. Consul prints such values where nothing
// was set.
func (n *node) says() bool {
	switch n.kind {
	case scalar:
		return n.scalar != "" && n.scalar != false && n.scalar != int64(0) && n.scalar != float64(0)
	case list:
		for _, item := range n.items {
			if item.says() {
				return true
			}
		}
	case object:
		for _, f := range n.fields {
			if f.value.says() {
				return true
			}
		}
	}
	return false
}

// plain gives the value as encoding/json would decode it, for what is opaque.
func (n *node) plain() any {
	switch n.kind {
	case scalar:
		return n.scalar
	case list:
		out := make([]any, len(n.items))
		for i, item := range n.items {
			out[i] = item.plain()
		}
		return out
	case object:
		out := make(map[string]any, len(n.fields))
		for _, f := range n.fields {
			out[f.name] = f.value.plain()
		}
		return out
	}
	return nil
}

// describe names the value in a problem.
func (n *node) describe() string {
	switch n.kind {
	case scalar:
		if s, ok := n.scalar.(string); ok {
			if len(s) > 64 {
				return fmt.Sprintf("a string of %d bytes", len(s))
			}
			return fmt.Sprintf("%q", s)
		}
		return fmt.Sprint(n.scalar)
	case list:
		return "a list"
	case object:
		return "an object"
	}
	return "null"
}

// locate follows steps, names of members and indexes of lists, and gives the
// place and the path of what they lead to. Where a step leads nowhere, the
// place is that of the last thing there is. Names that are not in the file
// are written as spell says.
func (n *node) locate(spell func(string) string, steps ...any) (place, string) {
	at, path := n.at, ""
	for _, step := range steps {
		switch step := step.(type) {
		case int:
			if n != nil && n.kind == list && step < len(n.items) {
				n = n.items[step]
				at = n.at
				path += fmt.Sprintf("[%d]", step)
			}
		case string:
			f := n.single().get(step)
			if f == nil {
				path, n = join(path, spell(step)), nil
				continue
			}
			at, path, n = f.at, join(path, f.name), f.value
		}
	}
	return at, path
}

// join appends a member's name to a path.
func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// normal gives the form in which the spellings of a name that Consul takes are
// equal: MaxConnections, max_connections and maxConnections.
func normal(name string) string {
	return strings.ToLower(strings.ReplaceAll(name, "_", ""))
}
