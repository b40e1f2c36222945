package settings

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"unicode"

	"github.com/usherproxy/usher/internal/problem"
)

// Decode decodes the value of the key "usher" strictly: an unknown
// key, a wrong type or a value that is not allowed is a problem. A list of one
// element may stand for its element, as Consul's HCL decoding makes of a
// block, and the reverse. A nil value says nothing and is fine.
func Decode(where string, raw any) (Settings, []problem.Problem) {
	if single(raw) == nil {
		return Settings{}, nil
	}
	d := decoder{}
	var s Settings
	at := where + ": " + Key
	members := d.object(at, raw, append(groupKeys(), listenersKey)...)
	d.policy(at, members, &s.Listener)
	if listeners, ok := members[listenersKey]; ok {
		s.Listeners = d.listeners(at+"."+listenersKey, listeners)
	}
	if len(d.problems) > 0 {
		return Settings{}, d.problems
	}
	return s, nil
}

func groupKeys() []string {
	keys, _ := Groups()
	return keys
}

// decoder walks decoded JSON or HCL and collects what is wrong with it.
type decoder struct {
	problems []problem.Problem
}

// policy decodes the groups of an object.
func (d *decoder) policy(where string, members map[string]any, into *Listener) {
	for _, group := range groupKeys() {
		at := where + "." + group
		keys, settings := inGroup(group)
		said := d.object(at, members[group], keys...)
		for _, key := range keys {
			if v, ok := said[key]; ok {
				settings[key].decode(d, at+"."+key, v, into)
			}
		}
	}
}

// listeners decodes the settings of single listeners.
func (d *decoder) listeners(where string, raw any) map[int]Listener {
	byPort, ok := single(raw).(map[string]any)
	if !ok {
		d.refuse(where, raw, `an object with the ports of listeners as keys, such as { "8080" { … } }`)
		return nil
	}
	out := map[int]Listener{}
	for _, key := range slices.Sorted(maps.Keys(byPort)) {
		port, ok := number(key)
		if !ok || port < 1 || port > math.MaxUint16 || key != fmt.Sprint(port) {
			d.problem(where+"."+key, "this is not the port of a listener; use a number from 1 to 65535")
			continue
		}
		at := where + "." + key
		var p Listener
		d.policy(at, d.object(at, byPort[key], groupKeys()...), &p)
		out[port] = p
	}
	return out
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
		d.refuse(where, raw, "an object with the keys "+quoted(allowed))
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

// refuse notes that a value is none of those that takes names.
func (d *decoder) refuse(where string, raw any, takes string) {
	d.problem(where, describe(raw)+" is not allowed; use "+takes)
}

func (d *decoder) problem(where, what string) {
	d.problems = append(d.problems, problem.Problem{Where: oneLine(where), What: oneLine(what)})
}

// oneLine replaces control characters, which a key may contain, by spaces.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
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
		if len(elements(v)) == 0 {
			return "an empty list"
		}
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
