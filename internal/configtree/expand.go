package configtree

import "go.yaml.in/yaml/v3"

// The bounds of a file, so that aliases cannot multiply and recursion ends.
const (
	maxValues = 250_000 // those behind an alias counted each time
	maxDepth  = 100     // of objects and lists in each other
)

// Expander replaces aliases by what they stand for. It is for the documents of one file.
type Expander struct{ values int }

// Expand returns a copy of a tree in which each value that is an alias is a separate copy. Keys stay as they are. The
// error is a *SyntaxError.
func (e *Expander) Expand(root *yaml.Node) (*yaml.Node, error) { return e.expand(root, 0) }

func (e *Expander) expand(n *yaml.Node, depth int) (*yaml.Node, error) {
	if n.Kind == yaml.AliasNode {
		return e.expand(n.Alias, depth)
	}
	if e.values++; e.values > maxValues {
		return nil, errorAt(MarkOf(n), "the file has more than %d values, those behind aliases counted each time; split it", maxValues)
	}
	if depth > maxDepth {
		return nil, errorAt(MarkOf(n), "nested more than %d levels deep; use fewer levels", maxDepth)
	}
	out := *n
	out.Anchor, out.Content = "", nil
	for i, child := range n.Content {
		if n.Kind != yaml.MappingNode || i%2 == 1 {
			var err error
			if child, err = e.expand(child, depth+1); err != nil {
				return nil, err
			}
		}
		out.Content = append(out.Content, child)
	}
	return &out, nil
}
