package consulchart

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
)

// parser reads one file into nodes without aliases and merge keys.
type parser struct {
	file   File
	values *Values // gets the file of each node
}

func (p *parser) parse() (*yaml.Node, error) {
	empty := &yaml.Node{Kind: yaml.MappingNode, Line: 1}
	dec := yaml.NewDecoder(bytes.NewReader(p.file.Text))
	var doc, next yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return empty, nil
	case err != nil:
		return nil, p.syntaxError(err)
	}
	root, err := new(configtree.Expander).Expand(doc.Content[0])
	if bad, ok := errors.AsType[*configtree.SyntaxError](err); ok {
		return nil, p.errorAt(bad.Line, "%s", bad.What)
	}
	switch err := p.own(root); {
	case err != nil:
		return nil, err
	case isNull(root):
		return empty, nil
	case root.Kind != yaml.MappingNode:
		return nil, p.errorAt(root.Line, "%s is not allowed; a file of values is an object", configtree.Describe(root))
	}
	if err := dec.Decode(&next); !errors.Is(err, io.EOF) {
		p.values.ignored = append(p.values.ignored, place{p.file.Name, max(next.Line, 1)})
	}
	return root, nil
}

// own records the file of all nodes, and gives objects the members of their merge keys.
func (p *parser) own(n *yaml.Node) error {
	p.values.files[n] = p.file.Name
	if n.Kind == yaml.MappingNode {
		return p.ownMembers(n)
	}
	for _, child := range n.Content {
		if err := p.own(child); err != nil {
			return err
		}
	}
	return nil
}

// ownMembers is own for an object. Members of a merge key are weaker than the object's own.
func (p *parser) ownMembers(n *yaml.Node) error {
	var merged []*yaml.Node
	own := &yaml.Node{Kind: yaml.MappingNode}
	for key, value := range configtree.Members(n) {
		if err := p.own(value); err != nil {
			return err
		}
		if key.ShortTag() == "!!merge" {
			merged = append(merged, configtree.Elements(value)...)
			continue
		}
		key, err := p.ownKey(own, key)
		if err != nil {
			return err
		}
		own.Content = append(own.Content, key, value)
	}
	for _, m := range merged {
		for key, value := range configtree.Members(m) {
			if indexOf(own, key.Value) < 0 {
				own.Content = append(own.Content, key, value)
			}
		}
	}
	n.Content = own.Content
	return nil
}

// ownKey returns a key of an object that has these members before it.
func (p *parser) ownKey(before, key *yaml.Node) (*yaml.Node, error) {
	text := *key
	if key.Kind == yaml.AliasNode {
		text = *key.Alias
	}
	text.Anchor = ""
	switch earlier, _ := member(before, text.Value); {
	case text.Kind != yaml.ScalarNode:
		return nil, p.errorAt(key.Line, "a key that is not text is not allowed; remove it")
	case earlier != nil:
		return nil, p.errorAt(key.Line, "%s: this key is already given at %s, and Helm takes only the last one; remove one of the two",
			text.Value, configtree.At(p.file.Name, earlier.Line))
	}
	p.values.files[&text] = p.file.Name
	return &text, nil
}

func (p *parser) errorAt(line int, format string, args ...any) error {
	return fmt.Errorf("%s: %s", configtree.At(p.file.Name, line), fmt.Sprintf(format, args...))
}

// syntaxError returns an error of the library with its line, and shows that line.
func (p *parser) syntaxError(err error) error {
	bad := configtree.YAMLError(err)
	lines := strings.Split(string(p.file.Text), "\n")
	if tab := tabNear(lines, bad.Line, bad.What); tab > 0 {
		return p.tabError(lines, tab)
	}
	return fmt.Errorf("%w\n%s", p.errorAt(bad.Line, "this is not YAML: %s; correct it", bad.What), excerpt(lines, bad.Line))
}

// tabNear returns the line with a TAB in its indentation that is the cause of an error; 0 if there is none. The error
// has the line where the text or object around began, or is one off. In a text, a TAB further away is allowed.
func tabNear(lines []string, line int, what string) int {
	last := min(line+1, len(lines))
	if strings.Contains(what, "tab character") {
		last = len(lines)
	}
	for near := max(1, line-1); near <= last; near++ {
		if strings.Contains(configtree.Indentation(lines[near-1]), "\t") {
			return near
		}
	}
	return 0
}

// tabError says how the line has to be indented, in the form of a compiler.
func (p *parser) tabError(lines []string, line int) error {
	indent := configtree.Indentation(lines[line-1])
	column := strings.Index(indent, "\t") + 1
	spaces, like := expectedIndent(lines, line)
	advice := fmt.Sprintf("begin it with %d spaces", spaces)
	if like > 0 {
		advice += fmt.Sprintf(", as line %d does", like)
	}
	err := fmt.Errorf("%s:%d:%d: the indentation of this line has %s, and YAML indents with spaces only; %s",
		p.file.Name, line, column, counted(strings.Count(indent, "\t"), "TAB"), advice)
	return fmt.Errorf("%w\n%s", err, excerpt(lines, line))
}

func counted(n int, what string) string {
	if n == 1 {
		return "a " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// opensBlock matches a line after which YAML expects a deeper one.
var opensBlock = regexp.MustCompile(`(:|[|>][-+0-9]*)\s*(#.*)?$`)

// expectedIndent returns how many spaces a line should begin with, going by the line before it that has content; like
// is that line if it begins with the same number.
func expectedIndent(lines []string, line int) (spaces, like int) {
	for before := line - 1; before > 0; before-- {
		text := lines[before-1]
		indent := configtree.Indentation(text)
		if strings.TrimSpace(text) == "" || strings.Contains(indent, "\t") {
			continue
		}
		startsItem := func(line string) bool { return strings.HasPrefix(strings.TrimLeft(line, " \t"), "- ") }
		spaces = len(indent)
		switch {
		case startsItem(text) && startsItem(lines[line-1]):
			return spaces, before
		case startsItem(text):
			spaces += 2
		}
		if opensBlock.MatchString(text) {
			return spaces + 2, 0
		}
		if spaces == len(indent) {
			return spaces, before
		}
		return spaces, 0
	}
	return 0, 0
}

// excerpt shows a line and the one before it, with TABs as arrows.
func excerpt(lines []string, line int) string {
	var shown []string
	for n := max(1, line-1); n <= min(line, len(lines)); n++ {
		text := strings.TrimRight(lines[n-1], "\r")
		indent := configtree.Indentation(text)
		text = strings.ReplaceAll(indent, "\t", "→") + text[len(indent):]
		shown = append(shown, strings.TrimRight(fmt.Sprintf("%6d | %s", n, text), " "))
	}
	return strings.Join(shown, "\n")
}
