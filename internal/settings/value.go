package settings

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/problem"
)

// valueType says which values a setting accepts, and decodes them: words, which stand for fixed values, and other
// values.
type valueType[T any] struct {
	words []word[T]
	other string // describes the other values; empty: there are none
	// read decodes one of the other values. False means that the value is none of those; problems inside the value
	// are reported to the decoder.
	read func(d *decoder, where string, raw any) (T, bool)
	// hidden means that a value may hold a secret, also one that is not accepted. No message quotes it.
	hidden bool
}

type word[T any] struct {
	text  string
	value T
}

// or returns the type that also accepts a word.
func (t valueType[T]) or(text string, value T) valueType[T] {
	t.words = append(slices.Clone(t.words), word[T]{text, value})
	return t
}

// accepts describes all values, to complete "use …" in messages.
func (t valueType[T]) accepts() string {
	if t.other == "" {
		return quoted(t.texts(), " or ")
	}
	if len(t.words) == 0 {
		return t.other
	}
	return quoted(t.texts(), ", ") + " or " + t.other
}

// hide returns the type without its values in messages.
func (t valueType[T]) hide() valueType[T] {
	t.hidden = true
	return t
}

// hasManyWords reports whether the values are words, too many for one message.
func (t valueType[T]) hasManyWords() bool { return t.other == "" && len(t.words) > 12 }

// acceptsNear is accepts for a message about a word. Of many words, it has those that are most like it.
func (t valueType[T]) acceptsNear(word string) string {
	if !t.hasManyWords() {
		return t.accepts()
	}
	const most = 5
	near := problem.SortByLikeness(word, t.texts())[:most]
	return fmt.Sprintf("%s, or one of the other %d in docs/settings.md", quoted(near, ", "), len(t.words)-most)
}

func (t valueType[T]) texts() (texts []string) {
	for _, w := range t.words {
		texts = append(texts, w.text)
	}
	return texts
}

// decode decodes a value and reports whether it is allowed. If it is not, the decoder has a problem.
func (t valueType[T]) decode(d *decoder, where string, raw any) (T, bool) {
	raw = single(raw)
	value, ok := t.decodeAllowed(d, where, raw)
	if !ok {
		t.refuse(d, where, raw)
	}
	return value, ok
}

func (t valueType[T]) refuse(d *decoder, where string, raw any) {
	word := wordFor(raw)
	d.problem(where, t.describe(raw)+" is not allowed"+problem.DidYouMean(word, t.texts())+"; use "+t.acceptsNear(word))
}

// describe names a value in a problem.
func (t valueType[T]) describe(raw any) string {
	if text, isText := raw.(string); isText && t.hidden {
		return describeLength(text)
	}
	return describe(raw)
}

// wordFor returns the word that a value may stand for; "" if there is none.
func wordFor(raw any) string {
	switch v := raw.(type) {
	case string:
		return v
	case bool:
		if v {
			return string(Yes)
		}
		return string(No)
	}
	return ""
}

// decodeAllowed is decode without the problem.
func (t valueType[T]) decodeAllowed(d *decoder, where string, raw any) (value T, ok bool) {
	for _, w := range t.words {
		if raw == any(w.text) {
			return w.value, true
		}
	}
	if t.read == nil {
		return value, false
	}
	return t.read(d, where, raw)
}

// oneOf accepts words.
func oneOf[S ~string](allowed ...S) valueType[S] {
	var t valueType[S]
	for _, s := range allowed {
		t = t.or(string(s), s)
	}
	return t
}

// yesNo accepts two words and no booleans: Consul's merge of proxy-defaults into a registration loses false.
var yesNo = oneOf(Yes, No)

// number accepts the whole numbers of a range.
func number[T ~int | ~uint32 | ~uint8](lowest, highest T) valueType[T] {
	return valueType[T]{
		other: fmt.Sprintf("a number from %d to %d", lowest, highest),
		read: func(_ *decoder, _ string, raw any) (T, bool) {
			n, ok := wholeNumber(raw)
			return T(n), ok && n >= int(lowest) && n <= int(highest)
		},
	}
}

const maxPort = math.MaxUint16

// text accepts texts that match a pattern.
func text(pattern *regexp.Regexp, description string) valueType[string] {
	return valueType[string]{other: description, read: func(_ *decoder, _ string, raw any) (string, bool) {
		s, ok := raw.(string)
		return s, ok && pattern.MatchString(s)
	}}
}

// duration accepts time spans.
var duration = valueType[time.Duration]{
	other: `a time span such as "250ms" or "2s", up to "24h"`,
	read: func(_ *decoder, _ string, raw any) (time.Duration, bool) {
		s, ok := raw.(string)
		d, err := time.ParseDuration(s)
		return d, ok && err == nil && d >= time.Millisecond && d <= 24*time.Hour
	},
}

// listOf accepts lists of at least one item, in any order.
func listOf[T any](item valueType[T], description string) valueType[[]T] {
	return valueType[[]T]{other: description, read: func(d *decoder, where string, raw any) ([]T, bool) {
		items := elements(raw)
		if len(items) == 1 {
			value, ok := item.decodeAllowed(d, where, items[0])
			if _, isWord := items[0].(string); !ok && isWord && item.hasManyWords() {
				item.refuse(d, where, items[0])
				ok = true
			}
			return []T{value}, ok
		}
		var out []T
		for i, raw := range items {
			if value, ok := item.decode(d, fmt.Sprintf("%s[%d]", where, i), raw); ok {
				out = append(out, value)
			}
		}
		return out, len(items) > 0
	}}
}

// setOf is listOf for lists whose order and repetitions have no meaning.
func setOf[T comparable](item valueType[T], compare func(a, b T) int, description string) valueType[[]T] {
	t := listOf(item, description)
	list := t.read
	t.read = func(d *decoder, where string, raw any) ([]T, bool) {
		out, ok := list(d, where, raw)
		slices.SortFunc(out, compare)
		return slices.Compact(out), ok
	}
	return t
}

// setOr is setOf that also accepts a word for a fixed list. In a list, the word is not allowed.
func setOr[T comparable](word string, meaning []T, item valueType[T], compare func(a, b T) int) valueType[[]T] {
	read := item.read
	item.read = func(d *decoder, where string, raw any) (value T, ok bool) {
		if raw == any(word) {
			list := where[:strings.LastIndexByte(where, '[')]
			key := list[strings.LastIndexByte(list, '.')+1:]
			d.problem(where, fmt.Sprintf("%q is not allowed in a list; write %s = %[1]q, or %[3]s", word, key, item.other))
			return value, true
		}
		return read(d, where, raw)
	}
	return setOf(item, compare, "a list of "+item.other).or(word, meaning)
}

// names accepts a word, which stands for an empty list, or a list of names that match a pattern.
func names(none string, pattern *regexp.Regexp, description string) valueType[[]string] {
	return setOr(none, []string{}, text(pattern, description), cmp.Compare)
}

var headerNames = names("none", headerName, "names of headers in lower case")

// objectOf accepts objects with some keys.
func objectOf[T any](description string, build func(o object) T, keys ...string) valueType[T] {
	return valueType[T]{other: description, read: func(d *decoder, where string, raw any) (value T, ok bool) {
		if _, ok = raw.(map[string]any); ok {
			value = build(d.object(where, raw, keys...))
		}
		return value, ok
	}}
}

// networks accepts the word any, or a list of networks and addresses.
var networks = setOr("any", AnyNetwork, network, netip.Prefix.Compare)

// proxyNetworks accepts the word none, or such a list.
var proxyNetworks = setOr("none", []netip.Prefix{}, network, netip.Prefix.Compare)

var network = valueType[netip.Prefix]{
	other: `networks and addresses such as "10.0.0.0/8", "192.0.2.7" and "2001:db8::/32"`,
	read: func(d *decoder, where string, raw any) (netip.Prefix, bool) {
		s, _ := raw.(string)
		p, ok := parsePrefix(s)
		if ok && p != p.Masked() {
			d.problem(where, fmt.Sprintf("%q is an address in the network %q; use the network, or the address without a length", s, p.Masked()))
		}
		return p, ok
	},
}

// clientHeader accepts the word none, or a header that requests do not need for something else.
var clientHeader = valueType[string]{
	other: `the name of a request header in lower case, such as "cf-connecting-ip"`,
	read: func(d *decoder, where string, raw any) (string, bool) {
		s, _ := raw.(string)
		if !headerName.MatchString(s) {
			return "", false
		}
		d.checkUnreserved(where, s)
		return s, true
	},
}.or("none", NoHeader)

// parsePrefix parses a network or an address. An IPv4 network that is mapped into IPv6 becomes the IPv4 network, as
// Envoy has addresses of sockets for both.
func parsePrefix(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, false
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), true
	}
	if p.Addr().Is4In6() {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, p.IsValid() // a mapped network of less than 96 bits is not
}

// forwardedProto accepts a word, or an object with ports.
var forwardedProto = objectOf("an object { https_ports = [443] }", func(o object) ForwardedProto {
	ports := setOf(number[uint32](1, maxPort), cmp.Compare, "a list of port numbers, such as [443]")
	return ForwardedProto{Type: ForwardedProtoPorts, HTTPSPorts: required(o, "https_ports", ports)}
}, "https_ports").
	or("default", ForwardedProto{Type: ForwardedProtoDefault}).
	or("connection", ForwardedProto{Type: ForwardedProtoConnection}).
	or("trust", ForwardedProto{Type: ForwardedProtoTrust}).
	or("proxy_protocol", ForwardedProto{Type: ForwardedProtoTLV})

// single returns the element of a list with one, and any other value as it is.
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

// elements returns the elements of a list. Any other value is a list of itself, since Consul's HCL decoder makes a
// list of one its element; nil is an empty list.
func elements(raw any) []any {
	switch v := raw.(type) {
	case nil:
		return nil
	case []any:
		return v
	case []map[string]any:
		out := make([]any, len(v))
		for i, m := range v {
			out[i] = m
		}
		return out
	}
	return []any{raw}
}

// wholeNumber returns a whole number. Decoders of HCL and JSON return it in several types, and it may be written as
// a text, in decimal or as 0xEA.
func wholeNumber(raw any) (int, bool) {
	switch v := raw.(type) {
	case int:
		return v, true
	case int64:
		return int(v), v == int64(int(v))
	case float64:
		return int(v), v == math.Trunc(v) && math.Abs(v) <= math.MaxInt32
	case json.Number:
		return wholeNumber(v.String())
	case string:
		base := 10
		digits, hex := strings.CutPrefix(strings.ToLower(v), "0x")
		if hex {
			base = 16
		}
		n, err := strconv.ParseUint(digits, base, 31)
		return int(n), err == nil
	}
	return 0, false
}
