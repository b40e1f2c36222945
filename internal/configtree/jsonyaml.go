package configtree

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"unicode"

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
		return nil, errorAt(markAt(text, offset-1), "this is not JSON: %s; correct it", strings.TrimPrefix(err.Error(), "json: "))
	}
	r := jsonReader{text: text, dec: json.NewDecoder(bytes.NewReader(text)), at: Mark{1, 1}}
	r.dec.UseNumber()
	return r.value()
}

type jsonReader struct {
	text []byte
	dec  *json.Decoder
	at   Mark  // of the value or key that was begun last
	end  int64 // of the token that was read last
}

// value reads a value, or a key.
func (r *jsonReader) value() (*yaml.Node, error) {
	tok, err := r.dec.Token()
	if err != nil {
		return nil, errorAt(r.at, "this is not JSON: %v; correct it", err)
	}
	end := r.dec.InputOffset()
	start := bytes.IndexFunc(r.text[r.end:end], func(c rune) bool { return !unicode.IsSpace(c) && c != ',' && c != ':' })
	r.at = markAt(r.text, int(r.end)+start)
	r.end = end
	var kind yaml.Kind
	switch tok := tok.(type) {
	case json.Number:
		if i, err := tok.Int64(); err == nil {
			return scalar(r.at, i), nil
		}
		f, err := tok.Float64()
		if err != nil {
			return nil, errorAt(r.at, "the number %s is too large; correct it", tok)
		}
		return scalar(r.at, f), nil
	case json.Delim:
		kind = map[json.Delim]yaml.Kind{'{': yaml.MappingNode, '[': yaml.SequenceNode}[tok]
	default:
		return scalar(r.at, tok), nil
	}
	n := &yaml.Node{Kind: kind, Line: r.at.Line, Column: r.at.Column}
	for r.dec.More() { // in an object, keys and values in turn
		child, err := r.value()
		if err != nil {
			return nil, err
		}
		n.Content = append(n.Content, child)
	}
	_, err = r.dec.Token()
	r.end = r.dec.InputOffset()
	return n, err // never an error: the text is JSON
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// yamlError returns an error of the library with its line. The library's text and line do not help when the cause is
// a TAB, so yamlError looks for that first.
func yamlError(text []byte, err error) error {
	if at := indentedByTab(text); at.Line > 0 {
		return errorAt(at, "this line begins with a TAB, and tabs cannot indent YAML; use spaces")
	}
	bad := YAMLError(err)
	return errorAt(bad.Mark, "this is not YAML: %s; correct it", bad.What)
}

// YAMLError returns an error of the YAML library with its line, which is 1 if the library does not say it.
func YAMLError(err error) *SyntaxError {
	bad := SyntaxError{Mark: Mark{Line: 1}, What: OneLine(err.Error())}
	if found := yamlLine.FindStringSubmatch(bad.What); found != nil {
		line, _ := strconv.Atoi(found[1]) // 0 if there is none
		bad.Line, bad.What = max(1, line), found[2]
	}
	return &bad
}

// indentedByTab returns the place of the first TAB in an indentation, or none.
func indentedByTab(text []byte) Mark {
	for i, line := range strings.Split(string(text), "\n") {
		if column := strings.Index(Indentation(line), "\t"); column >= 0 {
			return Mark{i + 1, column + 1}
		}
	}
	return Mark{}
}

// Indentation returns the spaces and TABs that a line begins with. A line of nothing else has none.
func Indentation(line string) string {
	if strings.TrimSpace(line) == "" {
		return ""
	}
	return line[:len(line)-len(strings.TrimLeft(line, " \t"))]
}
