package gateway

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Key is the key of Usher's settings inside an opaque config of Consul's
// (proxy-defaults' Config, a gateway's Proxy.Config).
const Key = "usher"

// Settings are Usher's own settings as one source says them. The zero value
// says nothing, and leaves every setting to a more general source.
type Settings struct {
	ProxyProtocol ProxyProtocol
}

// ProxyProtocol is the policy towards PROXY protocol headers
// (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt) on a gateway's
// listeners.
type ProxyProtocol struct {
	Mode Mode // "" says nothing
}

// Mode says which connections a listener takes.
type Mode string

// The modes. No setting's zero value carries a meaning of its own: Consul's
// merge of proxy-defaults into a registration loses zero values.
const (
	Off        Mode = "off"        // Consul's own listener: no header is looked for
	Permissive Mode = "permissive" // with a header of version 1 or 2, or without one
	Strict     Mode = "strict"     // with a header of version 1 or 2, and nothing else
)

// modes lists the allowed values in the order that messages print them.
var modes = []Mode{Off, Permissive, Strict}

// Layer is one source of settings with its memory: a bad source counts with
// its last good content. The zero value is a source that says nothing.
type Layer struct {
	Settings Settings
	// Unknown says that the source is bad and never was good, so that nobody
	// knows what it wants: what depends on it must not be built.
	Unknown bool

	good bool // Settings are what the source said when it was last good
}

// Next gives the layer after the source's content became raw, the value of
// the key "usher", nil when it is absent. where names the source in problems.
// If raw is bad, the problems say why, and the layer keeps its last good
// settings or, without any, is Unknown.
func (l Layer) Next(where string, raw any) (Layer, []Problem) {
	s, problems := DecodeSettings(where, raw)
	switch {
	case len(problems) == 0:
		return Layer{Settings: s, good: true}, nil
	case l.good:
		return l, problems
	default:
		return Layer{Unknown: true}, problems
	}
}

// Resolve gives the settings that apply when the layers are laid over each
// other, the most general first. known is false where a layer that would
// decide is Unknown. The result has no unset setting: what nobody says is off.
func Resolve(layers ...Layer) (s Settings, known bool) {
	for _, l := range slices.Backward(layers) {
		if l.Unknown {
			return Settings{}, false
		}
		if l.Settings.ProxyProtocol.Mode != "" {
			return l.Settings, true
		}
	}
	return Settings{ProxyProtocol: ProxyProtocol{Mode: Off}}, true
}

// SettingsOf gives the settings that apply to an instance of the gateway:
// proxy-defaults, then its registration, then the operator's config file.
func (s *Snapshot) SettingsOf(in *Instance) (Settings, bool) {
	return Resolve(s.Defaults, in.Own, s.Operator)
}

// DecodeSettings decodes the value of the key "usher" strictly: an unknown
// key, a wrong type or a value that is not allowed is a problem. A list of one
// element may stand for its element, as Consul's HCL decoding makes of a
// block. A nil value says nothing and is fine.
func DecodeSettings(where string, raw any) (Settings, []Problem) {
	d := decoder{}
	var s Settings
	for key, v := range d.object(where+": "+Key, raw, "proxy_protocol") {
		s.ProxyProtocol = d.proxyProtocol(where+": "+Key+"."+key, v)
	}
	if len(d.problems) > 0 {
		return Settings{}, d.problems
	}
	return s, nil
}

// decoder walks decoded JSON or HCL and collects what is wrong with it.
type decoder struct {
	problems []Problem
}

func (d *decoder) proxyProtocol(where string, raw any) ProxyProtocol {
	var p ProxyProtocol
	for key, v := range d.object(where, raw, "mode") {
		p.Mode = d.mode(where+"."+key, v)
	}
	return p
}

func (d *decoder) mode(where string, raw any) Mode {
	s, ok := single(raw).(string)
	if m := Mode(s); ok && slices.Contains(modes, m) {
		return m
	}
	d.problem(where, fmt.Sprintf("%s is not allowed; use one of %s", describe(raw), quoted(modes)))
	return ""
}

// object gives the members of raw that are allowed; each other one is a
// problem. Nil gives none.
func (d *decoder) object(where string, raw any, allowed ...string) map[string]any {
	raw = single(raw)
	if raw == nil {
		return nil
	}
	m, ok := raw.(map[string]any)
	if !ok {
		d.problem(where, fmt.Sprintf("%s is not allowed; use an object with the keys %s", describe(raw), quoted(allowed)))
		return nil
	}
	known := map[string]any{}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if !slices.Contains(allowed, key) {
			d.problem(where+"."+key, "this key is unknown; remove it or use one of "+quoted(allowed))
			continue
		}
		known[key] = m[key]
	}
	return known
}

func (d *decoder) problem(where, what string) {
	d.problems = append(d.problems, Problem{Where: where, What: what})
}

// single gives the element of a list of one, and anything else as it is.
func single(raw any) any {
	switch v := raw.(type) {
	case []any:
		if len(v) == 1 {
			return single(v[0])
		}
	case []map[string]any:
		if len(v) == 1 {
			return v[0]
		}
	}
	return raw
}

// describe names a value in a problem: the value itself when it is short and
// printable on one line, else its kind.
func describe(raw any) string {
	switch v := raw.(type) {
	case string:
		if len(v) <= 64 {
			return fmt.Sprintf("%q", v)
		}
		return fmt.Sprintf("a string of %d bytes", len(v))
	case bool, int, int64, float64:
		return fmt.Sprint(v)
	case []any, []map[string]any:
		return "a list"
	case map[string]any:
		return "an object"
	case nil:
		return "null"
	}
	return fmt.Sprintf("a value of type %T", raw)
}

func quoted[S ~string](words []S) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = fmt.Sprintf("%q", string(w))
	}
	return strings.Join(out, ", ")
}
