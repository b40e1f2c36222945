package configdir

import (
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/hcl/hcl/ast"

	"github.com/usherproxy/usher/internal/hcl"
)

// parseHCL reads HCL 1, the language of Consul's config entries and agent
// files. Blocks of one name become a list; a single one stays an object.
func parseHCL(file string, text []byte) (*node, error) {
	tree, err := hcl.Parse(text, hcl.Repeated)
	if bad, ok := errors.AsType[*hcl.Error](err); ok {
		return nil, problemAt(place{file, bad.Line}, "", "this is not HCL: %s; correct it", bad.What)
	}
	r := hclReader{file: file}
	return r.object(place{file, 1}, tree)
}

// oneLine makes an error of a library fit for a message of one line.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

type hclReader struct {
	file string
}

func (r hclReader) object(at place, items *ast.ObjectList) (*node, error) {
	n := &node{at: at, kind: object}
	assigned := map[string]bool{}
	for _, item := range items.Items {
		f, err := r.item(item.Keys, item.Val)
		if err != nil {
			return nil, err
		}
		block := !item.Assign.IsValid()
		if earlier := n.exactly(f.name); earlier != nil {
			if !block || assigned[f.name] {
				return nil, twice(f.at, f.name, earlier.at)
			}
			earlier.value = appendBlock(earlier.value, f.value)
			continue
		}
		assigned[f.name] = !block
		n.fields = append(n.fields, f)
	}
	return n, nil
}

// twice is the problem of a key that is given a second time.
func twice(at place, name string, earlier place) error {
	return problemAt(at, name, "this key is already given at %s; remove one of the two", earlier)
}

// appendBlock makes a list of repeated blocks.
func appendBlock(earlier, block *node) *node {
	if earlier.kind == list {
		earlier.items = append(earlier.items, block)
		return earlier
	}
	return &node{at: earlier.at, kind: list, items: []*node{earlier, block}}
}

// item reads `key value`, or `key "label" { … }`, which is key { label { … } }.
func (r hclReader) item(keys []*ast.ObjectKey, val ast.Node) (field, error) {
	at := place{r.file, keys[0].Pos().Line}
	name := fmt.Sprint(keys[0].Token.Value())
	if len(keys) > 1 {
		inner, err := r.item(keys[1:], val)
		if err != nil {
			return field{}, err
		}
		return field{name: name, at: at, value: &node{at: at, kind: object, fields: []field{inner}}}, nil
	}
	value, err := r.value(val)
	return field{name: name, at: at, value: value}, err
}

func (r hclReader) value(val ast.Node) (*node, error) {
	at := place{r.file, val.Pos().Line}
	switch val := val.(type) {
	case *ast.LiteralType:
		return &node{at: at, kind: scalar, scalar: val.Token.Value()}, nil
	case *ast.ObjectType:
		return r.object(at, val.List)
	case *ast.ListType:
		n := &node{at: at, kind: list}
		for _, element := range val.List {
			item, err := r.value(element)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, item)
		}
		return n, nil
	}
	return nil, problemAt(at, "", "this value is not understood; write a string, number, boolean, list or object")
}
