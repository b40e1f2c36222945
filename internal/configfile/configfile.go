// Package configfile reads Usher's config file (usher serve --config) and watches it. The file is HCL or JSON:
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
// The object usher is the same as in proxy-defaults' Config and in a gateway's Proxy.Config. The one in a gateway
// block has precedence over both. The one outside is for all gateways, and both have precedence over it.
package configfile

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// File is a config file with its content. Use Open.
type File struct {
	path    string
	log     *slog.Logger
	reload  filewatch.Trigger
	text    []byte // that was read last; nil if the file could not be read
	content settings.File
}

// Open reads the file at path for the first time. Every problem in it is an error then, because there is no last
// good content that could stay in use.
func Open(path string, log *slog.Logger) (*File, error) {
	f := &File{path: path, log: log, reload: filewatch.NewTrigger()}
	text, err := filewatch.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("config file: %w", err)
	}
	f.setText(text)
	var errs []error
	for _, p := range f.content.Problems {
		errs = append(errs, errors.New(p.String()))
	}
	return f, errors.Join(errs...)
}

// Content returns the content of the file when it was last read. It must not be called while Run runs.
func (f *File) Content() settings.File { return f.content }

// Reload makes Run read the file at once, as it does after a change.
func (f *File) Reload() { f.reload.Fire() }

// Run watches the file until ctx ends and calls put with every new content. After a bad change, what it concerns
// keeps its last valid content, and the new content has the problems. The file may be written in place or replaced as
// a whole, as editors and Kubernetes do, and may be missing for a while.
func (f *File) Run(ctx context.Context, put func(settings.File)) error {
	read := func(final bool) bool {
		text, err := filewatch.ReadFile(f.path)
		whole := err == nil && f.isWhole(text)
		if (whole || final) && f.update(text, err) {
			put(f.content)
		}
		return whole
	}
	broken := func(err error) {
		if f.keep(err.Error()) {
			put(f.content)
		}
	}
	filewatch.Files([]string{f.path}, filewatch.Options{Read: read, Broken: broken, Logger: f.log, Again: f.reload}).Run(ctx)
	return nil
}

// isWhole reports whether the file looks completely written.
func (f *File) isWhole(text []byte) bool {
	_, problems := parse(f.path, text)
	return len(text) > 0 && len(problems) == 0
}

// update sets the file's content to the text or error that was read. It reports whether the content changed.
func (f *File) update(text []byte, err error) bool {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return f.keep(filewatch.Unreadable(err, "put it back"))
	case err != nil:
		return f.keep(filewatch.Unreadable(err, "correct it"))
	case f.text != nil && slices.Equal(text, f.text):
		return false
	case isEmpty(text) && f.hasSettings(): // a full disk, or a broken tool, has emptied it
		return f.keep("the file is empty; put its content back, or write a line with # into it if it is to have no settings")
	}
	f.setText(text)
	f.log.Info("config file read", "path", f.path, "gateways", len(f.content.Gateways), "problems", len(f.content.Problems))
	return true
}

func isEmpty(text []byte) bool { return len(bytes.TrimSpace(text)) == 0 }

// hasSettings reports whether the last valid content has any settings.
func (f *File) hasSettings() bool { return len(f.content.Gateways) > 0 || f.content.All.Where != "" }

// keep sets one problem, and keeps the last valid content. It reports whether the problem is new.
func (f *File) keep(what string) bool {
	p := problem.Problem{Where: f.path, At: problem.Position{File: f.path}, What: what + "; the last valid content stays in use"}
	f.text = nil
	isNew := !slices.Contains(f.content.Problems, p)
	if isNew {
		f.content.Problems = []problem.Problem{p}
	}
	return isNew
}

func (f *File) setText(text []byte) {
	before := f.content
	f.text = text
	blocks, problems := parse(f.path, text)
	if len(problems) > 0 {
		f.content.Problems = problems
		return
	}
	f.content = settings.File{Gateways: make(map[string]settings.Layer, len(blocks))}
	f.content.All, _ = before.All.Update("", nil) // unless there is a block
	for _, b := range blocks {
		layer := before.All
		if b.gateway != "" {
			layer = before.Gateways[b.gateway]
		}
		layer, problems = layer.Update("", configtree.Plain(b.usher))
		if len(problems) == 0 {
			layer.Places = configtree.Places(f.path, b.usher)
		}
		layer.At = problem.Position{File: f.path, Line: b.line}
		layer.Where = layer.At.String()
		if b.gateway == "" {
			f.content.All = layer
		} else {
			f.content.Gateways[b.gateway] = layer
		}
		configtree.AtLines(f.path, b.parent, b.path, problems)
		f.content.Problems = append(f.content.Problems, problems...)
	}
}

// Tree returns what the file at path says, as decoded JSON. It checks no setting. The tree has the values as they are in the
// file, secret or not.
func Tree(path string) (any, error) {
	text, err := filewatch.ReadFile(path)
	if err != nil {
		return nil, err
	}
	root, bad := configtree.Parse(path, text)
	if bad != nil {
		return nil, errors.New(bad.String())
	}
	return configtree.Plain(root), nil
}

// block is one block of the file.
type block struct {
	gateway string // empty: of all gateways
	line    int
	parent  *yaml.Node // the object with the key usher
	path    string     // of parent
	usher   *yaml.Node // the value of the key; may be nil
}

// The blocks of a file, in messages.
const (
	allForm     = "usher { … }"
	gatewayForm = `gateway "<name>" { usher { … } }`
)

// parser collects the blocks of a file. If there is any problem, the file as a whole is bad.
type parser struct {
	configtree.Decoder
	blocks []block
	lines  map[string]int // of the blocks, by gateway
}

func parse(path string, text []byte) ([]block, []problem.Problem) {
	root, bad := configtree.Parse(path, text)
	if bad != nil {
		return nil, []problem.Problem{orYAML(path, text, *bad)}
	}
	p := parser{Decoder: configtree.Decoder{File: path, Strict: true}, lines: map[string]int{}}
	if p.isForDirectory(root) {
		return nil, p.Problems
	}
	var file struct{ Usher, Gateway *yaml.Node }
	p.object(root, "", allForm, &file)
	for _, n := range configtree.Elements(file.Usher) {
		if n.HeadComment == configtree.Label {
			p.Add(configtree.MarkOf(n), "usher", "this block takes no name, because it is for all gateways; write %s, or %s", allForm, gatewayForm)
			continue
		}
		p.add(configtree.MarkOf(n), settings.Key, block{parent: root, usher: n})
	}
	for _, n := range configtree.Elements(file.Gateway) {
		p.gateways(n)
	}
	return p.blocks, p.Problems
}

// orYAML returns the problem of a file that cannot be read as HCL or JSON: perhaps it is YAML.
func orYAML(path string, text []byte, bad problem.Problem) problem.Problem {
	docs, no := configtree.ParseYAML(path, text)
	if no != nil || len(docs) != 1 {
		return bad
	}
	usher, _ := configtree.Get(docs[0], settings.Key)
	gateway, _ := configtree.Get(docs[0], "gateway")
	if key := cmp.Or(usher, gateway); key != nil {
		bad.At = problem.Position{File: path, Line: key.Line, Column: key.Column}
		bad.Where = bad.At.String()
		bad.What = "this is YAML, and the file has to be HCL or JSON; write " + allForm + " and " + gatewayForm
	}
	return bad
}

// isForDirectory refuses what belongs into the directory of --config-dir.
func (p *parser) isForDirectory(root *yaml.Node) bool {
	for _, name := range []string{"apiVersion", "kind", "service", "services"} {
		if key, _ := configtree.Get(root, name); key != nil {
			p.Add(configtree.MarkOf(key), "", "this is a config entry or a service definition, and no file of Usher's settings; "+
				"give it to Consul, or put it into the directory of --config-dir")
			return true
		}
	}
	return false
}

// IsSettings reports whether a file has Usher's settings, rightly or not, and no config entries or service definitions. It
// is false for a file that cannot be read.
func IsSettings(path string) bool {
	text, err := filewatch.ReadFile(path)
	if err != nil {
		return false
	}
	docs, bad := configtree.ParseYAML(path, text)
	if root, notHCL := configtree.Parse(path, text); notHCL == nil {
		docs, bad = []*yaml.Node{root}, nil
	}
	if bad != nil || len(docs) != 1 {
		return false
	}
	usher, _ := configtree.Get(docs[0], settings.Key)
	gateway, _ := configtree.Get(docs[0], "gateway")
	return usher != nil || gateway != nil
}

// object decodes an object with the key usher, as in form. It refuses settings that are not under that key.
func (p *parser) object(n *yaml.Node, path, form string, into any) {
	for key := range configtree.Members(n) {
		if slices.ContainsFunc(settings.Groups, func(g settings.Group) bool { return g.Key == key.Value }) {
			p.Add(configtree.MarkOf(key), strings.TrimPrefix(path+"."+key.Value, "."), "this key belongs inside usher; write %s", form)
			return
		}
	}
	p.Object(n, path, into)
}

// gateways reads gateway "<name>" { usher { … } }, or in JSON {"<name>": {"usher": { … }}} with any number of names.
func (p *parser) gateways(n *yaml.Node) {
	const noName = "this block needs the name of one gateway: " + gatewayForm
	if n.Kind != yaml.MappingNode || len(n.Content) == 0 {
		p.Add(configtree.MarkOf(n), "gateway", noName)
		return
	}
	for name, value := range configtree.Members(n) {
		if name.Value == "" || name.Value == settings.Key && n.HeadComment != configtree.Label {
			p.Add(configtree.MarkOf(name), "gateway", noName)
			continue
		}
		b := block{gateway: name.Value, parent: configtree.Single(value), path: "gateway." + name.Value}
		title := fmt.Sprintf("gateway %q", b.gateway)
		var body struct{ Usher *yaml.Node }
		p.object(b.parent, b.path, title+" { "+allForm+" }", &body)
		b.usher = body.Usher
		p.add(configtree.MarkOf(name), title, b)
	}
}

func (p *parser) add(at configtree.Mark, title string, b block) {
	if earlier, twice := p.lines[b.gateway]; twice {
		p.Add(at, "", "%s is already in line %d; merge the two blocks", title, earlier)
		return
	}
	p.lines[b.gateway], b.line = at.Line, at.Line
	p.blocks = append(p.blocks, b)
}
