package configtree

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// parseJSON reads one JSON value.
func parseJSON(text []byte) (*yaml.Node, error) {
	// The decoder of tokens does not have the exact offset of an error.
	if err := json.Unmarshal(text, new(json.RawMessage)); err != nil {
		offset := len(text)
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			offset = int(syntax.Offset)
		}
		return nil, errorAt(lineOf(text, offset), "this is not JSON: %s; correct it", strings.TrimPrefix(err.Error(), "json: "))
	}
	r := jsonReader{text: text, dec: json.NewDecoder(bytes.NewReader(text)), line: 1}
	r.dec.UseNumber()
	return r.value()
}

type jsonReader struct {
	text []byte
	dec  *json.Decoder
	line int // of the token that was read last, which ends at end
	end  int64
}

// value reads a value, or a key.
func (r *jsonReader) value() (*yaml.Node, error) {
	tok, err := r.dec.Token()
	if err != nil {
		return nil, errorAt(r.line, "this is not JSON: %v; correct it", err)
	}
	end := r.dec.InputOffset()
	r.line += bytes.Count(r.text[r.end:end], []byte("\n"))
	r.end = end
	var kind yaml.Kind
	switch tok := tok.(type) {
	case json.Number:
		if i, err := tok.Int64(); err == nil {
			return scalar(r.line, i), nil
		}
		f, err := tok.Float64()
		if err != nil {
			return nil, errorAt(r.line, "the number %s is too large; correct it", tok)
		}
		return scalar(r.line, f), nil
	case json.Delim:
		kind = map[json.Delim]yaml.Kind{'{': yaml.MappingNode, '[': yaml.SequenceNode}[tok]
	default:
		return scalar(r.line, tok), nil
	}
	n := &yaml.Node{Kind: kind, Line: r.line}
	for r.dec.More() { // in an object, keys and values in turn
		child, err := r.value()
		if err != nil {
			return nil, err
		}
		n.Content = append(n.Content, child)
	}
	_, err = r.dec.Token()
	return n, err // never an error: the text is JSON
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// yamlError returns an error of the library with its line. The library's text and line do not help when the cause is
// a TAB, so yamlError looks for that first.
func yamlError(text []byte, err error) error {
	if line := indentedByTab(text); line > 0 {
		return errorAt(line, "this line begins with a TAB, and tabs cannot indent YAML; use spaces")
	}
	found := yamlLine.FindStringSubmatch(OneLine(err.Error()))
	if found == nil {
		return errorAt(1, "this is not YAML: %v; correct it", err)
	}
	line, _ := strconv.Atoi(found[1]) // 0 if there is none
	return errorAt(max(1, line), "this is not YAML: %s; correct it", found[2])
}

// indentedByTab returns the first line with a TAB in its indentation, or 0.
func indentedByTab(text []byte) int {
	for i, line := range strings.Split(string(text), "\n") {
		indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		if strings.Contains(indent, "\t") && strings.TrimSpace(line) != "" {
			return i + 1
		}
	}
	return 0
}
