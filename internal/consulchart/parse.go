package consulchart

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
)

// Bounds of a file, so that aliases cannot multiply.
const (
	maxNodes = 250_000
	maxDepth = 100
)

// parser reads one file into nodes without aliases and merge keys.
type parser struct {
	file   File
	values *Values // gets the file of each node
	nodes  int
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
	root, err := p.expand(doc.Content[0], 0)
	switch {
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

// expand returns a copy of a node in which the aliases and merge keys are replaced by what they stand for.
func (p *parser) expand(n *yaml.Node, depth int) (*yaml.Node, error) {
	if p.nodes++; p.nodes > maxNodes {
		return nil, p.errorAt(n.Line, "the file has more than %d values, those behind aliases counted each time; split it", maxNodes)
	}
	if depth > maxDepth {
		return nil, p.errorAt(n.Line, "nested more than %d levels deep; use fewer levels", maxDepth)
	}
	if n.Kind == yaml.AliasNode {
		return p.expand(n.Alias, depth+1)
	}
	out := *n
	out.Anchor, out.Content = "", nil
	p.values.files[&out] = p.file.Name
	if n.Kind == yaml.MappingNode {
		return &out, p.expandMembers(n, &out, depth)
	}
	for _, child := range n.Content {
		c, err := p.expand(child, depth+1)
		if err != nil {
			return nil, err
		}
		out.Content = append(out.Content, c)
	}
	return &out, nil
}

// expandMembers adds the members of an object to out. Those of a merge key are weaker than the object's own.
func (p *parser) expandMembers(n, out *yaml.Node, depth int) error {
	var merged []*yaml.Node
	for key, value := range configtree.Members(n) {
		v, err := p.expand(value, depth+1)
		if err != nil {
			return err
		}
		if key.ShortTag() == "!!merge" {
			merged = append(merged, configtree.Elements(v)...)
			continue
		}
		k, err := p.expand(key, depth+1)
		if err != nil {
			return err
		}
		switch earlier, _ := member(out, k.Value); {
		case k.Kind != yaml.ScalarNode:
			return p.errorAt(key.Line, "a key that is not text is not allowed; remove it")
		case earlier != nil:
			return p.errorAt(key.Line, "%s: this key is already given at %s, and Helm takes only the last one; remove one of the two",
				key.Value, configtree.At(p.file.Name, earlier.Line))
		}
		out.Content = append(out.Content, k, v)
	}
	for _, m := range merged {
		for key, value := range configtree.Members(m) {
			if indexOf(out, key.Value) < 0 {
				out.Content = append(out.Content, key, value)
			}
		}
	}
	return nil
}

func (p *parser) errorAt(line int, format string, args ...any) error {
	return fmt.Errorf("%s: %s", configtree.At(p.file.Name, line), fmt.Sprintf(format, args...))
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// splitYAMLError returns the line and the text of an error of the library.
func splitYAMLError(err error) (line int, what string) {
	what = configtree.OneLine(err.Error())
	if found := yamlLine.FindStringSubmatch(what); found != nil {
		line, _ = strconv.Atoi(found[1]) // 0 if there is none
		what = found[2]
	}
	return max(1, line), what
}

// syntaxError returns an error of the library with its line, and shows that line.
func (p *parser) syntaxError(err error) error {
	line, what := splitYAMLError(err)
	lines := strings.Split(string(p.file.Text), "\n")
	if tab := tabNear(lines, line, what); tab > 0 {
		return p.tabError(lines, tab)
	}
	return fmt.Errorf("%w\n%s", p.errorAt(line, "this is not YAML: %s; correct it", what), excerpt(lines, line))
}

// tabNear returns the line with a TAB in its indentation that is the cause of an error; 0 if there is none. The error
// has the line where the text or object around began, or is one off. In a text, a TAB further away is allowed.
func tabNear(lines []string, line int, what string) int {
	last := min(line+1, len(lines))
	if strings.Contains(what, "tab character") {
		last = len(lines)
	}
	for near := max(1, line-1); near <= last; near++ {
		if strings.Contains(indentation(lines[near-1]), "\t") {
			return near
		}
	}
	return 0
}

// tabError says how the line has to be indented, in the form of a compiler.
func (p *parser) tabError(lines []string, line int) error {
	indent := indentation(lines[line-1])
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
		indent := indentation(text)
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

// indentation returns the spaces and TABs that a line begins with. A line of nothing else has none.
func indentation(line string) string {
	if strings.TrimSpace(line) == "" {
		return ""
	}
	return line[:len(line)-len(strings.TrimLeft(line, " \t"))]
}

// excerpt shows a line and the one before it, with TABs as arrows.
func excerpt(lines []string, line int) string {
	var shown []string
	for n := max(1, line-1); n <= min(line, len(lines)); n++ {
		text := strings.TrimRight(lines[n-1], "\r")
		indent := indentation(text)
		text = strings.ReplaceAll(indent, "\t", "→") + text[len(indent):]
		shown = append(shown, strings.TrimRight(fmt.Sprintf("%6d | %s", n, text), " "))
	}
	return strings.Join(shown, "\n")
}
