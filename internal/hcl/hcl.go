// Package hcl reads HCL 1, the language of Consul's config entries and of the
// operator's file. The library panics on some texts,
// among them files that are cut off while they are written; here every text gives
// a tree or an *Error with a line.
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

// The library recurses, and a stack that is full ends the process, whatever is
// recovered.
const (
	maxOpen  = 50_000 // brackets and braces in a text
	maxDepth = 100    // of objects and lists in each other
)

// Error is why a text cannot be read.
type Error struct {
	Line int // from 1 on
	What string
}

// Error implements error, in one line.
func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.What) }

// Keys is what becomes of a key that is assigned twice.
type Keys bool

// The two ways to read a key that is assigned twice.
const (
	Unique   Keys = true  // it is an error
	Repeated Keys = false // it is in the tree twice
)

// Parse returns the tree of a text: HCL, or JSON if it begins with a brace. Every
// key and literal in the tree has a value: Token.Value does not panic. An error is
// an *Error.
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

// Decode stores what a node of a tree says in v, as the library does. An error is
// of one line.
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

// recovered makes an error of a panic. Call it deferred.
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

// errorOf finds the line of an error of the library: it has it as a position, only
// in its text ("At 3:5: what"), or not at all.
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

// checker demands that every key and literal has a value, for the library panics
// where it has none, and that the tree is not deep.
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

// line returns the line of a token. Those of JSON do not have theirs.
func (c checker) line(t token.Token) int {
	if t.Pos.Line > 0 {
		return t.Pos.Line
	}
	return lineOf(c.text, bytes.Index(c.text, []byte(t.Text))+1)
}

// short makes a text fit for a message.
func short(text string) string {
	const most = 64
	if len(text) > most {
		text = text[:most] + "…"
	}
	return oneLine(text)
}

// oneLine makes a text fit for a message of one line.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	return strings.Join(strings.Fields(text), " ")
}
