package settings

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"time"
)

//go:generate go run ../../tools/settings-doc ../../docs/settings.md

// Group is an object of settings inside the object usher.
type Group struct {
	Key     string
	Meaning string

	settings []tableRow
}

// Setting describes one setting, for documentation.
type Setting struct {
	Key     string
	Accepts string // the values that are allowed
	Default string // as it is written
	Meaning string
}

// Settings describes the settings of a group.
func (g Group) Settings() []Setting {
	out := make([]Setting, len(g.settings))
	for i, s := range g.settings {
		out[i] = s.describe()
	}
	return out
}

func groupKeys() []string {
	keys := make([]string, len(Groups))
	for i, g := range Groups {
		keys[i] = g.Key
	}
	return keys
}

// AnyNetwork is what the word "any" means for trusted_cidrs.
var AnyNetwork = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// listenersKey is the key of the settings of single listeners, by port.
const listenersKey = "listeners"

// Groups is the table of all settings. Decoding, merging, messages and
// docs/settings.md follow from it, in its order.
var Groups = []Group{
	{
		Key:      "proxy_protocol",
		Meaning:  "PROXY protocol headers, in which a load balancer names the client of a connection.",
		settings: proxyProtocolSettings,
	},
	{
		Key: "client_address",
		Meaning: "Request headers in which proxies in front of the gateway name the client. " +
			"They concern http, http2 and grpc listeners, with and without PROXY protocol.",
		settings: clientAddressSettings,
	},
	{
		Key: "access_log",
		Meaning: "What is logged of requests and connections, in which format, and where. " +
			"Where nothing is set here, `AccessLogs` of the config entry `proxy-defaults` applies.",
		settings: accessLogSettings,
	},
}

var proxyProtocolSettings = []tableRow{
	setting[Mode]{
		name: "mode", byDefault: "auto", valueType: oneOf(Auto, Off, Permissive, Strict),
		field: func(l *Listener) *Mode { return &l.ProxyProtocol.Mode },
		meaning: "Which connections the listener accepts. `off`: it does not look for PROXY headers, exactly like Consul's own gateway. " +
			"`permissive`: connections with and without a PROXY header. `strict`: connections with a PROXY header; it closes all others. " +
			"`auto`: what the gateway's Service in Kubernetes tells the load balancer ([load-balancers.md](load-balancers.md)); outside Kubernetes `off`.",
	},
	setting[[]Version]{
		name: "versions", byDefault: []any{"v1", "v2"}, valueType: setOf(oneOf(V1, V2), cmp.Compare, `a list of "v1", "v2" or both`),
		field: func(l *Listener) *[]Version { return &l.ProxyProtocol.Versions },
		meaning: "The versions of the PROXY protocol that the listener accepts. With `strict`, a header of the other version closes the connection. " +
			"With `permissive`, it counts as data: http listeners answer 400, and tcp listeners have to accept both versions.",
	},
	setting[[]netip.Prefix]{
		name: "trusted_cidrs", byDefault: "any", valueType: networks,
		field: func(l *Listener) *[]netip.Prefix { return &l.ProxyProtocol.TrustedCIDRs },
		meaning: "The addresses that your load balancers connect from. Only their PROXY headers are believed. " +
			"With `strict`, connections from other addresses are closed. " +
			"With `permissive`, they are served, and the client is the connecting address, whatever the header says.",
	},
	setting[[]TLV]{
		name: "tlvs", byDefault: "none", valueType: tlvs,
		field: func(l *Listener) *[]TLV { return &l.ProxyProtocol.TLVs },
		meaning: "What else of a PROXY header of version 2 is logged, under `name`. With `header`, http services get the value in that request header, " +
			"and Usher removes the header from requests of clients; `\"none\"` means no header. The types with names are listed below.",
	},
	setting[Upstream]{
		name: "upstream", byDefault: "none", valueType: oneOf(UpstreamNone, UpstreamV1, UpstreamV2),
		field: func(l *Listener) *Upstream { return &l.ProxyProtocol.Upstream },
		meaning: "The PROXY header that the service of a tcp listener gets. The gateway sends it inside the mesh's mutual TLS, the sidecar passes it on, " +
			"and the service has to expect it. It does not concern http listeners, whose services get X-Forwarded-For.",
	},
	setting[YesNo]{
		name: "server_speaks_first", byDefault: "no", valueType: yesNo,
		field: func(l *Listener) *YesNo { return &l.ProxyProtocol.ServerSpeaksFirst },
		meaning: "Set `yes` if the service of a tcp listener sends the first bytes (SMTP, MySQL, SSH, FTP). PROXY protocol is then refused on the listener: " +
			"Envoy would wait for the first bytes of the client, and the client for those of the service.",
	},
}

var clientAddressSettings = []tableRow{
	setting[XFF]{
		name: "xff", byDefault: "default", valueType: oneOf(XFFDefault, XFFAppend, XFFOverwrite),
		field: func(l *Listener) *XFF { return &l.ClientAddress.XFF },
		meaning: "What services get as X-Forwarded-For. `append`: what the client sent, followed by the client's address. `overwrite`: only the client's address. " +
			"`default`: `append` if PROXY protocol or another setting of this group is on, otherwise what the client sent, as with Consul's own gateway.",
	},
	setting[HopCount]{
		name: "trusted_hops", byDefault: "none", valueType: number[HopCount](1, 32).or("none", NoHops),
		field: func(l *Listener) *HopCount { return &l.ClientAddress.TrustedHops },
		meaning: "How many trusted proxies in front of the gateway append to X-Forwarded-For. Do not count load balancers that send PROXY headers. " +
			"With 1, the last address in X-Forwarded-For is the client.",
	},
	setting[ForwardedProto]{
		name: "forwarded_proto", byDefault: "default", valueType: forwardedProto,
		field: func(l *Listener) *ForwardedProto { return &l.ClientAddress.ForwardedProto },
		meaning: "What services get as X-Forwarded-Proto. `connection`: `https` if the connection to the gateway uses TLS, otherwise `http`. `trust`: what the request says. " +
			"`https_ports`: `https` if the connection uses TLS or the client connected to one of these ports (with PROXY protocol: ports of the load balancer), otherwise `http`. " +
			"`default`: `trust` with trusted hops, otherwise `connection`.",
	},
}

var (
	headerName   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	cookieName   = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)
	responseFlag = regexp.MustCompile(`^(LH|UH|UT|LR|UR|UF|UC|UO|NR|DI|FI|RL|UAEX|RLSE|DC|URX|SI|IH|DPE|UMSDR|RFCF|NFCF|DT|UPE|NC|OM)$`)
)

var accessLogSettings = []tableRow{
	setting[Sinks]{
		name: "sinks", byDefault: "default", valueType: sinks,
		field: func(l *Listener) *Sinks { return &l.AccessLog.Sinks },
		meaning: "Where log entries go; each goes to all sinks. `stdout` and `stderr` are those of the Envoy. A `file` has a `path`. " +
			"`otlp` is an OpenTelemetry collector over gRPC and `grpc` is Envoy's access log service; both have an `address`. " +
			"`default`: where `proxy-defaults` sends them. A sink can have its own `format`.",
	},
	setting[LogFormat]{
		name: "format", byDefault: "default", valueType: logFormat,
		field: func(l *Listener) *LogFormat { return &l.AccessLog.Format },
		meaning: "How a log entry is written. `consul`: Consul's default JSON. `ecs`: JSON in the Elastic Common Schema. `combined`: Apache's combined format. " +
			"`{ fields = [\"client_ip\", \"path\"] }`: JSON with the fields that are listed below. `{ json = { … } }` and `{ text = \"…\" }` contain Envoy's command operators. " +
			"`default`: the format of `proxy-defaults`, or `consul` in the sinks of this setting group.",
	},
	setting[int]{
		name: "status_at_least", byDefault: "any", valueType: number(100, 599).or("any", AnyStatus),
		field: func(l *Listener) *int { return &l.AccessLog.StatusAtLeast },
		meaning: "Logs requests that were answered with this status or a higher one. " +
			"If several of this setting and the next four are set, it is enough that one of them matches.",
	},
	setting[time.Duration]{
		name: "duration_at_least", byDefault: "any", valueType: duration.or("any", AnyDuration),
		field:   func(l *Listener) *time.Duration { return &l.AccessLog.DurationAtLeast },
		meaning: "Logs requests and connections that took at least this long.",
	},
	setting[[]string]{
		name: "response_flags", byDefault: "any", valueType: names("any", responseFlag, `Envoy's response flags, such as "UF", "UH" and "NR"`),
		field:   func(l *Listener) *[]string { return &l.AccessLog.ResponseFlags },
		meaning: "Logs requests and connections with one of these flags.",
	},
	setting[HeaderFilter]{
		name: "request_header", byDefault: "any", valueType: headerFilter,
		field:   func(l *Listener) *HeaderFilter { return &l.AccessLog.RequestHeader },
		meaning: "Logs requests with this header.",
	},
	setting[string]{
		name: "expression", byDefault: "any", valueType: expression,
		field:   func(l *Listener) *string { return &l.AccessLog.Expression },
		meaning: "Logs requests and connections for which this CEL expression over Envoy's attributes is true.",
	},
	setting[SampleRate]{
		name: "sample_per_mille", byDefault: "all", valueType: number(1, SampleAll-1).or("all", SampleAll),
		field: func(l *Listener) *SampleRate { return &l.AccessLog.SamplePerMille },
		meaning: "How many of 1000 log entries are written, chosen at random. " +
			"Log entries with a status of 500 or higher, or with a response flag, are always written.",
	},
	setting[HealthChecks]{
		name: "health_checks", byDefault: "default", valueType: oneOf(HealthChecksDefault, HealthChecksLog, HealthChecksOmit),
		field: func(l *Listener) *HealthChecks { return &l.AccessLog.HealthChecks },
		meaning: "How health checks of load balancers are logged. A health check is a connection to a tcp listener from a trusted address that names no client " +
			"(a LOCAL header, or none) and sends no data. `log`: always. `omit`: never; with `permissive`, connections to any listener that close " +
			"before a complete PROXY header arrived are not logged either, which includes those with a broken header. " +
			"`default`: health checks are omitted if PROXY protocol is on, but not those other connections. " +
			"http listeners log requests, and a health check makes none.",
	},
	setting[SampleRate]{
		name: "rejected", byDefault: "default",
		valueType: number(1, SampleAll-1).or("default", SampleDefault).or("all", SampleAll).or("none", SampleNone),
		field:     func(l *Listener) *SampleRate { return &l.AccessLog.Rejected },
		meaning: "How many of 1000 rejected connections are logged, with the reason. A rejected connection was closed before its first request: " +
			"it lacks a PROXY header, or comes from an untrusted address, or no service has its server name, or its TLS handshake failed. " +
			"`default`: `all`, or what `proxy-defaults` says if the sinks are those of `proxy-defaults`.",
	},
	setting[int]{
		name: "rejected_per_second", byDefault: 10, valueType: number(1, 100_000).or("any", NoRateLimit),
		field:   func(l *Listener) *int { return &l.AccessLog.RejectedPerSecond },
		meaning: "How many rejected connections each Envoy (1.37 or later) logs per second in each sink, at most. `any`: no limit.",
	},
	setting[YesNo]{
		name: "redact_query", byDefault: "no", valueType: yesNo,
		field: func(l *Listener) *YesNo { return &l.AccessLog.RedactQuery },
		meaning: "`yes`: the query string is left out of paths and of the Referer. " +
			"This setting and the next three change what is logged, and nothing else.",
	},
	setting[[]string]{
		name: "redact_headers", byDefault: "none", valueType: headerNames,
		field:   func(l *Listener) *[]string { return &l.AccessLog.RedactHeaders },
		meaning: "Headers of requests and responses whose values are logged as `[redacted]`.",
	},
	setting[[]string]{
		name: "redact_cookies", byDefault: "none", valueType: names("none", cookieName, "names of cookies"),
		field:   func(l *Listener) *[]string { return &l.AccessLog.RedactCookies },
		meaning: "Cookies that are not logged. A `Cookie` header that has one of them is logged as `[redacted]`, and so is every `Set-Cookie`.",
	},
	setting[ClientAddressLog]{
		name: "client_address", byDefault: "whole", valueType: oneOf(ClientWhole, ClientTruncated),
		field:   func(l *Listener) *ClientAddressLog { return &l.AccessLog.ClientAddress },
		meaning: "`truncated`: only the network of the client is logged (203.0.113.0/24, or 2001:db8:1::/48), and no header that contains addresses.",
	},
}

// setting is the setting that is a field of type T of a Listener.
type setting[T any] struct {
	name      string
	byDefault any // as it is written
	valueType valueType[T]
	field     func(*Listener) *T
	meaning   string
}

// tableRow is a setting of any type.
type tableRow interface {
	key() string
	describe() Setting
	decode(d *decoder, where string, raw any, into *Listener)
	decodeDefault(d *decoder, into *Listener)
	resolve(into *Listener, layers []*Listener)
}

func (s setting[T]) key() string { return s.name }

func (s setting[T]) describe() Setting {
	text, _ := json.Marshal(s.byDefault) // words and numbers: no error
	return Setting{
		Key: s.name, Accepts: s.valueType.accepts(), Default: strings.ReplaceAll(string(text), ",", ", "), Meaning: s.meaning,
	}
}

func (s setting[T]) decode(d *decoder, where string, raw any, into *Listener) {
	if v, ok := s.valueType.decode(d, where, raw); ok {
		*s.field(into) = v
	}
}

func (s setting[T]) decodeDefault(d *decoder, into *Listener) { s.decode(d, s.name, s.byDefault, into) }

// resolve takes the setting from the first layer that sets it.
func (s setting[T]) resolve(into *Listener, layers []*Listener) {
	for _, l := range layers {
		if v := *s.field(l); !reflect.ValueOf(&v).Elem().IsZero() {
			*s.field(into) = v
			return
		}
	}
}

// defaults are the defaults of all settings.
var defaults = func() (l Listener) {
	var d decoder
	for _, g := range Groups {
		for _, s := range g.settings {
			s.decodeDefault(&d, &l)
		}
	}
	if len(d.problems) > 0 {
		panic(fmt.Sprintf("the table of settings has bad defaults: %v", d.problems))
	}
	return l
}()
