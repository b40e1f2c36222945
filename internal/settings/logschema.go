package settings

import (
	"regexp"
	"time"
)

// accessLogSchema are the settings of access logs in the table of all settings.
var accessLogSchema = []setting{
	option[Sinks]{
		path: "access_log.sinks", initial: Sinks{Type: SinksDefault}, says: `"default"`,
		field: func(p *Listener) *Sinks { return &p.AccessLog.Sinks },
		kind:  sinks,
		meaning: "where entries go, each to all of them: `stdout` and `stderr` of the Envoy, a `file` with its `path`, a collector of OpenTelemetry (`otlp`, over gRPC) or of " +
			"Envoy's access log service (`grpc`) with its `address`. `default` is where `proxy-defaults` says. A sink can have a `format` of its own",
	},
	option[LogFormat]{
		path: "access_log.format", initial: LogFormat{Type: FormatDefault}, says: `"default"`,
		field: func(p *Listener) *LogFormat { return &p.AccessLog.Format },
		kind:  logFormat,
		meaning: "how an entry is written: `consul` is Consul's default JSON, `ecs` is JSON by the Elastic Common Schema, `combined` is Apache's; `{ fields = [\"client_ip\", \"path\"] }` is JSON " +
			"with fields by the names below, `{ json = { … } }` and `{ text = \"…\" }` have Envoy's operators. `default` is what `proxy-defaults` says, or `consul` in sinks of your own",
	},
	option[int]{
		path: "access_log.status_at_least", initial: AnyStatus, says: `"any"`,
		field:   func(p *Listener) *int { return &p.AccessLog.StatusAtLeast },
		kind:    atLeast(100, 599),
		meaning: "logs requests that were answered with this status or a higher one. Of this setting and the next four, one that is met is enough",
	},
	option[time.Duration]{
		path: "access_log.duration_at_least", initial: AnyDuration, says: `"any"`,
		field:   func(p *Listener) *time.Duration { return &p.AccessLog.DurationAtLeast },
		kind:    durationAtLeast,
		meaning: "logs what took at least that long",
	},
	option[[]string]{
		path: "access_log.response_flags", initial: []string{}, says: `"any"`,
		field:   func(p *Listener) *[]string { return &p.AccessLog.ResponseFlags },
		kind:    namesOr("any", regexp.MustCompile(`^(LH|UH|UT|LR|UR|UF|UC|UO|NR|DI|FI|RL|UAEX|RLSE|DC|URX|SI|IH|DPE|UMSDR|RFCF|NFCF|DT|UPE|NC|OM)$`), `Envoy's response flags, such as "UF", "UH" and "NR"`),
		meaning: "logs what has one of these flags",
	},
	option[HeaderFilter]{
		path: "access_log.request_header", initial: HeaderFilter{Name: AnyHeader}, says: `"any"`,
		field:   func(p *Listener) *HeaderFilter { return &p.AccessLog.RequestHeader },
		kind:    logHeader,
		meaning: "logs requests with this header",
	},
	option[string]{
		path: "access_log.expression", initial: AnyExpression, says: `"any"`,
		field:   func(p *Listener) *string { return &p.AccessLog.Expression },
		kind:    expression,
		meaning: "logs what this expression of CEL is true for, with Envoy's attributes",
	},
	option[int]{
		path: "access_log.sample_per_mille", initial: int(SampleAll), says: `"all"`,
		field:   func(p *Listener) *int { return &p.AccessLog.SamplePerMille },
		kind:    perMille,
		meaning: "how many of a thousand entries are logged, by chance. Those with a status of 500 or more, or with a response flag, always are",
	},
	option[HealthChecks]{
		path: "access_log.health_checks", initial: HealthChecksDefault, says: `"default"`,
		field: func(p *Listener) *HealthChecks { return &p.AccessLog.HealthChecks },
		kind:  words(HealthChecksDefault, HealthChecksLog, HealthChecksOmit),
		meaning: "what becomes of the connections with which a balancer looks whether anybody is there: those to a tcp listener, by a peer that is believed, that name no client " +
			"(a LOCAL header, or none) and send no byte. `omit` leaves out, with `permissive`, also the connections to any listener that end before Envoy knows whether they have a header, and with them those whose header is broken. `default` omits where PROXY protocol is on, but not these. " +
			"http listeners log requests, and such a connection has none",
	},
	option[SampleRate]{
		path: "access_log.rejected", initial: SampleDefault, says: `"default"`,
		field: func(p *Listener) *SampleRate { return &p.AccessLog.Rejected },
		kind:  share,
		meaning: "how many of a thousand connections that were closed before they could ask for anything are logged, with the reason: no PROXY header where one is needed, a peer that is not trusted, " +
			"no service for the server name, TLS that failed. `default` is `all`, and what `proxy-defaults` says where the sinks are its own",
	},
	option[int]{
		path: "access_log.rejected_per_second", initial: 10, says: "10",
		field:   func(p *Listener) *int { return &p.AccessLog.RejectedPerSecond },
		kind:    atLeast(1, 100_000),
		meaning: "how many of these connections each Envoy (from 1.37 on) logs a second in each sink, at most; `any` is no limit",
	},
	option[YesNo]{
		path: "access_log.redact_query", initial: No, says: `"no"`,
		field:   func(p *Listener) *YesNo { return &p.AccessLog.RedactQuery },
		kind:    words(Yes, No),
		meaning: "`yes` leaves the query string out of paths and of the Referer. This and the next three change what is logged, and nothing else",
	},
	option[[]string]{
		path: "access_log.redact_headers", initial: []string{}, says: `"none"`,
		field:   func(p *Listener) *[]string { return &p.AccessLog.RedactHeaders },
		kind:    headerNames("none"),
		meaning: "headers of requests and responses whose values are logged as `[redacted]`",
	},
	option[[]string]{
		path: "access_log.redact_cookies", initial: []string{}, says: `"none"`,
		field:   func(p *Listener) *[]string { return &p.AccessLog.RedactCookies },
		kind:    namesOr("none", cookieName, "names of cookies"),
		meaning: "cookies that are not logged: a `Cookie` header that has one of them is logged as `[redacted]`, and every `Set-Cookie`",
	},
	option[ClientAddressLog]{
		path: "access_log.client_address", initial: ClientWhole, says: `"whole"`,
		field:   func(p *Listener) *ClientAddressLog { return &p.AccessLog.ClientAddress },
		kind:    words(ClientWhole, ClientTruncated),
		meaning: "`truncated` logs the network of the client alone: 203.0.113.0/24, or 2001:db8:1::/48, and no header with addresses",
	},
}
