package settings

import (
	"fmt"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/problem"
)

const modeKey = "proxy_protocol.mode"

// Place is where a setting of a listener is set. The zero value is nowhere: the setting has its default, or its layer has
// no name.
type Place struct {
	layer string           // its name, such as a config entry; it may be empty in a file
	path  string           // of the setting in its layer, with the key usher
	At    problem.Position // of the setting; the zero value if the layer is not in a file
}

// PlaceOf returns where a setting of the listener on a port is set, in the order of Resolve. The setting is the path of one
// in Groups, such as "proxy_protocol.mode", or of a part of its value, such as "access_log.sinks[1]".
func PlaceOf(setting string, port int, layers ...Layer) Place {
	whole, part := setting, ""
	if i := strings.IndexByte(setting, '['); i >= 0 {
		whole, part = setting[:i], setting[i:]
	}
	from, layer := sourceOf(whole, port, layers)
	if layer == nil {
		return Place{}
	}
	p := layer.place(from + part)
	if !p.IsZero() && p.At == (problem.Position{}) {
		p.At = layer.Places[from]
	}
	return p
}

// PlaceOfListener returns where a layer has the settings of the listener on a port.
func (l Layer) PlaceOfListener(port int) Place {
	return l.place(fmt.Sprintf("%s.%d", listenersKey, port))
}

func (l Layer) place(path string) Place {
	if l.Where == "" && len(l.Places) == 0 {
		return Place{}
	}
	return Place{layer: l.Where, path: Key + "." + path, At: l.Places[path]}
}

// sourceOf returns the path of a setting in the layer that it comes from; nil: it has its default.
func sourceOf(setting string, port int, layers []Layer) (path string, from *Layer) {
	group, key, _ := strings.Cut(setting, ".")
	for _, g := range Groups {
		i := slices.IndexFunc(g.Settings, func(s Setting) bool { return g.Key == group && s.Key == key })
		if i < 0 {
			continue
		}
		if c := g.Settings[i].firstOf(candidates(port, layers)); c.layer != noLayer {
			return c.path + setting, &layers[c.layer]
		}
	}
	return "", nil
}

// ModeOf returns the mode of the listener on a port as Resolve does, without the other settings, and where it is set; the
// place is empty if the mode has its default.
func ModeOf(port int, layers ...Layer) (mode Mode, place string, known bool) {
	if !allKnown(layers) {
		return "", "", false
	}
	for _, c := range candidates(port, layers) {
		if mode = c.ProxyProtocol.Mode; mode == "" {
			continue
		}
		if c.layer != noLayer {
			place = layers[c.layer].place(c.path + modeKey).String()
		}
		break
	}
	return mode, place, true
}

// IsZero reports whether the place is not known.
func (p Place) IsZero() bool { return p == Place{} }

// String returns "file:line", or the layer and the path of the setting in it.
func (p Place) String() string {
	if p.At != (problem.Position{}) {
		return p.At.String()
	}
	return p.layer + ": " + p.path
}

// Problem returns a problem of the setting.
func (p Place) Problem(what string) problem.Problem {
	where := p.String()
	if p.At != (problem.Position{}) {
		where += ": " + p.path
	}
	return problem.Problem{Where: where, At: p.At, What: what}
}

// RefusedError is why a listener or an Envoy refuses a setting.
type RefusedError struct {
	Setting string // such as "proxy_protocol.mode"
	Reason  string // one line: what is wrong and what to do
	OfEnvoy bool   // see problem.Problem
}

// Error returns the reason after the setting.
func (e *RefusedError) Error() string { return Key + "." + e.Setting + ": " + e.Reason }
