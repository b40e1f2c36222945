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
	Key, Meaning string
	Settings     []Setting
}

// Setting is one setting: a field of a Listener.
type Setting struct {
	Key     string
	Accepts string // the values that are allowed
	Default string // as it is written
	Example string // a value other than Default, as HCL
	Meaning string
	Hidden  bool // a value may hold a secret: no message quotes it

	byDefault any // the raw value of Default
	decode    func(d *decoder, where string, raw any, into *Listener)
	isSet     func(l *Listener) bool
	copy      func(into, from *Listener)
}

func groupKeys() (keys []string) {
	for _, g := range Groups {
		keys = append(keys, g.Key)
	}
	return keys
}

// AnyNetwork is what the word "any" means for trusted_cidrs.
var AnyNetwork = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// listenersKey is the key of the settings of single listeners, by port.
const listenersKey = "listeners"

// Groups is the table of all settings. Decoding, merging, messages and docs/settings.md follow from it, in its order.
var Groups = []Group{
	{"proxy_protocol", "PROXY protocol headers, in which a load balancer names the client of a connection.", proxyProtocolSettings},
	{"client_address", "Request headers in which proxies in front of the gateway name the client. " +
		"They concern http, http2 and grpc listeners, with and without PROXY protocol.", clientAddressSettings},
	{"access_log", "What is logged of requests and connections, in which format, and where. " +
		"Where nothing is set here, `AccessLogs` of the config entry `proxy-defaults` applies.", accessLogSettings},
}

var proxyProtocolSettings = []Setting{
	setting("mode", "auto", oneOf(Auto, Off, Permissive, Strict),
		func(l *Listener) *Mode { return &l.ProxyProtocol.Mode },
		"Which connections the listener accepts. `off`: it does not look for PROXY headers, exactly like Consul's own gateway. "+
			"`permissive`: connections with and without a PROXY header. `strict`: connections with a PROXY header; it closes all others. "+
			"`auto`: what the gateway's Service in Kubernetes tells the load balancer ([load-balancers.md](load-balancers.md)); outside Kubernetes `off`.").like(`"strict"`),
	setting("versions", []any{"v1", "v2"}, setOf(oneOf(V1, V2), cmp.Compare, `a list of "v1", "v2" or both`),
		func(l *Listener) *[]Version { return &l.ProxyProtocol.Versions },
		"The versions of the PROXY protocol that the listener accepts. With `strict`, a header of the other version closes the connection. "+
			"With `permissive`, it counts as data: http listeners answer 400, and tcp listeners have to accept both versions.").like(`["v2"]`),
	setting("trusted_cidrs", "any", networks,
		func(l *Listener) *[]netip.Prefix { return &l.ProxyProtocol.TrustedCIDRs },
		"The addresses that your load balancers connect from. Only their PROXY headers are believed. "+
			"With `strict`, connections from other addresses are closed. "+
			"With `permissive`, they are served, and the client is the connecting address, whatever the header says. "+
			"With `auto` and `--connection-reports`, headers from these addresses make a listener `permissive` that would be `off` "+
			"([load-balancers.md](load-balancers.md#what-connections-show)).").like(`["10.0.16.0/20", "2001:db8:16::/48"]`),
	setting("tlvs", "none", tlvs, func(l *Listener) *[]TLV { return &l.ProxyProtocol.TLVs },
		"What else of a PROXY header of version 2 is logged, under `name`. With `header`, http services get the value in that request header, "+
			"and Usher removes the header from requests of clients; `\"none\"` means no header. The types with names are listed below.").like(`[{ type = "aws_vpce_id", name = "vpce", header = "x-vpc-endpoint" }]`),
	setting("upstream", "none", oneOf(UpstreamNone, UpstreamV1, UpstreamV2),
		func(l *Listener) *Upstream { return &l.ProxyProtocol.Upstream },
		"The PROXY header that the service of a tcp listener gets. The gateway sends it inside the mesh's mutual TLS, the sidecar passes it on, "+
			"and the service has to expect it. It does not concern http listeners, whose services get X-Forwarded-For.").like(`"v2"`),
	setting("upstream_tlvs", "none", tlvTypes.or("none", []uint8{}),
		func(l *Listener) *[]uint8 { return &l.ProxyProtocol.UpstreamTLVs },
		"Which TLVs of the load balancer's header are in the header that `upstream` (\"v2\") sends. They are handed on as they are.").like(`["aws_vpce_id", "0xE4"]`),
	setting("server_speaks_first", "no", yesNo, func(l *Listener) *YesNo { return &l.ProxyProtocol.ServerSpeaksFirst },
		"Set `yes` if the service of a tcp listener sends the first bytes (SMTP, MySQL, SSH, FTP). PROXY protocol is then refused on the listener: "+
			"Envoy would wait for the client, and the client would wait for the service.").like(`"yes"`),
}

var clientAddressSettings = []Setting{
	setting("xff", "default", oneOf(XFFDefault, XFFAppend, XFFKeep, XFFOverwrite),
		func(l *Listener) *XFF { return &l.ClientAddress.XFF },
		"What services get as X-Forwarded-For. `append`: what the client sent, followed by the client's address. `overwrite`: only the client's address; "+
			"what proxies in `trusted_cidrs` sent stays, followed by their address. "+
			"`keep`: what was sent, unchanged; a service that takes the last address of it then believes every client. "+
			"`default`: `append` if PROXY protocol or another setting of this group but `forwarded_port` is on, otherwise what the client sent, as with Consul's own gateway.").like(`"overwrite"`),
	setting("trusted_cidrs", "none", proxyNetworks,
		func(l *Listener) *[]netip.Prefix { return &l.ClientAddress.TrustedCIDRs },
		"The addresses of HTTP proxies in front of the gateway, such as load balancers and CDNs that write X-Forwarded-For. Only what they say about the client is believed: "+
			"the client is the last address in X-Forwarded-For that is not in these networks. All others are clients themselves. "+
			"With PROXY protocol, the address in the header is compared, and addresses outside of `proxy_protocol.trusted_cidrs` are never believed.").like(`["10.0.32.0/20", "198.51.100.0/24"]`),
	setting("header", "none", clientHeader,
		func(l *Listener) *string { return &l.ClientAddress.Header },
		"The request header in which the proxies in `trusted_cidrs` name the client, instead of X-Forwarded-For. "+
			"Where it is missing, or is not an address, the client is the proxy. Usher removes the header from requests of all others.").like(`"cf-connecting-ip"`),
	setting("fail_closed", "no", yesNo, func(l *Listener) *YesNo { return &l.ClientAddress.FailClosed },
		"`yes`: a request of the proxies in `trusted_cidrs` is answered with 403 if `header` is missing, or is not an address.").like(`"yes"`),
	setting("trusted_hops", "none", number[HopCount](1, 32).or("none", NoHops),
		func(l *Listener) *HopCount { return &l.ClientAddress.TrustedHops },
		"How many trusted proxies in front of the gateway append to X-Forwarded-For. Do not count load balancers that send PROXY headers. "+
			"With 1, the last address in X-Forwarded-For is the client.").like(`1`),
	setting("forwarded_proto", "default", forwardedProto,
		func(l *Listener) *ForwardedProto { return &l.ClientAddress.ForwardedProto },
		"What services get as X-Forwarded-Proto. `connection`: `https` if the connection to the gateway uses TLS, otherwise `http`. `trust`: what the request says. "+
			"`https_ports`: `https` if the connection uses TLS or the client connected to one of these ports (with PROXY protocol: ports of the load balancer), otherwise `http`. "+
			"`proxy_protocol`: `https` if the connection uses TLS or the PROXY header says that the client's connection to the load balancer does (TLV 0x20), otherwise `http`. "+
			"`default`: `trust` with trusted hops, and for proxies in `trusted_cidrs`; otherwise `connection`. With `trusted_cidrs`, only these are trusted.").like(`{ https_ports = [443] }`),
	setting("forwarded_port", "default", oneOf(ForwardedPortDefault, ForwardedPortConnection, ForwardedPortTrust),
		func(l *Listener) *ForwardedPort { return &l.ClientAddress.ForwardedPort },
		"What services get as X-Forwarded-Port. `connection`: the port that the client connected to: with a PROXY header the load balancer's port, otherwise the listener's. "+
			"`trust`: what the trusted hops say, or the proxies in `trusted_cidrs`, or else the same as `connection`; it needs one of these. "+
			"With both, an address outside of `trusted_cidrs` gets the listener's own port. `default`: what the client sent, as with Consul's own gateway.").like(`"connection"`),
}

var (
	headerName   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	cookieName   = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)
	responseFlag = regexp.MustCompile(`^(LH|UH|UT|LR|UR|UF|UC|UO|NR|DI|FI|RL|UAEX|RLSE|DC|URX|SI|IH|DPE|UMSDR|RFCF|NFCF|DT|UPE|NC|OM)$`)
)

var accessLogSettings = []Setting{
	setting("sinks", "default", sinks, func(l *Listener) *Sinks { return &l.AccessLog.Sinks },
		"Where log entries go; each goes to all sinks. `stdout` and `stderr` are those of the Envoy. A `file` has a `path`. "+
			"`otlp` is an OpenTelemetry collector over gRPC and `grpc` is Envoy's access log service; both have an `address`. "+
			"`default`: where `proxy-defaults` sends them. A sink can have its own `format`.").like(`[{ type = "stdout" }, { type = "otlp", address = "collector.internal:4317" }]`),
	setting("format", "default", logFormat, func(l *Listener) *LogFormat { return &l.AccessLog.Format },
		"How a log entry is written. `consul`: Consul's default JSON. `ecs`: JSON in the Elastic Common Schema. `combined`: Apache's combined format. "+
			"`{ fields = [\"client_ip\", \"path\"] }`: JSON with the fields that are listed below. `{ json = { … } }` and `{ text = \"…\" }` contain Envoy's command operators. "+
			"`default`: the format of `proxy-defaults`, or `consul` in the sinks of this setting group.").like(`{ fields = ["start_time", "client_ip", "method", "path", "response_code"] }`),
	setting("status_at_least", "any", number(100, 599).or("any", AnyStatus),
		func(l *Listener) *int { return &l.AccessLog.StatusAtLeast },
		"Logs requests that were answered with this status or a higher one. "+
			"If you set several of the settings from this one to `expression`, an entry that matches one of them is logged.").like(`500`),
	setting("duration_at_least", "any", duration.or("any", AnyDuration),
		func(l *Listener) *time.Duration { return &l.AccessLog.DurationAtLeast },
		"Logs requests and connections that took at least this long.").like(`"250ms"`),
	setting("response_flags", "any", names("any", responseFlag, `Envoy's response flags, such as "UF", "UH" and "NR"`),
		func(l *Listener) *[]string { return &l.AccessLog.ResponseFlags },
		"Logs requests and connections with one of these flags.").like(`["UF", "UH", "NR"]`),
	setting("request_header", "any", headerFilter,
		func(l *Listener) *HeaderFilter { return &l.AccessLog.RequestHeader },
		"Logs requests with this header.").like(`{ name = "x-debug", value = "1" }`),
	setting("expression", "any", expression, func(l *Listener) *string { return &l.AccessLog.Expression },
		"Logs requests and connections for which this CEL expression over Envoy's attributes is true.").like(`"request.path.startsWith('/pay')"`),
	setting("sample_per_mille", "all", number(1, SampleAll-1).or("all", SampleAll),
		func(l *Listener) *SampleRate { return &l.AccessLog.SamplePerMille },
		"How many of 1000 log entries are written, chosen at random. "+
			"Log entries with a status of 500 or higher, or with a response flag, are always written.").like(`10`),
	setting("health_checks", "default", oneOf(HealthChecksDefault, HealthChecksLog, HealthChecksOmit),
		func(l *Listener) *HealthChecks { return &l.AccessLog.HealthChecks },
		"How health checks of load balancers are logged. A health check is a connection to a tcp listener from a trusted address that names no client "+
			"(a LOCAL header, or none) and sends no data. `log`: always. `omit`: never; with `permissive`, connections to any listener that close "+
			"before a complete PROXY header arrived are not logged either, which includes those with a broken header. "+
			"`default`: health checks are omitted if PROXY protocol is on, but not those other connections. "+
			"http listeners log requests, and a health check makes none.").like(`"omit"`),
	setting("rejected", "default", number(1, SampleAll-1).or("default", SampleDefault).or("all", SampleAll).or("none", SampleNone),
		func(l *Listener) *SampleRate { return &l.AccessLog.Rejected },
		"How many of 1000 rejected connections are logged, with the reason. A rejected connection was closed before its first request: "+
			"it lacks a PROXY header, or comes from an untrusted address, or no service has its server name, or its TLS handshake failed. "+
			"`default`: `all`, or what `proxy-defaults` says if the sinks are those of `proxy-defaults`.").like(`100`),
	setting("rejected_per_second", 10, number(1, 100_000).or("any", NoRateLimit),
		func(l *Listener) *int { return &l.AccessLog.RejectedPerSecond },
		"How many rejected connections each Envoy (1.37 or later) logs per second in each sink, at most. `any`: no limit.").like(`"any"`),
	setting("redact_query", "no", yesNo, func(l *Listener) *YesNo { return &l.AccessLog.RedactQuery },
		"`yes`: the query string is left out of paths and of the Referer. "+
			"This setting and the next three change what is logged, and nothing else.").like(`"yes"`),
	setting("redact_headers", "none", headerNames, func(l *Listener) *[]string { return &l.AccessLog.RedactHeaders },
		"Headers of requests and responses whose values are logged as `[redacted]`.").like(`["authorization", "x-api-key"]`),
	setting("redact_cookies", "none", names("none", cookieName, "names of cookies"),
		func(l *Listener) *[]string { return &l.AccessLog.RedactCookies },
		"Cookies that are not logged. A `Cookie` header that has one of them is logged as `[redacted]`, and so is every `Set-Cookie`.").like(`["session"]`),
	setting("client_address", "whole", oneOf(ClientWhole, ClientTruncated),
		func(l *Listener) *ClientAddressLog { return &l.AccessLog.ClientAddress },
		"`truncated`: only the network of the client is logged (203.0.113.0/24, or 2001:db8:1::/48), and no header that contains addresses.").like(`"truncated"`),
}

// setting returns the setting that is a field of type T of a Listener.
func setting[T any](key string, byDefault any, t valueType[T], field func(*Listener) *T, meaning string) Setting {
	text, _ := json.Marshal(byDefault) // words and numbers: no error
	return Setting{
		Key: key, Accepts: t.accepts(), Default: strings.ReplaceAll(string(text), ",", ", "), Meaning: meaning, Hidden: t.hidden,
		byDefault: byDefault,
		decode: func(d *decoder, where string, raw any, into *Listener) {
			if v, ok := t.decode(d, where, raw); ok {
				*field(into) = v
			}
		},
		isSet: func(l *Listener) bool { return !reflect.ValueOf(field(l)).Elem().IsZero() },
		copy:  func(into, from *Listener) { *field(into) = *field(from) },
	}
}

// like returns the setting with an example.
func (s Setting) like(example string) Setting {
	s.Example = example
	return s
}

// defaults are the defaults of all settings.
var defaults = func() (l Listener) {
	var d decoder
	for _, g := range Groups {
		for _, s := range g.Settings {
			s.decode(&d, s.Key, s.byDefault, &l)
		}
	}
	if len(d.problems) > 0 {
		panic(fmt.Sprintf("the table of settings has bad defaults: %v", d.problems))
	}
	return l
}()
