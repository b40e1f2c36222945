// Package configtree reads HCL 1, JSON and YAML into one kind of tree: YAML nodes, each with its line.
//
// In every tree the keys of an object are strings and differ from each other, aliases are resolved, and the Value of
// a number or boolean is written in one way. Every text results in a tree or in a problem of one line.
package configtree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/problem"
)

// The tags of scalars in a tree.
const (
	Null   = "!!null"
	Bool   = "!!bool"
	Int    = "!!int"
	Float  = "!!float"
	String = "!!str"
)

// SyntaxError is the reason why a text cannot be read.
type SyntaxError struct {
	Mark
	Key  string // may be empty
	What string
}

func (e *SyntaxError) Error() string { return e.What }

func errorAt(at Mark, format string, args ...any) error {
	return &SyntaxError{Mark: at, What: fmt.Sprintf(format, args...)}
}

// Mark is a place in a text. Both numbers start at 1; a Column of 0 is not known.
type Mark struct{ Line, Column int }

// MarkOf returns where a node begins.
func MarkOf(n *yaml.Node) Mark { return Mark{n.Line, n.Column} }

// markAt returns the place of the byte at an offset of a text. An offset beyond the end is that of the last byte.
func markAt(text []byte, offset int) Mark {
	before := text[:max(0, min(offset, len(text)-1))]
	start := bytes.LastIndexByte(before, '\n') + 1
	return Mark{1 + bytes.Count(before, []byte("\n")), 1 + utf8.RuneCount(before[start:])}
}

// Parse reads a file of JSON or HCL. It is JSON if it is called so or begins like JSON.
func Parse(file string, text []byte) (*yaml.Node, *problem.Problem) {
	read := parseHCL
	start := bytes.TrimLeftFunc(text, unicode.IsSpace)
	if filepath.Ext(file) == ".json" || bytes.HasPrefix(start, []byte("{")) || bytes.HasPrefix(start, []byte("[")) {
		read = parseJSON
	}
	root, err := read(text)
	if err == nil {
		root, err = new(Expander).Expand(root)
	}
	if err == nil {
		err = normalizer{file}.node(root)
	}
	return root, problemOf(file, err)
}

// ParseYAML reads the documents of a YAML file. It leaves out the empty ones.
func ParseYAML(file string, text []byte) ([]*yaml.Node, *problem.Problem) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var e Expander
	var docs []*yaml.Node
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, problemOf(file, yamlError(text, err))
		}
		root, err := e.Expand(doc.Content[0])
		if err == nil {
			err = normalizer{file}.node(root)
		}
		if err != nil {
			return nil, problemOf(file, err)
		}
		if root.Tag != Null {
			docs = append(docs, root)
		}
	}
}

func problemOf(file string, err error) *problem.Problem {
	bad, ok := errors.AsType[*SyntaxError](err)
	if !ok {
		return nil
	}
	d := Decoder{File: file}
	d.Add(bad.Mark, bad.Key, "%s", OneLine(bad.What))
	return &d.Problems[0]
}

// normalizer brings trees without aliases into the form that the package promises.
type normalizer struct{ file string }

func (r normalizer) node(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		return normalizeScalar(n)
	}
	n.Tag = ""
	if err := r.keys(n); err != nil {
		return err
	}
	for child := range values(n) {
		if err := r.node(child); err != nil {
			return err
		}
	}
	return nil
}

// keys checks the keys of an object.
func (r normalizer) keys(n *yaml.Node) error {
	lines := map[string]int{}
	for key := range Members(n) {
		if key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge" {
			return errorAt(MarkOf(key), "merge keys (<<) and keys that are not text are not supported; copy the keys here")
		}
		if earlier, twice := lines[key.Value]; twice {
			what := fmt.Sprintf("this key is already given at %s; remove one of the two", At(r.file, earlier))
			return &SyntaxError{MarkOf(key), key.Value, what}
		}
		lines[key.Value] = key.Line
		key.Tag = String
	}
	return nil
}

func normalizeScalar(n *yaml.Node) error {
	var v any = n.Value
	if slices.Contains([]string{Null, Bool, Int, Float}, n.ShortTag()) {
		if err := n.Decode(&v); err != nil {
			return errorAt(MarkOf(n), "%q is not understood; put it in quotes if it is text", n.Value)
		}
	}
	switch number := v.(type) {
	case uint64:
		return errorAt(MarkOf(n), "the number %d is too large; correct it", number)
	case float64:
		if math.IsInf(number, 0) || math.IsNaN(number) {
			v = n.Value
		}
	}
	*n = *scalar(MarkOf(n), v)
	return nil
}

// scalar returns the node of a value in its normal form.
func scalar(at Mark, value any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: at.Line, Column: at.Column, Value: fmt.Sprint(value), Tag: String}
	switch value.(type) {
	case nil:
		n.Tag, n.Value = Null, ""
	case bool:
		n.Tag = Bool
	case int, int64:
		n.Tag = Int
	case float64:
		n.Tag = Float
	}
	return n
}

// At returns a place as "file:line".
func At(file string, line int) string { return problem.Position{File: file, Line: line}.String() }

// sameName reports whether two names differ in nothing but capitals and underscores, as Consul's spellings of a key
// do: MaxConnections, max_connections and maxConnections.
func sameName(a, b string) bool {
	return strings.EqualFold(strings.ReplaceAll(a, "_", ""), strings.ReplaceAll(b, "_", ""))
}

// Members returns the keys and values of an object, in the order of the file. Other nodes and nil have none.
func Members(n *yaml.Node) iter.Seq2[*yaml.Node, *yaml.Node] {
	return func(yield func(key, value *yaml.Node) bool) {
		for i := 0; n != nil && n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if !yield(n.Content[i], n.Content[i+1]) {
				return
			}
		}
	}
}

// values returns the values of an object or the elements of a list.
func values(n *yaml.Node) iter.Seq[*yaml.Node] {
	return func(yield func(*yaml.Node) bool) {
		for i, child := range n.Content {
			if (n.Kind != yaml.MappingNode || i%2 == 1) && !yield(child) {
				return
			}
		}
	}
}

// Get returns the key and the value of the member of an object that has the name in any of its spellings, or nil.
func Get(n *yaml.Node, name string) (key, value *yaml.Node) {
	for key, value := range Members(n) {
		if sameName(key.Value, name) {
			return key, value
		}
	}
	return nil, nil
}

// Text returns the string of the member of an object, or "".
func Text(n *yaml.Node, name string) string {
	if _, value := Get(n, name); value != nil && value.Tag == String {
		return value.Value
	}
	return ""
}

// Single returns the element of a list of one, and every other node as it is. In Consul's HCL and JSON, a list of
// one may stand for its element.
func Single(n *yaml.Node) *yaml.Node {
	if n != nil && n.Kind == yaml.SequenceNode && len(n.Content) == 1 {
		return n.Content[0]
	}
	return n
}

// Elements returns the elements of a list, and every other node as the only one.
func Elements(n *yaml.Node) []*yaml.Node {
	switch {
	case n == nil:
		return nil
	case n.Kind == yaml.SequenceNode:
		return n.Content
	}
	return []*yaml.Node{n}
}

// IsSet reports whether a value is other than null, "", 0 and false, and than objects and lists of these. Consul
// prints such values where nothing was set.
func IsSet(n *yaml.Node) bool {
	if n.Kind == yaml.ScalarNode {
		return n.Tag != Null && n.Value != "" && (n.Tag == String || n.Value != "0" && n.Value != "false")
	}
	for child := range values(n) {
		if IsSet(child) {
			return true
		}
	}
	return false
}

// Plain returns the value as encoding/json would decode it. That of a missing node is nil.
func Plain(n *yaml.Node) any {
	if n == nil {
		return nil
	}
	var v any
	_ = n.Decode(&v) // a tree decodes into any
	return v
}

// AtLines completes the Where of problems, which is a path such as "usher.listeners.8080" that starts at parent: it
// puts the line that the path leads to and the path of parent before it.
func AtLines(file string, parent *yaml.Node, parentPath string, problems []problem.Problem) {
	for i, p := range problems {
		path := strings.TrimPrefix(p.Where, ": ")
		var steps []any
		for name := range strings.SplitSeq(path, ".") {
			name, index, _ := strings.Cut(name, "[")
			steps = append(steps, name)
			if i, err := strconv.Atoi(strings.TrimSuffix(index, "]")); err == nil {
				steps = append(steps, i)
			}
		}
		at, _ := (&Decoder{}).Locate(parent, steps...)
		problems[i].At = problem.Position{File: file, Line: at.Line, Column: at.Column}
		problems[i].Where = problems[i].At.String() + ": " + OneLine(join(parentPath, path))
	}
}

// Places returns where the members of an object and of the objects in it are, by their paths, and the elements of their lists.
func Places(file string, n *yaml.Node) map[string]problem.Position {
	places := map[string]problem.Position{}
	var add func(n *yaml.Node, path string)
	add = func(n *yaml.Node, path string) {
		for key, value := range Members(Single(n)) {
			at := join(path, key.Value)
			places[at] = problem.Position{File: file, Line: key.Line, Column: key.Column}
			for i, element := range Elements(value) {
				places[fmt.Sprintf("%s[%d]", at, i)] = problem.Position{File: file, Line: element.Line, Column: element.Column}
			}
			add(value, at)
		}
	}
	add(n, "")
	return places
}

// Describe returns a value in the words of a problem.
func Describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.MappingNode:
		return "an object"
	case n.Tag == Null:
		return "null"
	case n.Tag != String:
		return n.Value
	case len(n.Value) > 64:
		return fmt.Sprintf("a string of %d bytes", len(n.Value))
	}
	return fmt.Sprintf("%q", n.Value)
}

// join appends the name of a member, or another path, to a path.
func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// OneLine returns a text as one line of valid UTF-8.
func OneLine(text string) string {
	isSpace := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "?"), isSpace), " ")
}
