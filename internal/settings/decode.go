package settings

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/usherproxy/usher/internal/problem"
)

// Decode decodes the value of the key "usher" strictly: an unknown key, a wrong type or a value that is not allowed
// is a problem. A list with one element counts as that element and the reverse, because Consul's HCL decoder makes
// lists of blocks. A nil value sets nothing.
func Decode(where string, raw any) (Settings, []problem.Problem) {
	if raw = single(raw); raw == nil {
		return Settings{}, nil
	}
	var d decoder
	var s Settings
	at := where + ": " + Key
	members := d.object(at, raw, append(groupKeys(), listenersKey)...).members
	d.listener(at, members, &s.Listener)
	if listeners, ok := members[listenersKey]; ok {
		s.Listeners = d.listeners(at+"."+listenersKey, listeners)
	}
	if len(d.problems) > 0 {
		return Settings{}, d.problems
	}
	return s, nil
}

// CheckKeys returns a problem if an opaque config of Consul's has no key "usher", and one that looks like it. Keys that
// inherited has, too, are left out. where names the config.
func CheckKeys(where string, config, inherited map[string]any) []problem.Problem {
	if _, set := config[Key]; set {
		return nil
	}
	var d decoder
	for _, key := range slices.Sorted(maps.Keys(config)) {
		meant := problem.DidYouMean(key, []string{Key})
		if _, both := inherited[key]; meant != "" && !both {
			d.problem(strings.TrimPrefix(where+"."+key, "."), "neither Consul nor Usher knows this key"+meant+"; correct it; until then it has no effect")
		}
	}
	return d.problems
}

// decoder walks decoded JSON or HCL and collects the problems in it.
type decoder struct{ problems []problem.Problem }

// listener decodes the groups of settings in an object.
func (d *decoder) listener(where string, groups map[string]any, into *Listener) {
	for _, group := range Groups {
		var keys []string
		for _, s := range group.Settings {
			keys = append(keys, s.Key)
		}
		o := d.object(where+"."+group.Key, groups[group.Key], keys...)
		for _, s := range group.Settings {
			if raw, ok := o.members[s.Key]; ok {
				s.decode(d, o.where+"."+s.Key, raw, into)
			}
		}
	}
}

// listeners decodes the settings of single listeners.
func (d *decoder) listeners(where string, raw any) map[int]Listener {
	raw = single(raw)
	byPort, ok := raw.(map[string]any)
	if !ok {
		d.refuse(where, raw, `an object with the ports of listeners as keys, such as { "8080" { … } }`)
		return nil
	}
	out := map[int]Listener{}
	for _, key := range slices.Sorted(maps.Keys(byPort)) {
		at := where + "." + key
		port, ok := wholeNumber(key)
		if !ok || port < 1 || port > maxPort || key != fmt.Sprint(port) {
			d.problem(at, "this is not the port of a listener; use a number from 1 to 65535")
			continue
		}
		var l Listener
		d.listener(at, d.object(at, byPort[key], groupKeys()...).members, &l)
		out[port] = l
	}
	return out
}

// object is a decoded object that has only known keys.
type object struct {
	d       *decoder
	where   string
	members map[string]any
}

// object returns the members of raw that have one of the keys; each other member is a problem. Nil has no members.
func (d *decoder) object(where string, raw any, keys ...string) object {
	o := object{d: d, where: where, members: map[string]any{}}
	raw = single(raw)
	m, ok := raw.(map[string]any)
	if !ok && raw != nil {
		d.refuse(where, raw, "an object with the keys "+quoted(keys, ", "))
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if slices.Contains(keys, key) {
			o.members[key] = m[key]
			continue
		}
		d.problem(where+"."+key, "this key is unknown"+problem.DidYouMean(key, keys)+"; remove it, or use "+quoted(keys, " or "))
	}
	return o
}

// optional decodes a member of an object. An absent one has the zero value.
func optional[T any](o object, key string, t valueType[T]) (value T) {
	if raw, ok := o.members[key]; ok {
		value, _ = t.decode(o.d, o.where+"."+key, raw)
	}
	return value
}

// required is optional for a member that must not be absent.
func required[T any](o object, key string, t valueType[T]) T {
	if _, ok := o.members[key]; !ok {
		o.d.problem(o.where+"."+key, "this key is missing; use "+t.accepts())
	}
	return optional(o, key, t)
}

// refuse reports a value that is none of those that accepts names.
func (d *decoder) refuse(where string, raw any, accepts string) {
	d.problem(where, describe(raw)+" is not allowed; use "+accepts)
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

// mayHoldSecret matches what a message must not quote wherever it is: a user in an address, a header with its value, and a
// cookie with its value. A name before a colon has five letters, which no part of an IPv6 address has.
var mayHoldSecret = regexp.MustCompile(`[@=]|:.*\s|[A-Za-z-]{5}:\D`)

// describe names a value in a problem: the value itself if it is short, printable on one line and cannot be a secret, else
// its type.
func describe(raw any) string {
	switch v := raw.(type) {
	case string:
		if len(v) <= 64 && !mayHoldSecret.MatchString(v) {
			return fmt.Sprintf("%q", v)
		}
		return describeLength(v)
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

// describeLength names a text in a problem without quoting it.
func describeLength(text string) string { return fmt.Sprintf("a string of %d bytes", len(text)) }

// quoted lists words in quotes: "a", "b" or "c" if last is " or ".
func quoted[S ~string](words []S, last string) string {
	var texts []string
	for _, w := range words {
		texts = append(texts, strconv.Quote(string(w)))
	}
	if n := len(texts); n > 1 {
		texts = append(texts[:n-2], texts[n-2]+last+texts[n-1])
	}
	return strings.Join(texts, ", ")
}
