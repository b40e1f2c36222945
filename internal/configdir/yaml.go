package configdir

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxYAMLNodes bounds what a file may grow to through its aliases.
const maxYAMLNodes = 100_000

// parseYAML reads the documents of a YAML file; empty ones count for nothing.
func parseYAML(file string, text []byte) ([]*node, error) {
	var docs []*node
	r := yamlReader{file: file}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, yamlProblem(file, text, err)
		}
		root, err := r.value(doc.Content[0])
		if err != nil {
			return nil, err
		}
		if root.kind != null {
			docs = append(docs, root)
		}
	}
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// yamlProblem names the line of a syntax error. The parser's own message and
// line lead nowhere when the cause is a TAB, so that is looked for first.
func yamlProblem(file string, text []byte, err error) error {
	if line := indentedByTab(text); line > 0 {
		return problemAt(place{file, line}, "", "this line begins with a TAB, and tabs cannot indent YAML; use spaces")
	}
	line, what := 1, err.Error()
	if m := yamlLine.FindStringSubmatch(oneLine(what)); m != nil {
		what = m[2]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
	}
	return problemAt(place{file, line}, "", "this is not YAML: %s; correct it", what)
}

// indentedByTab gives the first line with a TAB in its indentation, or 0.
func indentedByTab(text []byte) int {
	for i, line := range strings.Split(string(text), "\n") {
		indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		if strings.Contains(indent, "\t") && strings.TrimSpace(line) != "" {
			return i + 1
		}
	}
	return 0
}

type yamlReader struct {
	file  string
	nodes int
}

func (r *yamlReader) value(y *yaml.Node) (*node, error) {
	at := place{r.file, y.Line}
	if r.nodes++; r.nodes > maxYAMLNodes {
		return nil, problemAt(at, "", "the file has more than %d values, aliases counted; split it", maxYAMLNodes)
	}
	switch y.Kind {
	case yaml.AliasNode:
		return r.value(y.Alias)
	case yaml.MappingNode:
		return r.object(at, y)
	case yaml.SequenceNode:
		n := &node{at: at, kind: list}
		for _, element := range y.Content {
			item, err := r.value(element)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, item)
		}
		return n, nil
	}
	return r.scalar(at, y)
}

func (r *yamlReader) object(at place, y *yaml.Node) (*node, error) {
	n := &node{at: at, kind: object}
	for i := 0; i+1 < len(y.Content); i += 2 {
		key := y.Content[i]
		keyAt := place{r.file, key.Line}
		if key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge" {
			return nil, problemAt(keyAt, key.Value, "only plain keys are read; write the keys out")
		}
		if earlier := n.exactly(key.Value); earlier != nil {
			return nil, twice(keyAt, key.Value, earlier.at)
		}
		value, err := r.value(y.Content[i+1])
		if err != nil {
			return nil, err
		}
		n.fields = append(n.fields, field{name: key.Value, at: keyAt, value: value})
	}
	return n, nil
}

func (r *yamlReader) scalar(at place, y *yaml.Node) (*node, error) {
	n := &node{at: at, kind: scalar}
	var err error
	switch y.ShortTag() {
	case "!!null":
		n.kind = null
	case "!!bool":
		var v bool
		err = y.Decode(&v)
		n.scalar = v
	case "!!int":
		var v int64
		err = y.Decode(&v)
		n.scalar = v
	case "!!float":
		var v float64
		err = y.Decode(&v)
		n.scalar = v
	default:
		n.scalar = y.Value
	}
	if err != nil {
		return nil, problemAt(at, "", "%q is not understood; put it in quotes if it is text", y.Value)
	}
	return n, nil
}
