package settings

import (
	"slices"
	"strings"
	"time"
)

// AccessLog says what is logged of one listener, in which format, and where. Its fields are settings, like those of
// ProxyProtocol.
type AccessLog struct {
	Sinks  Sinks
	Format LogFormat

	// A log entry is written if it meets one of these conditions. AnyStatus and the other words below stand for no
	// condition.
	StatusAtLeast   int
	DurationAtLeast time.Duration
	ResponseFlags   []string // sorted; empty and not nil: no condition
	RequestHeader   HeaderFilter
	Expression      string // in CEL, or AnyExpression

	SamplePerMille SampleRate // of the log entries without an error
	HealthChecks   HealthChecks
	Rejected       SampleRate
	// RejectedPerSecond is how many rejected connections each Envoy logs per second in each sink, at most;
	// NoRateLimit: all.
	RejectedPerSecond int

	RedactQuery   YesNo
	RedactHeaders []string // sorted; empty and not nil: none
	RedactCookies []string // the same
	ClientAddress ClientAddressLog
}

// The values of the words that switch a condition or a limit off.
const (
	AnyStatus     = -1
	NoRateLimit   = -1
	AnyDuration   = time.Duration(-1)
	AnyExpression = "any"
	AnyHeader     = "any"
)

// Sinks are where log entries go.
type Sinks struct {
	Type   SinksType
	Custom []Sink // of SinksCustom, in the order of the setting
}

// SinksType is where the sinks of a listener are configured.
type SinksType string

// The types of sinks.
const (
	SinksDefault SinksType = "default" // AccessLogs of proxy-defaults
	SinksNone    SinksType = "none"
	SinksCustom  SinksType = "custom"
)

// Sink takes log entries.
type Sink struct {
	Type SinkType
	Path string // of SinkFile, on the gateway's machine
	// Address and TLS are those of a collector. TLS is nil for plain text.
	Address HostPort
	TLS     *CollectorTLS
	// Format is the sink's own; the zero value means the listener's.
	Format LogFormat
	// RequestHeaders are the headers that a sink of type SinkGRPC gets in addition.
	RequestHeaders []string
}

// HostPort is where a collector listens: a host name or an IP address without brackets, and a port.
type HostPort struct {
	Host string
	Port int
}

// SinkType is a type of sink.
type SinkType string

// The types of a sink.
const (
	SinkStdout SinkType = "stdout"
	SinkStderr SinkType = "stderr"
	SinkFile   SinkType = "file"
	SinkOTLP   SinkType = "otlp" // OpenTelemetry logs over gRPC
	SinkGRPC   SinkType = "grpc" // Envoy's access log service
)

// CollectorTLS is how a collector proves its identity.
type CollectorTLS struct {
	CA  string // the certificates that sign the collector's, in PEM
	SNI string // the name in the handshake and in the collector's certificate; "": the host of its address
}

// LogFormat is how a log entry is written.
type LogFormat struct {
	Type   LogFormatType
	Text   string         // of FormatText
	JSON   map[string]any // of FormatJSON: texts with command operators, numbers, booleans and such objects
	Fields []string       // of FormatFields, in the order of the setting
}

// LogFormatType is a preset, or one of the ways to write a format.
type LogFormatType string

// The types of formats.
const (
	FormatDefault  LogFormatType = "default"  // the one of proxy-defaults, or FormatConsul in custom sinks
	FormatConsul   LogFormatType = "consul"   // Consul's default JSON
	FormatECS      LogFormatType = "ecs"      // Elastic Common Schema
	FormatCombined LogFormatType = "combined" // Apache's
	FormatText     LogFormatType = "text"
	FormatJSON     LogFormatType = "json"
	FormatFields   LogFormatType = "fields"
)

// HeaderFilter selects requests by a header. The zero value sets nothing.
type HeaderFilter struct {
	Name  string // or AnyHeader
	Value string // "": any value
}

// SampleRate is how many of 1000 log entries are written.
type SampleRate int

// The values of the words for sample rates.
const (
	SampleDefault SampleRate = -1 // all, unless DisableListenerLogs of proxy-defaults switches them off
	SampleNone    SampleRate = -2
	SampleAll     SampleRate = 1000
)

// HealthChecks says whether health checks of load balancers are logged.
type HealthChecks string

// What happens to health checks.
const (
	HealthChecksDefault HealthChecks = "default" // omitted where PROXY protocol is on
	HealthChecksLog     HealthChecks = "log"
	HealthChecksOmit    HealthChecks = "omit"
)

// ClientAddressLog says how much of the client's address is logged.
type ClientAddressLog string

// How much of the address is logged.
const (
	ClientWhole     ClientAddressLog = "whole"
	ClientTruncated ClientAddressLog = "truncated" // the network: /24, or /48 of IPv6
)

// IsCustom reports whether the listener has custom sinks or a custom format, and not only those of Consul.
func (a AccessLog) IsCustom() bool {
	return a.Sinks.Type == SinksCustom || a.Format.Type != FormatDefault
}

// References reports whether a custom format contains the field or one of the words, or the expression contains one
// of the words.
func (a AccessLog) References(field string, words ...string) bool {
	formats := []LogFormat{a.Format}
	for _, s := range a.Sinks.Custom {
		formats = append(formats, s.Format)
	}
	return contains(a.Expression, words) || slices.ContainsFunc(formats, func(f LogFormat) bool {
		return slices.Contains(f.Fields, field) || contains(f.Text, words) || contains(f.JSON, words)
	})
}

// contains reports whether a text, or one of the texts in an object, contains one of the words.
func contains(value any, words []string) bool {
	switch v := value.(type) {
	case string:
		return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(v, word) })
	case map[string]any:
		for _, member := range v {
			if contains(member, words) {
				return true
			}
		}
	}
	return false
}

// Redacts reports whether log entries leave anything out for privacy.
func (a AccessLog) Redacts() bool {
	return a.RedactQuery == Yes || len(a.RedactHeaders) > 0 || len(a.RedactCookies) > 0 || a.ClientAddress == ClientTruncated
}

// LogField is a named field of an access log.
type LogField struct{ Name, Meaning string }

// LogFields are the fields that a format can name, in the order of their documentation. Fields of Consul's default
// format have the same names there.
var LogFields = []LogField{
	{"start_time", "when the request or the connection began"},
	{"client_address", "the client's address and port"},
	{"client_ip", "the client's address without the port"},
	{"client_port", "the client's port"},
	{"balancer_address", "the connecting address; with PROXY protocol, the load balancer's"},
	{"gateway_address", "the address that the client connected to; with PROXY protocol, the load balancer's"},
	{"x_forwarded_for", "what the service gets as X-Forwarded-For"},
	{"tls_version", "the TLS version of the connection to the gateway, such as TLSv1.3"},
	{"tls_cipher", "the cipher suite of the connection to the gateway"},
	{"requested_server_name", "the server name (SNI) that the client asked for"},
	{"client_certificate_subject", "the subject of the client's certificate"},
	{"client_certificate_issuer", "the issuer of the client's certificate"},
	{"client_certificate_serial", "the serial number of the client's certificate"},
	{"client_certificate_sha256", "the SHA-256 fingerprint of the client's certificate"},
	{"protocol", "the protocol of the request, such as HTTP/1.1 or HTTP/2"},
	{"method", "the method of the request"},
	{"authority", "the host of the request"},
	{"path", "the path of the request, with the query string"},
	{"user_agent", "the User-Agent of the request"},
	{"referer", "the Referer of the request"},
	{"request_id", "the X-Request-Id of the request"},
	{"response_code", "the status of the answer; 0 if there was none"},
	{"response_code_details", "who answered, and why"},
	{"response_flags", "Envoy's flags for what went wrong"},
	{"grpc_status", "the status of a gRPC call"},
	{"route_name", "the name of the route"},
	{"service", "the cluster that the request or connection went to"},
	{"service_address", "the instance that the request or connection went to"},
	{"attempts", "the number of attempts; 2 is one retry"},
	{"upstream_failure", "why the connection to the instance failed"},
	{"bytes_received", "the bytes received: the body of the request, or all of a connection"},
	{"bytes_sent", "the bytes sent: the body of the answer, or all of a connection"},
	{"duration", "milliseconds from the first byte of the request to the last byte of the answer"},
	{"request_duration", "milliseconds until the whole request had arrived"},
	{"service_duration", "milliseconds until the service began to answer"},
	{"connection_id", "the ID of the client's connection"},
	{"connection_termination_details", "why Envoy closed the connection"},
}

// LogFieldNames are the names of LogFields.
var LogFieldNames = func() (names []string) {
	for _, f := range LogFields {
		names = append(names, f.Name)
	}
	return names
}()
