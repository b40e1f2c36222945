package accesslog

import (
	"regexp"
	"strings"
)

// operatorRow is what Envoy's releases take of an operator, and what a log entry may show of it. A column that a row
// leaves out shows nothing.
type operatorRow struct {
	since     uint32     // the minor release that has it
	takes     *parameter // nil: none
	length    uint32     // the minor release that takes a length; 0: none does
	untrusted claim      // what an untrusted downstream can forge of it
	redacted  redaction  // what the settings can keep out of it; nil: all of it
}

// parameter is what an operator takes in parentheses.
type parameter struct {
	forms    *regexp.Regexp // nil: any text
	optional bool
	since    uint32 // the minor release that takes it, if that is later than the operator's
}

func form(pattern string) *parameter { return &parameter{forms: regexp.MustCompile(pattern)} }

func optional(pattern string, since uint32) *parameter {
	return &parameter{forms: regexp.MustCompile(pattern), optional: true, since: since}
}

var (
	text           = &parameter{}
	optionalText   = &parameter{optional: true}
	header         = form(headerPattern)
	optionalHeader = optional(headerPattern, 0)
	mask           = optional(`^([0-9]|[12][0-9]|3[0-2])$`, 38)
	status         = optional(`^(CAMEL_STRING|SNAKE_STRING|NUMBER)$`, 0)
	timespan       = form(`^[A-Za-z0-9_.]+:[A-Za-z0-9_.]+:(ms|us|ns)$`)
	pathForm       = optional(`^(WQ|NQ)(:(ORIG|PATH|ORIG_OR_PATH))?$`, 0)
	queryForm      = optional(`^(ORIG|DECODED)$`, 0)
	serverName     = optional(`^(SNI_ONLY|SNI_FIRST|HOST_FIRST)(:(ORIG|HOST|ORIG_OR_HOST))?$`, 37)
	details        = optional(`^ALLOW_WHITESPACES$`, 0)
	state          = form(`^[^:]+(:(PLAIN|TYPED|FIELD:[^:]+))?$`)
	metadata       = form(`^(DYNAMIC|CLUSTER|ROUTE|UPSTREAM_HOST|LISTENER|LISTENER_FILTER_CHAIN|VIRTUAL_HOST)(:.+)?$`)
)

const headerPattern = `^[^?\s]+(\?[^?\s]*)?$`

// plainOperators take no parameter and show nothing that a downstream can claim or that the settings can redact. The
// key is the minor release that has them.
var plainOperators = map[uint32]string{
	22: `
		BYTES_RECEIVED BYTES_SENT CONNECTION_ID CONNECTION_TERMINATION_DETAILS DOWNSTREAM_HEADER_BYTES_RECEIVED
		DOWNSTREAM_HEADER_BYTES_SENT DOWNSTREAM_LOCAL_SUBJECT DOWNSTREAM_LOCAL_URI_SAN DOWNSTREAM_PEER_CERT
		DOWNSTREAM_PEER_FINGERPRINT_1 DOWNSTREAM_PEER_FINGERPRINT_256 DOWNSTREAM_PEER_ISSUER DOWNSTREAM_PEER_SERIAL
		DOWNSTREAM_PEER_SUBJECT DOWNSTREAM_PEER_URI_SAN DOWNSTREAM_TLS_CIPHER DOWNSTREAM_TLS_SESSION_ID
		DOWNSTREAM_TLS_VERSION DOWNSTREAM_WIRE_BYTES_RECEIVED DOWNSTREAM_WIRE_BYTES_SENT DURATION FILTER_CHAIN_NAME
		HOSTNAME LOCAL_REPLY_BODY PROTOCOL REQUEST_DURATION REQUEST_HEADERS_BYTES REQUEST_TX_DURATION RESPONSE_CODE
		RESPONSE_DURATION RESPONSE_FLAGS RESPONSE_HEADERS_BYTES RESPONSE_TRAILERS_BYTES RESPONSE_TX_DURATION ROUTE_NAME
		UPSTREAM_CLUSTER UPSTREAM_HEADER_BYTES_RECEIVED UPSTREAM_HEADER_BYTES_SENT UPSTREAM_HOST UPSTREAM_LOCAL_ADDRESS
		UPSTREAM_REQUEST_ATTEMPT_COUNT UPSTREAM_TRANSPORT_FAILURE_REASON UPSTREAM_WIRE_BYTES_RECEIVED
		UPSTREAM_WIRE_BYTES_SENT
	`,
	32: `
		ACCESS_LOG_TYPE BYTES_RETRANSMITTED DOWNSTREAM_HANDSHAKE_DURATION DOWNSTREAM_TRANSPORT_FAILURE_REASON
		GRPC_STATUS_NUMBER PACKETS_RETRANSMITTED RESPONSE_FLAGS_LONG ROUNDTRIP_DURATION STREAM_ID UPSTREAM_CLUSTER_RAW
		UPSTREAM_CONNECTION_ID UPSTREAM_CONNECTION_POOL_READY_DURATION UPSTREAM_LOCAL_PORT UPSTREAM_PEER_CERT
		UPSTREAM_PEER_ISSUER UPSTREAM_PEER_SUBJECT UPSTREAM_PROTOCOL UPSTREAM_REMOTE_ADDRESS UPSTREAM_REMOTE_PORT
		UPSTREAM_TLS_CIPHER UPSTREAM_TLS_SESSION_ID UPSTREAM_TLS_VERSION VIRTUAL_CLUSTER_NAME
	`,
	36: `
		CUSTOM_FLAGS DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT
		DOWNSTREAM_LOCAL_DNS_SAN DOWNSTREAM_LOCAL_EMAIL_SAN DOWNSTREAM_LOCAL_IP_SAN DOWNSTREAM_LOCAL_OTHERNAME_SAN
		DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1 DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256 DOWNSTREAM_PEER_CHAIN_SERIALS
		DOWNSTREAM_PEER_DNS_SAN DOWNSTREAM_PEER_EMAIL_SAN DOWNSTREAM_PEER_IP_SAN DOWNSTREAM_PEER_OTHERNAME_SAN
		TLS_JA3_FINGERPRINT TLS_JA4_FINGERPRINT TRACE_ID UNIQUE_ID UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED
		UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT UPSTREAM_HOST_NAME UPSTREAM_HOST_NAME_WITHOUT_PORT
		UPSTREAM_LOCAL_DNS_SAN UPSTREAM_LOCAL_IP_SAN UPSTREAM_LOCAL_URI_SAN UPSTREAM_PEER_DNS_SAN UPSTREAM_PEER_IP_SAN
		UPSTREAM_PEER_URI_SAN
	`,
	37: `
		UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID
	`,
	38: `
		DOWNSTREAM_DETECTED_CLOSE_TYPE DOWNSTREAM_LOCAL_CLOSE_REASON DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256
		DOWNSTREAM_PEER_ISSUER_SERIAL SPAN_ID UPSTREAM_CONNECTION_IDS_ATTEMPTED UPSTREAM_DETECTED_CLOSE_TYPE
		UPSTREAM_HOSTS_ATTEMPTED UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT UPSTREAM_HOST_NAMES_ATTEMPTED
		UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT UPSTREAM_LOCAL_CLOSE_REASON
	`,
	39: `
		DOWNSTREAM_TLS_GROUP UPSTREAM_SERVER_NAME UPSTREAM_TLS_GROUP
	`,
	40: `
		DOWNSTREAM_CX_RTT
	`,
}

// operators are those of Envoy's log formats
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/advanced/substitution_formatter). The releases from
// 1.36 on were tried with every one of them. For older releases docs/access-logs.md says where the numbers come
// from.
var operators = func() map[string]operatorRow {
	all := map[string]operatorRow{
		"DOWNSTREAM_DIRECT_LOCAL_ADDRESS":               {since: 36, untrusted: shown, redacted: asIs},
		"DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID":   {since: 37, untrusted: shown, redacted: asIs},
		"DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT":  {since: 36, takes: mask, untrusted: shown, redacted: asIs},
		"DOWNSTREAM_DIRECT_LOCAL_PORT":                  {since: 36, untrusted: shown, redacted: asIs},
		"DOWNSTREAM_DIRECT_REMOTE_ADDRESS":              {since: 22, untrusted: shown, redacted: directAddress},
		"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": {since: 22, takes: mask, untrusted: shown, redacted: directAddress},
		"DOWNSTREAM_DIRECT_REMOTE_PORT":                 {since: 22, untrusted: shown, redacted: asIs},
		"DOWNSTREAM_LOCAL_ADDRESS":                      {since: 22, untrusted: direct, redacted: asIs},
		"DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID":          {since: 37, untrusted: direct, redacted: asIs},
		"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":         {since: 22, takes: mask, untrusted: direct, redacted: asIs},
		"DOWNSTREAM_LOCAL_PORT":                         {since: 22, untrusted: direct, redacted: asIs},
		"DOWNSTREAM_REMOTE_ADDRESS":                     {since: 22, untrusted: direct, redacted: clientAddress},
		"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":        {since: 22, takes: mask, untrusted: direct, redacted: clientAddress},
		"DOWNSTREAM_REMOTE_PORT":                        {since: 22, untrusted: direct, redacted: asIs},

		"PATH":              {since: 36, takes: pathForm, length: 36, untrusted: shown, redacted: path},
		"QUERY_PARAM":       {since: 36, takes: text, length: 36, untrusted: shown, redacted: query},
		"QUERY_PARAMS":      {since: 38, takes: queryForm, length: 38, untrusted: shown, redacted: query},
		"REQ":               {since: 22, takes: header, length: 22, untrusted: shown, redacted: headers},
		"REQUEST_HEADER":    {since: 37, takes: header, length: 37, untrusted: shown, redacted: headers},
		"REQ_WITHOUT_QUERY": {since: 22, takes: optionalHeader, length: 22, untrusted: shown, redacted: headers},
		"RESP":              {since: 22, takes: header, length: 22, untrusted: shown, redacted: headers},
		"RESPONSE_HEADER":   {since: 37, takes: header, length: 37, untrusted: shown, redacted: headers},
		"RESPONSE_TRAILER":  {since: 37, takes: header, length: 37, untrusted: shown, redacted: headers},
		"TRAILER":           {since: 22, takes: header, length: 22, untrusted: shown, redacted: headers},

		"CEL":                                  {since: 32, takes: text, length: 32, untrusted: expression, redacted: asIs},
		"CLUSTER_METADATA":                     {since: 22, takes: text, untrusted: shown, redacted: asIs},
		"COALESCE":                             {since: 37, takes: text, length: 37, untrusted: list, redacted: asIs},
		"DYNAMIC_METADATA":                     {since: 22, takes: text, length: 37, untrusted: shown, redacted: asIs},
		"FILTER_STATE":                         {since: 22, takes: state, length: 22, untrusted: shown, redacted: asIs},
		"METADATA":                             {since: 32, takes: metadata, length: 32, untrusted: shown, redacted: asIs},
		"UPSTREAM_FILTER_STATE":                {since: 32, takes: state, length: 32, untrusted: shown, redacted: asIs},
		"UPSTREAM_METADATA":                    {since: 32, takes: text, untrusted: shown, redacted: asIs},
		"COMMON_DURATION":                      {since: 32, takes: timespan, untrusted: shown, redacted: asIs},
		"DOWNSTREAM_PEER_CERT_V_END":           {since: 22, takes: optionalText, untrusted: shown, redacted: asIs},
		"DOWNSTREAM_PEER_CERT_V_START":         {since: 22, takes: optionalText, untrusted: shown, redacted: asIs},
		"EMIT_TIME":                            {since: 32, takes: optionalText, untrusted: shown, redacted: asIs},
		"EMIT_TIME_LOCAL":                      {since: 36, takes: optionalText, untrusted: shown, redacted: asIs},
		"ENVIRONMENT":                          {since: 32, takes: text, length: 32, untrusted: shown, redacted: asIs},
		"GRPC_STATUS":                          {since: 22, takes: status, untrusted: shown, redacted: asIs},
		"REQUESTED_SERVER_NAME":                {since: 22, takes: serverName, untrusted: shown, redacted: asIs},
		"RESPONSE_CODE_DETAILS":                {since: 22, takes: details, untrusted: shown, redacted: asIs},
		"START_TIME":                           {since: 22, takes: optionalText, untrusted: shown, redacted: asIs},
		"START_TIME_LOCAL":                     {since: 36, takes: optionalText, untrusted: shown, redacted: asIs},
		"UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":  {since: 32, takes: mask, untrusted: shown, redacted: asIs},
		"UPSTREAM_PEER_CERT_V_END":             {since: 32, takes: optionalText, untrusted: shown, redacted: asIs},
		"UPSTREAM_PEER_CERT_V_START":           {since: 32, takes: optionalText, untrusted: shown, redacted: asIs},
		"UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": {since: 32, takes: mask, untrusted: shown, redacted: asIs},
	}
	for since, names := range plainOperators {
		for name := range strings.FieldsSeq(names) {
			all[name] = operatorRow{since: since, untrusted: shown, redacted: asIs}
		}
	}
	return all
}()
