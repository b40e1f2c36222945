package configtree

import (
	"bytes"
	"errors"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/parser"
	"github.com/hashicorp/hcl/hcl/scanner"
	"github.com/hashicorp/hcl/hcl/token"
	"go.yaml.in/yaml/v3"
)

// maxOpen bounds the brackets and braces of a text. The library recurses, and a stack overflow ends the process.
const maxOpen = 50_000

// Label is the HeadComment of the object that a label makes of a block: `gateway "a" {}` is read as gateway { a {}
// }.
const Label = "label"

// parseHCL reads HCL 1. Blocks of one name become a list; a single one stays an object. The library panics on some
// texts, for example on files that are not written completely.
func parseHCL(text []byte) (root *yaml.Node, err error) {
	defer func() {
		switch cause := recover().(type) {
		case nil:
		case *SyntaxError: // of hclLiteral
			err = cause
		default:
			err = errorAt(markAt(text, len(text)), "this is not HCL: %v; correct it", cause)
		}
	}()
	if n := bytes.Count(text, []byte("{")) + bytes.Count(text, []byte("[")); n > maxOpen {
		return nil, errorAt(Mark{Line: 1}, "the file has %d brackets; the limit is %d; check the file for generated or repeated content", n, maxOpen)
	}
	file, err := parser.ParseDontErrorOnDuplicateKeys(text)
	if err != nil {
		at := markAt(text, len(text))
		if bad, ok := errors.AsType[*parser.PosError](err); ok {
			at, err = markOfToken(bad.Pos), bad.Err
		}
		if open := openBlock(text); open.Line > 0 && strings.HasSuffix(err.Error(), "RBRACE got: EOF") {
			return nil, errorAt(open, "this is not HCL: the { in this line is not closed; add a }")
		}
		return nil, errorAt(at, "this is not HCL: %v; correct it", err)
	}
	return hclObject(Mark{1, 1}, file.Node.(*ast.ObjectList)), nil
}

// markOfToken returns a position of the library. Some of its errors have none.
func markOfToken(pos token.Pos) Mark { return Mark{max(1, pos.Line), pos.Column} }

// openBlock returns the place of the last brace that is not closed, or none.
func openBlock(text []byte) Mark {
	var open []Mark
	s := scanner.New(text)
	s.Error = func(token.Pos, string) {}
	for t := s.Scan(); t.Type != token.EOF; t = s.Scan() {
		switch {
		case t.Type == token.LBRACE:
			open = append(open, markOfToken(t.Pos))
		case t.Type == token.RBRACE && len(open) > 0:
			open = open[:len(open)-1]
		}
	}
	if len(open) == 0 {
		return Mark{}
	}
	return open[len(open)-1]
}

func hclObject(at Mark, items *ast.ObjectList) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Line: at.Line, Column: at.Column}
	blocks := map[string]*yaml.Node{}
	for _, item := range items.Items {
		key, value := hclItem(item)
		earlier := blocks[key.Value]
		switch isBlock := !item.Assign.IsValid(); {
		case isBlock && earlier == nil:
			blocks[key.Value] = value
			fallthrough
		case !isBlock:
			n.Content = append(n.Content, key, value)
		case earlier.Kind == yaml.SequenceNode:
			earlier.Content = append(earlier.Content, value)
		default:
			first := *earlier
			*earlier = yaml.Node{Kind: yaml.SequenceNode, Line: first.Line, Column: first.Column, Content: []*yaml.Node{&first, value}}
		}
	}
	return n
}

// hclItem reads `key value` and `key "label" { … }`.
func hclItem(item *ast.ObjectItem) (key, value *yaml.Node) {
	value = hclValue(item.Val)
	for _, k := range slices.Backward(item.Keys[1:]) {
		label := hclLiteral(k.Token)
		value = &yaml.Node{Kind: yaml.MappingNode, Line: label.Line, Column: label.Column, HeadComment: Label, Content: []*yaml.Node{label, value}}
	}
	return hclLiteral(item.Keys[0].Token), value
}

func hclValue(val ast.Node) *yaml.Node {
	switch val := val.(type) {
	case *ast.LiteralType:
		return hclLiteral(val.Token)
	case *ast.ObjectType:
		return hclObject(markOfToken(val.Pos()), val.List)
	}
	at := markOfToken(val.Pos())
	n := &yaml.Node{Kind: yaml.SequenceNode, Line: at.Line, Column: at.Column}
	for _, element := range val.(*ast.ListType).List {
		n.Content = append(n.Content, hclValue(element))
	}
	return n
}

// hclLiteral reads a key or a value. Token.Value panics if the token has none. hclLiteral then panics with the
// problem, which parseHCL returns.
func hclLiteral(t token.Token) *yaml.Node {
	defer func() {
		if recover() != nil {
			panic(errorAt(markOfToken(t.Pos), "this is not HCL: %.64s is neither a number nor a text that HCL understands; correct it", t.Text))
		}
	}()
	return scalar(markOfToken(t.Pos), t.Value())
}
