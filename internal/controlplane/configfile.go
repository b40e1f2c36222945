package controlplane

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// configFile is the content of the config file. A block whose name no gateway has may be a misspelt one, so that another
// gateway would lose its settings: strict would become off. While there is such a block that came when others went, a
// gateway whose block is gone keeps the settings that it had. While the names are not known, every gateway may exist.
type configFile struct {
	read      settings.File
	effective settings.File // with the settings that are kept
	names     []string      // of the gateways that the source has, sorted; nil: not known
	// replacing are the names of blocks that came when others went.
	replacing map[string]bool
}

// replace replaces what was read.
func (c *configFile) replace(f settings.File) {
	gone := false
	for name := range c.effective.Gateways {
		_, stays := f.Gateways[name]
		gone = gone || !stays
	}
	replacing := map[string]bool{}
	for name := range f.Gateways {
		if _, before := c.read.Gateways[name]; gone && !before || c.replacing[name] {
			replacing[name] = true
		}
	}
	c.read, c.replacing = f, replacing
}

// update computes what counts. connected are the names of gateways that the source need not have: they have Envoys. It
// returns the problems of blocks without a gateway, and the layers that gateways have lost, by name.
func (c *configFile) update(connected []string) (problems []problem.Problem, lost map[string]settings.Layer) {
	exists := func(name string) bool { return slices.Contains(c.names, name) || slices.Contains(connected, name) }
	before := c.effective.Gateways
	c.effective = c.read
	c.effective.Gateways = maps.Clone(c.read.Gateways)
	var unknown, kept []string
	for _, name := range slices.Sorted(maps.Keys(c.read.Gateways)) {
		if !exists(name) {
			unknown = append(unknown, name)
		}
	}
	lost = map[string]settings.Layer{}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		_, stays := c.read.Gateways[name]
		switch {
		case stays || c.names != nil && !exists(name):
		case !slices.ContainsFunc(unknown, func(name string) bool { return c.replacing[name] }):
			lost[name] = before[name]
		default:
			c.effective.Gateways[name] = before[name]
			kept = append(kept, name)
		}
	}
	for _, name := range unknown {
		switch {
		case c.replacing[name] && len(kept) > 0:
			problems = append(problems, c.unknownGateway(name, kept))
		case c.names != nil:
			problems = append(problems, c.unknownGateway(name, nil))
		}
	}
	return problems, lost
}

// UnknownGateways returns the problems of blocks with a name that is not among those of all gateways.
func UnknownGateways(f settings.File, names []string) []problem.Problem {
	problems, _ := (&configFile{read: f, names: append([]string{}, names...)}).update(nil)
	return problems
}

// unknownGateway returns the problem of a block with a name that no gateway has, or perhaps none.
func (c *configFile) unknownGateway(name string, kept []string) problem.Problem {
	what := fmt.Sprintf("no ingress gateway has this name%s, so the block has no effect; ", problem.DidYouMean(name, c.names))
	switch {
	case c.names == nil:
		what = "Usher cannot see which ingress gateways exist, and no Envoy of one with this name is connected; check the name"
	case len(c.names) == 0:
		what += "Usher knows no ingress gateway yet"
	default:
		what += "the ingress gateways are " + quotedNames(c.names)
	}
	if len(kept) > 0 {
		what += "; until this is corrected, " + quotedNames(kept) + ", whose block is gone, keeps the settings that it had"
	}
	block := c.read.Gateways[name]
	return problem.Problem{Where: fmt.Sprintf("%s: gateway %q", block.Where, name), What: what, At: block.At}
}

// quotedNames lists the first names in quotes.
func quotedNames(names []string) string {
	const most = 10
	var quoted []string
	for _, name := range names[:min(most, len(names))] {
		quoted = append(quoted, fmt.Sprintf("%q", name))
	}
	if len(names) > most {
		quoted = append(quoted, "…")
	}
	return strings.Join(quoted, ", ")
}

// SetConfigFile replaces the content of the config file.
func (p *Plane) SetConfigFile(f settings.File) {
	p.options.Problems.Report("the config file", f.Problems)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.configFile.replace(f)
	p.applyConfigFile()
}

// watchNames watches which gateways the source has, until ctx ends.
func (p *Plane) watchNames(ctx context.Context) {
	watchAgain(ctx, p.options.Logger, "names", func() error {
		return p.options.Source.WatchNames(ctx, p.setNames)
	}, func(err error) {
		p.options.Logger.Warn("cannot watch the names of gateways; those that are known stay", "error", err)
	})
}

func (p *Plane) setNames(names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.configFile.names = names
	p.applyConfigFile()
}

// applyConfigFile gives workers their settings, where these have changed. The caller holds mu.
func (p *Plane) applyConfigFile() {
	var connected []string
	for id := range p.workers {
		connected = append(connected, id.Name)
	}
	before := make(map[gateway.ID]inputs, len(p.workers))
	for id := range p.workers {
		before[id] = p.inputsOf(id)
	}
	problems, lost := p.configFile.update(connected)
	p.options.Problems.Report("the gateways of the config file", problems)
	for _, name := range slices.Sorted(maps.Keys(lost)) {
		p.options.Logger.Warn("the config file no longer has a block for this gateway, so its settings there no longer count",
			"gateway", name, "was", lost[name].Where)
	}
	for id, w := range p.workers {
		if now := p.inputsOf(id); !reflect.DeepEqual(now, before[id]) {
			w.newInputs.Put(now)
		}
	}
}
