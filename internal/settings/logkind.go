package settings

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// atLeast takes the word any, or a number in a range.
func atLeast(lowest, highest int) kind[int] {
	return kind[int]{
		takes: fmt.Sprintf(`"any" or a number from %d to %d`, lowest, highest),
		read: func(_ *decoder, _ string, raw any) (int, bool) {
			if single(raw) == "any" {
				return anyNumber, true
			}
			n, ok := number(raw)
			return n, ok && n >= lowest && n <= highest
		},
	}
}

// durationAtLeast takes the word any, or a time span.
var durationAtLeast = kind[time.Duration]{
	takes: `"any" or a time span such as "250ms" or "2s", up to "24h"`,
	read: func(_ *decoder, _ string, raw any) (time.Duration, bool) {
		s, ok := single(raw).(string)
		if s == "any" {
			return AnyDuration, true
		}
		d, err := time.ParseDuration(s)
		return d, ok && err == nil && d >= time.Millisecond && d <= 24*time.Hour
	},
}

// perMille takes the word all, or a share.
var perMille = kind[int]{
	takes: `"all" or a number from 1 to 999`,
	read: func(_ *decoder, _ string, raw any) (int, bool) {
		if single(raw) == "all" {
			return int(SampleAll), true
		}
		n, ok := number(raw)
		return n, ok && n >= 1 && n < int(SampleAll)
	},
}

// share takes a word, or a number.
var share = kind[SampleRate]{
	takes: `one of "default", "all", "none", or a number from 1 to 999`,
	read: func(_ *decoder, _ string, raw any) (SampleRate, bool) {
		switch single(raw) {
		case "default":
			return SampleDefault, true
		case "all":
			return SampleAll, true
		case "none":
			return SampleNone, true
		}
		n, ok := number(raw)
		return SampleRate(n), ok && n >= 1 && SampleRate(n) < SampleAll
	},
}

// namesOr takes a word, which stands for an empty list, or a list of names that
// match a pattern.
func namesOr(word string, pattern *regexp.Regexp, takes string) kind[[]string] {
	return kind[[]string]{
		takes: fmt.Sprintf("%q or a list of %s", word, takes),
		read: func(d *decoder, where string, raw any) ([]string, bool) {
			if single(raw) == word {
				return []string{}, true
			}
			var out []string
			for _, item := range elements(raw) {
				s, ok := single(item).(string)
				if !ok || s == word || !pattern.MatchString(s) {
					d.refuse(where, item, fmt.Sprintf("%q, alone, or %s", word, takes))
					continue
				}
				out = append(out, s)
			}
			slices.Sort(out)
			return slices.Compact(out), len(elements(raw)) > 0
		},
	}
}

// logHeader takes the word any, or an object.
var logHeader = kind[HeaderFilter]{
	takes: `"any" or an object { name, value }, without value for a header that is there at all`,
	read: func(d *decoder, where string, raw any) (HeaderFilter, bool) {
		raw = single(raw)
		if raw == AnyHeader {
			return HeaderFilter{Name: AnyHeader}, true
		}
		if _, ok := raw.(map[string]any); !ok {
			return HeaderFilter{}, false
		}
		members := d.object(where, raw, "name", "value")
		h := HeaderFilter{Name: d.match(where+".name", members["name"], tlvHeader, "the name of a request header in small letters")}
		if value, said := members["value"]; said {
			h.Value = d.match(where+".value", value, printable, "a text without control characters")
		}
		return h, true
	},
}

var (
	printable  = regexp.MustCompile(`^[^\x00-\x1f\x7f]+$`)
	cookieName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)
)

// expression takes the word any, or a text.
var expression = kind[string]{
	takes: `"any" or an expression of CEL, such as "request.path.startsWith('/pay')"`,
	read: func(_ *decoder, _ string, raw any) (string, bool) {
		s, ok := single(raw).(string)
		return s, ok && strings.TrimSpace(s) != "" && len(s) <= 4096
	},
}

// logFormat takes the name of a preset, or an object with one way to write a
// format.
var logFormat = kind[LogFormat]{
	takes: `one of "default", "consul", "ecs", "combined", or an object with one of the keys "json", "text", "fields"`,
	read: func(d *decoder, where string, raw any) (LogFormat, bool) {
		switch v := single(raw).(type) {
		case string:
			by := LogFormatType(v)
			return LogFormat{Type: by}, slices.Contains([]LogFormatType{FormatDefault, FormatConsul, FormatECS, FormatCombined}, by)
		case map[string]any:
			if len(v) != 1 {
				return LogFormat{}, false
			}
			return d.ownFormat(where, v), true
		}
		return LogFormat{}, false
	},
}

// ownFormat decodes a format that the operator has written.
func (d *decoder) ownFormat(where string, raw map[string]any) LogFormat {
	members := d.object(where, raw, "json", "text", "fields")
	switch {
	case members["json"] != nil:
		return LogFormat{Type: FormatJSON, JSON: d.jsonFormat(where+".json", members["json"])}
	case members["text"] != nil:
		return LogFormat{Type: FormatText, Text: d.textFormat(where+".text", members["text"])}
	case members["fields"] != nil:
		fields, _ := namesOf(LogFieldNames).read(d, where+".fields", members["fields"])
		return LogFormat{Type: FormatFields, Fields: fields}
	}
	return LogFormat{}
}

// jsonFormat decodes an object of operators. Consul's HCL makes no difference
// between a list of one and its element, so that lists cannot be taken.
func (d *decoder) jsonFormat(where string, raw any) map[string]any {
	m, ok := single(raw).(map[string]any)
	if !ok || len(m) == 0 {
		d.refuse(where, raw, "an object")
		return nil
	}
	out := map[string]any{}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		switch v := single(m[key]).(type) {
		case string, bool, float64:
			out[key] = v
		case int:
			out[key] = float64(v)
		case int64:
			out[key] = float64(v)
		case map[string]any:
			out[key] = d.jsonFormat(where+"."+key, v)
		default:
			d.refuse(where+"."+key, m[key], "a text with operators, a number, a boolean, or an object of these")
		}
	}
	return out
}

// looksLikeJSON finds texts that only somebody who wants JSON writes.
var looksLikeJSON = regexp.MustCompile(`^\s*[\[{]\s*["{]|"\s*:\s*["%]`)

// textFormat decodes a line of text with operators.
func (d *decoder) textFormat(where string, raw any) string {
	s, ok := single(raw).(string)
	switch {
	case !ok || strings.TrimSpace(s) == "":
		d.refuse(where, raw, "a text with operators")
	case strings.ContainsAny(strings.TrimSuffix(s, "\n"), "\r\n\x00"):
		d.problem(where, "an entry is one line; remove the line breaks")
	case looksLikeJSON.MatchString(s):
		d.problem(where, "this looks like JSON, and a quote in a header would break it, or forge a field (CVE-2025-25294); use json instead")
	}
	return s
}

// namesOf takes a list of names from a list.
func namesOf(known []string) kind[[]string] {
	return kind[[]string]{
		takes: "a list of " + quoted(known),
		read: func(d *decoder, where string, raw any) ([]string, bool) {
			var out []string
			for _, item := range elements(raw) {
				s, ok := single(item).(string)
				switch {
				case !ok || !slices.Contains(known, s):
					d.refuse(where, item, "one of "+quoted(known))
				case slices.Contains(out, s):
					d.problem(where, fmt.Sprintf("%q is there twice; remove one", s))
				default:
					out = append(out, s)
				}
			}
			return out, len(elements(raw)) > 0
		},
	}
}

// sinks takes a word, or a list of objects.
var sinks = kind[Sinks]{
	takes: `one of "default", "none", or a list of objects { type, path, address, tls, format, request_headers }: type is one of ` + quoted(sinkTypes),
	read: func(d *decoder, where string, raw any) (Sinks, bool) {
		switch single(raw) {
		case "default":
			return Sinks{Type: SinksDefault}, true
		case "none":
			return Sinks{Type: SinksNone}, true
		}
		items := elements(raw)
		out := Sinks{Type: SinksCustom}
		for i, item := range items {
			at := where
			if len(items) > 1 {
				at = fmt.Sprintf("%s[%d]", where, i)
			}
			if _, ok := single(item).(map[string]any); !ok {
				return Sinks{}, false
			}
			out.Custom = append(out.Custom, d.sink(at, item))
		}
		return out, len(items) > 0
	},
}

var sinkTypes = []SinkType{SinkStdout, SinkStderr, SinkFile, SinkOTLP, SinkGRPC}

// sinkKeys are the keys that a kind of sink has beside type.
var sinkKeys = map[SinkType][]string{
	SinkStdout: {"format"},
	SinkStderr: {"format"},
	SinkFile:   {"format", "path"},
	SinkOTLP:   {"format", "address", "tls"},
	SinkGRPC:   {"address", "tls", "request_headers"},
}

// sink decodes one sink.
func (d *decoder) sink(where string, raw any) Sink {
	members := d.object(where, raw, "type", "path", "address", "tls", "format", "request_headers")
	typ, ok := words(sinkTypes...).read(d, where, members["type"])
	if !ok {
		d.refuse(where+".type", members["type"], "one of "+quoted(sinkTypes))
		return Sink{}
	}
	for _, key := range slices.Sorted(maps.Keys(members)) {
		if key != "type" && !slices.Contains(sinkKeys[typ], key) {
			d.problem(where+"."+key, fmt.Sprintf("a sink of type %q has no such key; remove it", typ))
		}
	}
	s := Sink{Type: typ}
	if typ == SinkFile {
		s.Path = d.match(where+".path", members["path"], absolutePath, "an absolute path on the gateway's machine")
	}
	if typ == SinkOTLP || typ == SinkGRPC {
		s.Address = d.collector(where+".address", members["address"])
		s.TLS = d.collectorTLS(where+".tls", members["tls"])
	}
	if format, said := members["format"]; said {
		if s.Format, ok = logFormat.read(d, where+".format", format); !ok {
			d.refuse(where+".format", format, logFormat.takes)
		}
	}
	if headers, said := members["request_headers"]; said {
		s.RequestHeaders, _ = headerNames("none").read(d, where+".request_headers", headers)
	}
	return s
}

func headerNames(word string) kind[[]string] {
	return namesOr(word, tlvHeader, "names of headers in small letters")
}

var (
	absolutePath = regexp.MustCompile(`^/[^\x00-\x1f\x7f]*[^/\x00-\x1f\x7f]$`)
	hostName     = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?$`)
)

// collector decodes host:port.
func (d *decoder) collector(where string, raw any) HostPort {
	s, _ := single(raw).(string)
	at := strings.LastIndexByte(s, ':')
	if at > 0 {
		host := strings.TrimSuffix(strings.TrimPrefix(s[:at], "["), "]")
		port, err := strconv.ParseUint(s[at+1:], 10, 16)
		ip, notIP := netip.ParseAddr(host)
		bracketed := strings.HasPrefix(s, "[")
		valid := notIP != nil && !bracketed && len(host) <= 253 && hostName.MatchString(host) || notIP == nil && ip.Zone() == "" && ip.Is6() == bracketed
		if err == nil && port > 0 && port <= math.MaxUint16 && valid {
			return HostPort{Host: host, Port: int(port)}
		}
	}
	d.refuse(where, raw, `a host and a port, such as "collector.internal:4317", "10.0.0.7:4317" or "[2001:db8::7]:4317"`)
	return HostPort{}
}

// collectorTLS decodes how a collector proves who it is; nil: it does not.
func (d *decoder) collectorTLS(where string, raw any) *CollectorTLS {
	if raw == nil || single(raw) == "none" {
		return nil
	}
	if _, ok := single(raw).(map[string]any); !ok {
		d.refuse(where, raw, `"none" or an object { ca, sni }`)
		return nil
	}
	members := d.object(where, raw, "ca", "sni")
	var out CollectorTLS
	ca, _ := single(members["ca"]).(string)
	if out.CA = ca; !certificates(ca) {
		d.problem(where+".ca", "these are no certificates in PEM; use those that sign the collector's, from -----BEGIN CERTIFICATE----- on")
	}
	if sni, said := members["sni"]; said {
		out.SNI = d.match(where+".sni", sni, hostName, "a host name")
	}
	return &out
}
