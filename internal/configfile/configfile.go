// Package configfile reads the operator's own config file (usher serve --config)
// and follows it. The file is HCL:
//
//	usher {
//	  proxy_protocol { trusted_cidrs = ["10.0.16.0/20"] }
//	}
//	gateway "ingress-gateway" {
//	  usher {
//	    proxy_protocol { mode = "strict" }
//	  }
//	}
//
// The object usher is the same as in proxy-defaults' Config and in a gateway's
// Proxy.Config. That of a gateway wins over both; the one that stands alone is
// of all gateways, and gives way to both.
package configfile

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/hashicorp/hcl/hcl/ast"

	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/hcl"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// File is a config file and what it last said. Use Open.
type File struct {
	path    string
	log     *slog.Logger
	again   filewatch.Trigger
	last    []byte
	content settings.File
}

// Open reads the file at path for the first time. Any problem in it is an
// error then: there is no last good content yet that could stay.
func Open(path string, log *slog.Logger) (*File, error) {
	f := &File{path: path, log: log, again: filewatch.NewTrigger()}
	text, err := filewatch.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("config file: %w", err)
	}
	f.read(text)
	if len(f.content.Problems) > 0 {
		var errs []error
		for _, p := range f.content.Problems {
			errs = append(errs, errors.New(p.String()))
		}
		return nil, errors.Join(errs...)
	}
	return f, nil
}

// Content gives what the file said when it was last read. It must not be
// called while Run runs.
func (f *File) Content() settings.File { return f.content }

// Reload makes Run read the file at once, as it does after a change.
func (f *File) Reload() { f.again.Fire() }

func (f *File) read(text []byte) {
	f.content = f.next(text)
	f.last = text
}

// next returns the content if the file now contains text.
func (f *File) next(text []byte) settings.File {
	raw, problems := parse(f.path, text)
	if len(problems) > 0 {
		return settings.File{All: f.content.All, Gateways: f.content.Gateways, Problems: problems}
	}
	next := settings.File{Gateways: make(map[string]settings.Layer, len(raw))}
	// A block that is gone says nothing, and that is good.
	next.All, _ = f.content.All.Update("", nil)
	for _, b := range raw {
		var problems []problem.Problem
		if b.name == everyGateway {
			next.All, problems = f.content.All.Update(b.where, b.usher)
		} else {
			next.Gateways[b.name], problems = f.content.Gateways[b.name].Update(b.where, b.usher)
		}
		next.Problems = append(next.Problems, problems...)
	}
	return next
}

// everyGateway is the name of the block that is of no gateway alone.
const everyGateway = ""

// block is one block of the file.
type block struct {
	name  string // of the gateway, or everyGateway
	where string // "file:line: gateway "name"", or "file:line"
	usher any
}

// What a file holds, in messages.
const (
	gatewayForm = `gateway "<name>" { usher { … } }`
	fileForm    = `usher { … } and ` + gatewayForm
)

// parse gives the blocks of the file in its order. With any problem the file
// as a whole counts as bad.
func parse(path string, text []byte) ([]block, []problem.Problem) {
	tree, err := hcl.Parse(text, hcl.Unique)
	if err != nil {
		return nil, []problem.Problem{syntaxProblem(path, err)}
	}
	var blocks []block
	var problems []problem.Problem
	places := map[string]string{}
	for _, item := range tree.Items {
		b, p := parseBlock(path, item)
		earlier, twice := places[b.name]
		switch {
		case p != nil:
			problems = append(problems, *p)
		case twice:
			problems = append(problems, problem.Problem{Where: b.where, What: "a second block for the same; merge it into the one" + earlier})
		default:
			places[b.name] = inLine(item)
			blocks = append(blocks, b)
		}
	}
	return blocks, problems
}

// inLine says in which line a block is. Blocks in JSON have no position.
func inLine(item *ast.ObjectItem) string {
	if line := item.Pos().Line; line > 0 {
		return fmt.Sprintf(" in line %d", line)
	}
	return " before it"
}

func parseBlock(path string, item *ast.ObjectItem) (block, *problem.Problem) {
	keyword, _ := item.Keys[0].Token.Value().(string)
	b := block{where: path}
	if line := item.Pos().Line; line > 0 {
		b.where = fmt.Sprintf("%s:%d", path, line)
	}
	problem := func(what string) (block, *problem.Problem) {
		return block{}, &problem.Problem{Where: b.where, What: what}
	}
	switch {
	case keyword == settings.Key && len(item.Keys) == 1:
		if err := hcl.Decode(&b.usher, item.Val); err != nil {
			return problem(fmt.Sprintf("not an object: %v; write usher { … }", err))
		}
		return b, nil
	case keyword == settings.Key:
		return problem("the block usher has no name: it is for all gateways; write usher { … }, or " + gatewayForm)
	case keyword != "gateway":
		return problem(fmt.Sprintf("key %q is unknown; the file holds blocks %s", keyword, fileForm))
	case len(item.Keys) != 2:
		return problem("a gateway block needs the name of one gateway: " + gatewayForm)
	}
	b.name, _ = item.Keys[1].Token.Value().(string)
	if b.name == everyGateway {
		return problem("a gateway block needs the name of one gateway: " + gatewayForm)
	}
	b.where += fmt.Sprintf(": gateway %q", b.name)
	var members map[string]any
	if err := hcl.Decode(&members, item.Val); err != nil {
		return problem(fmt.Sprintf("not an object: %v; write %s", err, gatewayForm))
	}
	for _, key := range slices.Sorted(maps.Keys(members)) {
		if key != settings.Key {
			b.where += ": " + key
			return problem(fmt.Sprintf("this key is unknown; the block takes one object %q", settings.Key))
		}
	}
	b.usher = members[settings.Key]
	return b, nil
}

func syntaxProblem(path string, err error) problem.Problem {
	if at, ok := errors.AsType[*hcl.Error](err); ok {
		return problem.Problem{Where: fmt.Sprintf("%s:%d", path, at.Line), What: fmt.Sprintf("not HCL: %s; mend the syntax near there", at.What)}
	}
	return problem.Problem{Where: path, What: fmt.Sprintf("not HCL: %v; mend the syntax", err)}
}
