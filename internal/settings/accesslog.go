package settings

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"time"
)

// AccessLog says of one listener what is logged, how, and where to. Its fields
// are settings, as those of ProxyProtocol.
type AccessLog struct {
	Sinks  Sinks
	Format LogFormat

	// What an entry has to have to be logged: any one of these. AnyStatus and
	// the like ask for nothing.
	StatusAtLeast   int
	DurationAtLeast time.Duration
	ResponseFlags   []string // sorted; empty and not nil: any
	RequestHeader   HeaderFilter
	Expression      string // of CEL, or AnyExpression

	SamplePerMille int // of the entries without an error; SampleAll: all of them
	HealthChecks   HealthChecks
	Rejected       SampleRate
	// RejectedPerSecond is how many rejected connections each Envoy logs a second
	// in each sink, at most; NoRateLimit: all of them.
	RejectedPerSecond int

	RedactQuery   YesNo
	RedactHeaders []string // sorted; empty and not nil: none
	RedactCookies []string // the same
	ClientAddress ClientAddressLog
}

// The words that ask for nothing.
const (
	AnyStatus     = anyNumber
	NoRateLimit   = anyNumber
	AnyDuration   = time.Duration(-1)
	AnyExpression = "any"

	anyNumber = -1
)

// Sinks say where entries go.
type Sinks struct {
	Type   SinksType
	Custom []Sink // of SinksCustom, in the operator's order
}

// SinkSource is where sinks come from.
type SinksType string

// The sources of sinks.
const (
	SinksDefault SinksType = "default" // proxy-defaults' AccessLogs
	SinksNone    SinksType = "none"
	SinksCustom  SinksType = "own"
)

// Sink takes entries.
type Sink struct {
	Type SinkType
	Path string // of SinkFile, on the gateway's machine
	// Address and TLS are those of a collector. TLS is nil for plain text.
	Address HostPort
	TLS     *CollectorTLS
	// Format is the sink's own; its zero value: the listener's.
	Format LogFormat
	// RequestHeaders go to a sink of SinkGRPC, beside what is always in an entry.
	RequestHeaders []string
}

// HostPort is where a collector listens: a host name or an IP address without
// brackets, and a port. The zero value names none.
type HostPort struct {
	Host string
	Port int
}

// SinkType is a kind of sink.
type SinkType string

// The kinds of sinks.
const (
	SinkStdout SinkType = "stdout"
	SinkStderr SinkType = "stderr"
	SinkFile   SinkType = "file"
	SinkOTLP   SinkType = "otlp" // OpenTelemetry logs over gRPC
	SinkGRPC   SinkType = "grpc" // Envoy's access log service
)

// CollectorTLS says how a collector proves who it is.
type CollectorTLS struct {
	CA  string // certificates that sign the collector's, in PEM
	SNI string // the name it is asked for and must have; "": the host of its address
}

// LogFormat says how an entry is written.
type LogFormat struct {
	Type   LogFormatType
	Text   string         // of FormatText
	JSON   map[string]any // of FormatJSON: strings with operators, numbers, booleans and such objects
	Fields []string       // of FormatFields, in the operator's order
}

// FormatSource is a preset, or one of the ways to write a format.
type LogFormatType string

// The formats.
const (
	FormatDefault  LogFormatType = "default"  // proxy-defaults', or FormatConsul in sinks of one's own
	FormatConsul   LogFormatType = "consul"   // Consul's default JSON
	FormatECS      LogFormatType = "ecs"      // Elastic Common Schema
	FormatCombined LogFormatType = "combined" // Apache's
	FormatText     LogFormatType = "text"
	FormatJSON     LogFormatType = "json"
	FormatFields   LogFormatType = "fields"
)

// LogHeader is a request header that entries are logged for. The zero value
// says nothing.
type HeaderFilter struct {
	Name  string // or AnyHeader
	Value string // "": any value
}

// AnyHeader is the word that asks for no header.
const AnyHeader = "any"

// Share is how many of a thousand.
type SampleRate int

// The words for shares.
const (
	SampleDefault SampleRate = -1 // all, unless proxy-defaults' DisableListenerLogs says none
	SampleNone    SampleRate = -2
	SampleAll     SampleRate = 1000
)

// HealthChecks says what becomes of connections that balancers make to see
// whether anybody is there.
type HealthChecks string

// What becomes of health checks.
const (
	HealthChecksDefault HealthChecks = "default" // left out where PROXY protocol is on
	HealthChecksLog     HealthChecks = "log"
	HealthChecksOmit    HealthChecks = "omit"
)

// ClientAddressLog says how much of the client's address is logged.
type ClientAddressLog string

// How much is logged.
const (
	ClientWhole     ClientAddressLog = "whole"
	ClientTruncated ClientAddressLog = "truncated" // to its network: /24, or /48 of IPv6
)

// Own says whether the listener has sinks or a format of its own, and not
// Consul's alone.
func (a AccessLog) IsCustom() bool {
	return a.Sinks.Type == SinksCustom || a.Format.Type != FormatDefault
}

// Mentions says whether a format of the operator's own, or the expression, has a
// field or one of these words in it.
func (a AccessLog) References(field string, words ...string) bool {
	formats := []LogFormat{a.Format}
	for _, s := range a.Sinks.Custom {
		formats = append(formats, s.Format)
	}
	return has(a.Expression, words) || slices.ContainsFunc(formats, func(f LogFormat) bool {
		return has(f.Text, words) || slices.Contains(f.Fields, field) || hasIn(f.JSON, words)
	})
}

func has(text string, words []string) bool {
	return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(text, word) })
}

// hasIn is has for the texts in an object.
func hasIn(object map[string]any, words []string) bool {
	for _, value := range object {
		switch v := value.(type) {
		case string:
			if has(v, words) {
				return true
			}
		case map[string]any:
			if hasIn(v, words) {
				return true
			}
		}
	}
	return false
}

// Redacts says whether anything is kept out of logs.
func (a AccessLog) Redacts() bool {
	return a.RedactQuery == Yes || len(a.RedactHeaders) > 0 || len(a.RedactCookies) > 0 || a.ClientAddress == ClientTruncated
}

// certificates says whether a text is one or more certificates in PEM, and
// nothing else.
func certificates(text string) bool {
	rest, found := []byte(text), false
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return found && len(bytes.TrimSpace(rest)) == 0
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil || block.Type != "CERTIFICATE" {
			return false
		}
		found = true
	}
}
