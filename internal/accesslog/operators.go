package accesslog

import (
	"regexp"
	"strings"
)

// operatorRow is what Envoy's releases take of an operator, and what a log entry may show of it. An operator that is in
// no row is left out of logs of untrusted downstreams, and of all logs that redact anything.
type operatorRow struct {
	since      uint32     // the minor release that has it
	takes      *parameter // nil: none
	length     uint32     // the minor release that takes a length; 0: none does
	proxyClaim proxyClaim // whether it can show what a PROXY header claims
	redacted   redaction  // what is logged of it if the settings redact anything; nil: nothing
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
	textParam           = &parameter{}
	optionalTextParam   = &parameter{optional: true}
	headerParam         = form(headerPattern)
	optionalHeaderParam = optional(headerPattern, 0)
	maskParam           = optional(`^([0-9]|[12][0-9]|3[0-2])$`, 38)
	statusParam         = optional(`^(CAMEL_STRING|SNAKE_STRING|NUMBER)$`, 0)
	timespanParam       = form(`^[A-Za-z0-9_.]+:[A-Za-z0-9_.]+:(ms|us|ns)$`)
	pathParam           = optional(`^(WQ|NQ)(:(ORIG|PATH|ORIG_OR_PATH))?$`, 0)
	queryParam          = optional(`^(ORIG|DECODED)$`, 0)
	serverNameParam     = optional(`^(SNI_ONLY|SNI_FIRST|HOST_FIRST)(:(ORIG|HOST|ORIG_OR_HOST))?$`, 37)
	detailsParam        = optional(`^ALLOW_WHITESPACES$`, 0)
	stateParam          = form(`^[^:]+(:(PLAIN|TYPED|FIELD:[^:]+))?$`)
	metadataParam       = form(`^(DYNAMIC|CLUSTER|ROUTE|UPSTREAM_HOST|LISTENER|LISTENER_FILTER_CHAIN|VIRTUAL_HOST)(:.+)?$`)
)

// headerPattern matches the name of a header, or two: the second counts where the first is missing.
const (
	headerPattern = "^" + namePattern + `(\?(` + namePattern + `)?)?$`
	namePattern   = ":?[!#$&'*+.^_`|~0-9A-Za-z-]+"
)

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
	37: "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID",
	38: `
		DOWNSTREAM_DETECTED_CLOSE_TYPE DOWNSTREAM_LOCAL_CLOSE_REASON DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256
		DOWNSTREAM_PEER_ISSUER_SERIAL SPAN_ID UPSTREAM_CONNECTION_IDS_ATTEMPTED UPSTREAM_DETECTED_CLOSE_TYPE
		UPSTREAM_HOSTS_ATTEMPTED UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT UPSTREAM_HOST_NAMES_ATTEMPTED
		UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT UPSTREAM_LOCAL_CLOSE_REASON
	`,
	39: "DOWNSTREAM_TLS_GROUP UPSTREAM_SERVER_NAME UPSTREAM_TLS_GROUP",
	40: "DOWNSTREAM_CX_RTT",
}

// operators are those of Envoy's log formats
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/advanced/substitution_formatter). The releases from
// 1.36 on were tried with every one of them. For older releases docs/access-logs.md says where the numbers come
// from.
var operators = func() map[string]operatorRow {
	all := map[string]operatorRow{ // since, takes, length, proxyClaim, redacted
		"DOWNSTREAM_DIRECT_LOCAL_ADDRESS":               {36, nil, 0, claimNone, unredacted},
		"DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID":   {37, nil, 0, claimNone, unredacted},
		"DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT":  {36, maskParam, 0, claimNone, unredacted},
		"DOWNSTREAM_DIRECT_LOCAL_PORT":                  {36, nil, 0, claimNone, unredacted},
		"DOWNSTREAM_DIRECT_REMOTE_ADDRESS":              {22, nil, 0, claimNone, redactDirectAddress},
		"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": {22, maskParam, 0, claimNone, redactDirectAddress},
		"DOWNSTREAM_DIRECT_REMOTE_PORT":                 {22, nil, 0, claimNone, unredacted},
		"DOWNSTREAM_LOCAL_ADDRESS":                      {22, nil, 0, claimUseDirect, unredacted},
		"DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID":          {37, nil, 0, claimUseDirect, unredacted},
		"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":         {22, maskParam, 0, claimUseDirect, unredacted},
		"DOWNSTREAM_LOCAL_PORT":                         {22, nil, 0, claimUseDirect, unredacted},
		"DOWNSTREAM_REMOTE_ADDRESS":                     {22, nil, 0, claimUseDirect, redactClientAddress},
		"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":        {22, maskParam, 0, claimUseDirect, redactClientAddress},
		"DOWNSTREAM_REMOTE_PORT":                        {22, nil, 0, claimUseDirect, unredacted},

		"PATH":              {36, pathParam, 36, claimNone, redactPath},
		"QUERY_PARAM":       {36, textParam, 36, claimNone, redactQuery},
		"QUERY_PARAMS":      {38, queryParam, 38, claimNone, redactQuery},
		"REQ":               {22, headerParam, 22, claimNone, redactHeader},
		"REQUEST_HEADER":    {37, headerParam, 37, claimNone, redactHeader},
		"REQ_WITHOUT_QUERY": {22, optionalHeaderParam, 22, claimNone, redactHeader},
		"RESP":              {22, headerParam, 22, claimNone, redactHeader},
		"RESPONSE_HEADER":   {37, headerParam, 37, claimNone, redactHeader},
		"RESPONSE_TRAILER":  {37, headerParam, 37, claimNone, redactHeader},
		"TRAILER":           {22, headerParam, 22, claimNone, redactHeader},

		"CEL":                                  {32, textParam, 32, claimIfExpression, unredacted},
		"CLUSTER_METADATA":                     {22, textParam, 0, claimNone, unredacted},
		"COALESCE":                             {37, textParam, 37, claimIfListed, unredacted},
		"DYNAMIC_METADATA":                     {22, textParam, 37, claimNone, unredacted},
		"FILTER_STATE":                         {22, stateParam, 22, claimNone, unredacted},
		"METADATA":                             {32, metadataParam, 32, claimNone, unredacted},
		"UPSTREAM_FILTER_STATE":                {32, stateParam, 32, claimNone, unredacted},
		"UPSTREAM_METADATA":                    {32, textParam, 0, claimNone, unredacted},
		"COMMON_DURATION":                      {32, timespanParam, 0, claimNone, unredacted},
		"DOWNSTREAM_PEER_CERT_V_END":           {22, optionalTextParam, 0, claimNone, unredacted},
		"DOWNSTREAM_PEER_CERT_V_START":         {22, optionalTextParam, 0, claimNone, unredacted},
		"EMIT_TIME":                            {32, optionalTextParam, 0, claimNone, unredacted},
		"EMIT_TIME_LOCAL":                      {36, optionalTextParam, 0, claimNone, unredacted},
		"ENVIRONMENT":                          {32, textParam, 32, claimNone, unredacted},
		"GRPC_STATUS":                          {22, statusParam, 0, claimNone, unredacted},
		"REQUESTED_SERVER_NAME":                {22, serverNameParam, 0, claimNone, unredacted},
		"RESPONSE_CODE_DETAILS":                {22, detailsParam, 0, claimNone, unredacted},
		"START_TIME":                           {22, optionalTextParam, 0, claimNone, unredacted},
		"START_TIME_LOCAL":                     {36, optionalTextParam, 0, claimNone, unredacted},
		"UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":  {32, maskParam, 0, claimNone, unredacted},
		"UPSTREAM_PEER_CERT_V_END":             {32, optionalTextParam, 0, claimNone, unredacted},
		"UPSTREAM_PEER_CERT_V_START":           {32, optionalTextParam, 0, claimNone, unredacted},
		"UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": {32, maskParam, 0, claimNone, unredacted},
	}
	for since, names := range plainOperators {
		for name := range strings.FieldsSeq(names) {
			all[name] = operatorRow{since, nil, 0, claimNone, unredacted}
		}
	}
	return all
}()
