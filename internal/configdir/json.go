package configdir

import (
	"bytes"
	"encoding/json"
	"errors"
	"sort"
	"strings"
)

// parseJSON reads one JSON value. encoding/json gives offsets, from which the
// lines are counted.
func parseJSON(file string, text []byte) (*node, error) {
	r := jsonReader{file: file, dec: json.NewDecoder(bytes.NewReader(text))}
	r.dec.UseNumber()
	for i, b := range text {
		if b == '\n' {
			r.newlines = append(r.newlines, int64(i))
		}
	}
	// The decoder's tokens have no exact offset of what is wrong.
	var whole json.RawMessage
	if err := json.Unmarshal(text, &whole); err != nil {
		return nil, r.problem(err, int64(len(text)))
	}
	return r.value()
}

type jsonReader struct {
	file     string
	dec      *json.Decoder
	newlines []int64 // offsets
}

// here is the place of the token that was read last.
func (r *jsonReader) here() place { return r.place(r.dec.InputOffset() - 1) }

func (r *jsonReader) place(offset int64) place {
	line := sort.Search(len(r.newlines), func(i int) bool { return r.newlines[i] >= offset })
	return place{r.file, line + 1}
}

// problem gives a syntax error in a text of that length with its line.
func (r *jsonReader) problem(err error, length int64) error {
	at := r.place(length - 1)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) && syntax.Offset < length {
		at = r.place(syntax.Offset - 1)
	}
	return problemAt(at, "", "this is not JSON: %s; correct it", strings.TrimPrefix(err.Error(), "json: "))
}

func (r *jsonReader) value() (*node, error) {
	tok, err := r.dec.Token()
	if err != nil {
		return nil, err
	}
	n := &node{at: r.here(), kind: scalar, scalar: tok}
	switch tok := tok.(type) {
	case json.Delim:
		n.scalar = nil
		if tok == '{' {
			n.kind = object
			return n, r.object(n)
		}
		n.kind = list
		return n, r.list(n)
	case json.Number:
		if n.scalar, err = number(tok); err != nil {
			return nil, problemAt(n.at, "", "the number %s is too large; correct it", tok)
		}
	case nil:
		n.kind = null
	}
	return n, nil
}

func number(s json.Number) (any, error) {
	if i, err := s.Int64(); err == nil {
		return i, nil
	}
	return s.Float64()
}

func (r *jsonReader) object(n *node) error {
	for r.dec.More() {
		tok, err := r.dec.Token()
		if err != nil {
			return err
		}
		name, at := tok.(string), r.here()
		if earlier := n.exactly(name); earlier != nil {
			return twice(at, name, earlier.at)
		}
		value, err := r.value()
		if err != nil {
			return err
		}
		n.fields = append(n.fields, field{name: name, at: at, value: value})
	}
	_, err := r.dec.Token()
	return err
}

func (r *jsonReader) list(n *node) error {
	for r.dec.More() {
		item, err := r.value()
		if err != nil {
			return err
		}
		n.items = append(n.items, item)
	}
	_, err := r.dec.Token()
	return err
}
