// Package hcl reads HCL 1, the language of Consul's config entries and of the
// operator's file. The library panics on some texts, for example on files that are
// not written completely. This package returns a tree or an *Error with a line for
// every text.
package hcl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/parser"
	"github.com/hashicorp/hcl/hcl/token"
)

// The library recurses. A stack overflow ends the process, and recover cannot stop
// that.
const (
	maxOpen  = 50_000 // brackets and braces in a text
	maxDepth = 100    // of nested objects and lists
)

// Error says why a text cannot be read, and where.
type Error struct {
	Line int // starts at 1
	What string
}

// Error implements error. The text is one line.
func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.What) }

// Keys says how Parse treats a key that is assigned twice.
type Keys bool

// The two ways to read a key that is assigned twice.
const (
	Unique   Keys = true  // Parse returns an error
	Repeated Keys = false // the tree contains it twice
)

// Parse returns the tree of a text. The text is JSON if it begins with a brace, and
// otherwise HCL. Token.Value does not panic for any key or literal of the tree. An
// error is an *Error.
func Parse(text []byte, keys Keys) (tree *ast.ObjectList, err error) {
	if n := bytes.Count(text, []byte("{")) + bytes.Count(text, []byte("[")); n > maxOpen {
		return nil, &Error{Line: 1, What: fmt.Sprintf("it has %d brackets, and %d are taken; split the file", n, maxOpen)}
	}
	file, err := parse(text, keys)
	if err != nil {
		return nil, errorOf(text, err)
	}
	tree, ok := file.Node.(*ast.ObjectList)
	if !ok {
		return nil, &Error{Line: 1, What: "it is not a list of blocks and `key = value` lines"}
	}
	if err := (checker{text}).check(tree, 0); err != nil {
		return nil, err
	}
	return tree, nil
}

// Decode decodes a node of a tree into v, as the library does. The text of an error
// is one line.
func Decode(v any, node ast.Node) error {
	err := func() (err error) {
		defer recovered(&err)
		return hcl.DecodeObject(v, node)
	}()
	if err != nil {
		return errors.New(oneLine(err.Error()))
	}
	return nil
}

func parse(text []byte, keys Keys) (file *ast.File, err error) {
	defer recovered(&err)
	switch {
	case isJSON(text):
		return hcl.ParseBytes(text)
	case keys == Unique:
		return parser.Parse(text)
	}
	return parser.ParseDontErrorOnDuplicateKeys(text)
}

// recovered turns a panic into an error. Defer it.
func recovered(err *error) {
	if cause := recover(); cause != nil {
		*err = fmt.Errorf("%v", cause)
	}
}

func isJSON(text []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeftFunc(text, unicode.IsSpace), []byte("{"))
}

var (
	before = regexp.MustCompile(`^(?:At )?(\d+):\d+: `)
	within = regexp.MustCompile(` at (\d+):\d+`)
)

// errorOf returns an error of the library with its line. The library's error has the
// line as a position, only in its text ("At 3:5: what"), or not at all.
func errorOf(text []byte, err error) *Error {
	if at, ok := errors.AsType[*parser.PosError](err); ok {
		return &Error{Line: max(1, at.Pos.Line), What: oneLine(at.Err.Error())}
	}
	what := oneLine(err.Error())
	for _, place := range []*regexp.Regexp{before, within} {
		if found := place.FindStringSubmatch(what); found != nil {
			if line, err := strconv.Atoi(found[1]); err == nil {
				return &Error{Line: max(1, line), What: before.ReplaceAllString(what, "")}
			}
		}
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](json.Unmarshal(text, new(json.RawMessage))); ok && isJSON(text) {
		return &Error{Line: lineOf(text, int(syntax.Offset)), What: oneLine(syntax.Error())}
	}
	return &Error{Line: lineOf(text, len(text)), What: what}
}

// lineOf returns the line of the byte before offset.
func lineOf(text []byte, offset int) int {
	return 1 + bytes.Count(text[:max(0, min(offset, len(text))-1)], []byte("\n"))
}

// checker checks that every key and literal has a value, because Token.Value panics
// if it has none. It also bounds the depth of the tree.
type checker struct{ text []byte }

func (c checker) check(node ast.Node, depth int) error {
	if depth > maxDepth {
		return &Error{Line: max(1, node.Pos().Line), What: fmt.Sprintf("objects and lists are in each other more than %d deep", maxDepth)}
	}
	switch node := node.(type) {
	case *ast.ObjectList:
		for _, item := range node.Items {
			if err := c.item(item, depth); err != nil {
				return err
			}
		}
	case *ast.ObjectType:
		return c.check(node.List, depth+1)
	case *ast.ListType:
		for _, element := range node.List {
			if err := c.check(element, depth+1); err != nil {
				return err
			}
		}
	case *ast.LiteralType:
		return c.token(node.Token)
	}
	return nil
}

func (c checker) item(item *ast.ObjectItem, depth int) error {
	for _, key := range item.Keys {
		if err := c.token(key.Token); err != nil {
			return err
		}
	}
	return c.check(item.Val, depth+len(item.Keys))
}

func (c checker) token(t token.Token) (err error) {
	defer func() {
		if recover() != nil {
			err = &Error{Line: c.line(t), What: fmt.Sprintf("%s is not understood", short(t.Text))}
		}
	}()
	t.Value()
	return nil
}

// line returns the line of a token. The tokens of JSON have no position, so line
// searches the text for them.
func (c checker) line(t token.Token) int {
	if t.Pos.Line > 0 {
		return t.Pos.Line
	}
	return lineOf(c.text, bytes.Index(c.text, []byte(t.Text))+1)
}

// short returns the beginning of a text as one line.
func short(text string) string {
	const most = 64
	if len(text) > most {
		text = text[:most] + "…"
	}
	return oneLine(text)
}

// oneLine returns a text as one line of valid UTF-8.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	return strings.Join(strings.Fields(text), " ")
}
