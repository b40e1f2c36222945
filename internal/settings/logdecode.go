package settings

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// headerFilter accepts the word any, or an object.
var headerFilter = objectOf("an object { name, value }; without value, the header only has to be there", func(o object) HeaderFilter {
	return HeaderFilter{
		Name:  required(o, "name", text(headerName, "the name of a request header in lower case").hide()),
		Value: optional(o, "value", text(regexp.MustCompile(`^[^\x00-\x1f\x7f]+$`), "a text without control characters").hide()),
	}
}, "name", "value").or("any", HeaderFilter{Name: AnyHeader}).hide()

// expression accepts the word any, or the text of an expression.
var expression = valueType[string]{
	other: `a CEL expression, such as "request.path.startsWith('/pay')"`,
	read: func(_ *decoder, _ string, raw any) (string, bool) {
		s, ok := raw.(string)
		return s, ok && strings.TrimSpace(s) != "" && len(s) <= 4096
	},
}.or("any", AnyExpression).hide()

// logFormat accepts the name of a preset, or an object with one of the ways to write a format.
var logFormat = valueType[LogFormat]{
	other: `an object with one of the keys "json", "text" and "fields"`,
	read: func(d *decoder, where string, raw any) (LogFormat, bool) {
		m, ok := raw.(map[string]any)
		if !ok || len(m) != 1 {
			return LogFormat{}, false
		}
		o := d.object(where, m, "json", "text", "fields")
		f := LogFormat{JSON: optional(o, "json", jsonFormat), Text: optional(o, "text", textFormat), Fields: optional(o, "fields", logFields)}
		for key := range o.members { // one, or none if it is unknown
			f.Type = LogFormatType(key)
		}
		return f, true
	},
}.
	or("default", LogFormat{Type: FormatDefault}).
	or("consul", LogFormat{Type: FormatConsul}).
	or("ecs", LogFormat{Type: FormatECS}).
	or("combined", LogFormat{Type: FormatCombined})

// jsonFormat accepts objects of texts with command operators.
var jsonFormat = valueType[map[string]any]{other: "an object of texts with command operators", read: readJSONFormat}

// readJSONFormat refuses lists: Consul's HCL decoder does not tell a list of one from its element.
func readJSONFormat(d *decoder, where string, raw any) (map[string]any, bool) {
	m, ok := raw.(map[string]any)
	if ok && len(m) == 0 {
		d.problem(where, "the object is empty; add a key, or remove it")
	}
	out := map[string]any{}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		at := where + "." + key
		switch v := single(m[key]).(type) {
		case string, bool, float64:
			out[key] = v
		case int:
			out[key] = float64(v)
		case int64:
			out[key] = float64(v)
		case map[string]any:
			out[key], _ = readJSONFormat(d, at, v)
		default:
			d.refuse(at, m[key], "a text with command operators, a number, a boolean, or an object of these")
		}
	}
	return out, ok
}

// looksLikeJSON finds texts of people who want JSON.
var looksLikeJSON = regexp.MustCompile(`^\s*[\[{]\s*["{]|"\s*:\s*["%]`)

// textFormat accepts a line of text with command operators.
var textFormat = valueType[string]{
	other: "a text with command operators",
	read: func(d *decoder, where string, raw any) (string, bool) {
		s, ok := raw.(string)
		switch {
		case strings.ContainsAny(strings.TrimSuffix(s, "\n"), "\r\n\x00"):
			d.problem(where, "a log entry is one line; remove the line breaks")
		case looksLikeJSON.MatchString(s):
			d.problem(where, "this looks like JSON, where a quote in a header would break the line or forge a field (CVE-2025-25294); use json instead of text")
		}
		return s, ok && strings.TrimSpace(s) != ""
	},
}

// logFields accepts a list of the names of LogFields.
var logFields = func() valueType[[]string] {
	t := listOf(oneOf(LogFieldNames...), "a list of "+quoted(LogFieldNames, " and "))
	list := t.read
	t.read = func(d *decoder, where string, raw any) ([]string, bool) {
		names, ok := list(d, where, raw)
		for i, name := range names {
			if slices.Contains(names[:i], name) {
				d.problem(where, fmt.Sprintf("%q occurs twice; remove one", name))
			}
		}
		return names, ok
	}
	return t
}()

// sinks accepts a word, or a list of objects.
var sinks = valueType[Sinks]{
	words: []word[Sinks]{{"default", Sinks{Type: SinksDefault}}, {"none", Sinks{Type: SinksNone}}},
	other: "a list of objects { type, path, address, tls, format, request_headers }: type is " + sinkType.accepts(),
	read: func(d *decoder, where string, raw any) (Sinks, bool) {
		list, ok := listOf(sink, "").read(d, where, raw)
		return Sinks{Type: SinksCustom, Custom: list}, ok
	},
}

var sink = objectOf("an object { type, path, address, tls, format, request_headers }", decodeSink,
	"type", "path", "address", "tls", "format", "request_headers")

var sinkType = oneOf(SinkStdout, SinkStderr, SinkFile, SinkOTLP, SinkGRPC)

// sinkKeys are the keys that a type of sink has besides type.
var sinkKeys = map[SinkType][]string{
	SinkStdout: {"format"},
	SinkStderr: {"format"},
	SinkFile:   {"format", "path"},
	SinkOTLP:   {"format", "address", "tls"},
	SinkGRPC:   {"address", "tls", "request_headers"},
}

func decodeSink(o object) Sink {
	s := Sink{Type: required(o, "type", sinkType)}
	if s.Type == "" {
		return s
	}
	for _, key := range slices.Sorted(maps.Keys(o.members)) {
		if key != "type" && !slices.Contains(sinkKeys[s.Type], key) {
			o.d.problem(o.where+"."+key, fmt.Sprintf("a sink of type %q does not have this key; remove it", s.Type))
		}
	}
	switch s.Type {
	case SinkFile:
		s.Path = required(o, "path", text(absolutePath, "an absolute path on the gateway's machine"))
	case SinkOTLP, SinkGRPC:
		s.Address = required(o, "address", collectorAddress)
		s.TLS = optional(o, "tls", collectorTLS)
	}
	s.Format = optional(o, "format", logFormat)
	s.RequestHeaders = optional(o, "request_headers", headerNames)
	return s
}

var (
	absolutePath = regexp.MustCompile(`^/[^\x00-\x1f\x7f]*[^/\x00-\x1f\x7f]$`)
	hostName     = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?$`)
)

// collectorAddress accepts host:port.
var collectorAddress = valueType[HostPort]{
	other: `a host and a port, such as "collector.internal:4317", "10.0.0.7:4317" or "[2001:db8::7]:4317"`,
	read: func(_ *decoder, _ string, raw any) (HostPort, bool) {
		s, _ := raw.(string)
		host, portText, err := net.SplitHostPort(s)
		port, portErr := strconv.ParseUint(portText, 10, 16)
		ip, notIP := netip.ParseAddr(host)
		bracketed := strings.HasPrefix(s, "[")
		valid := notIP == nil && ip.Zone() == "" && ip.Is6() == bracketed ||
			notIP != nil && !bracketed && len(host) <= 253 && hostName.MatchString(host)
		return HostPort{Host: host, Port: int(port)}, valid && err == nil && portErr == nil && port > 0
	},
}

// collectorTLS accepts the word none, or an object that says how a collector proves its identity.
var collectorTLS = objectOf("an object { ca, sni }", func(o object) *CollectorTLS {
	return &CollectorTLS{CA: required(o, "ca", certificates), SNI: optional(o, "sni", text(hostName, "a host name"))}
}, "ca", "sni").or("none", nil)

// certificates accepts one or more certificates in PEM, and nothing else.
var certificates = valueType[string]{
	other: "the certificates that sign the collector's, in PEM, from -----BEGIN CERTIFICATE----- on",
	read: func(_ *decoder, _ string, raw any) (string, bool) {
		text, _ := raw.(string)
		rest, found := []byte(text), false
		for {
			var block *pem.Block
			block, rest = pem.Decode(rest)
			if block == nil {
				return text, found && len(bytes.TrimSpace(rest)) == 0
			}
			if _, err := x509.ParseCertificate(block.Bytes); err != nil || block.Type != "CERTIFICATE" {
				return "", false
			}
			found = true
		}
	},
}
