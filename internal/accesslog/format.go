package accesslog

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// logFormat is how an entry is written: as a line of text, or as JSON.
type logFormat struct {
	by     settings.LogFormatType // "": proxy-defaults' own text or JSON
	text   string                 // ends in a newline
	fields *structpb.Struct       // nil: text counts
	sparse bool                   // fields without a value are left out
	reason string                 // why the connection was rejected
}

// custom says whether an operator has written the format.
func (f logFormat) custom() bool {
	return f.by == "" || f.by == settings.FormatText || f.by == settings.FormatJSON
}

// each gives the format with every text in it changed.
func (f logFormat) each(change func(string) string) logFormat {
	if f.fields == nil {
		f.text = change(f.text)
		return f
	}
	f.fields = proto.CloneOf(f.fields)
	eachText(structpb.NewStructValue(f.fields), change)
	return f
}

// any says whether any text in the format meets a condition.
func (f logFormat) any(is func(string) bool) bool {
	found := false
	f.each(func(text string) string {
		found = found || is(text)
		return text
	})
	return found
}

// eachText changes the texts in a value.
func eachText(v *structpb.Value, change func(string) string) {
	switch kind := v.Kind.(type) {
	case *structpb.Value_StringValue:
		kind.StringValue = change(kind.StringValue)
	case *structpb.Value_StructValue:
		for _, field := range kind.StructValue.Fields {
			eachText(field, change)
		}
	case *structpb.Value_ListValue:
		for _, item := range kind.ListValue.Values {
			eachText(item, change)
		}
	}
}

// rejected gives the format of entries of connections that were rejected for a
// reason.
func (f logFormat) rejected(reason string) logFormat {
	f.reason = reason
	switch f.by {
	case "":
	case settings.FormatText:
		f.text = strings.TrimSuffix(f.text, "\n") + " rejected: " + reason + "\n"
	case settings.FormatCombined:
		f.text = combinedRejected(reason)
	case settings.FormatECS:
		f.fields = proto.CloneOf(f.fields)
		event := f.fields.Fields["event"].GetStructValue().Fields
		event["reason"] = structpb.NewStringValue(reason)
		event["outcome"] = structpb.NewStringValue("failure")
		event["category"] = structpb.NewStringValue("network")
		event["type"] = structpb.NewStringValue("denied")
	default:
		f.fields = proto.CloneOf(f.fields)
		if _, taken := f.fields.Fields[rejectedField]; !taken {
			f.fields.Fields[rejectedField] = structpb.NewStringValue(reason)
		}
	}
	return f
}

// rejectedField is the key of the reason.
const rejectedField = "rejected"

// formatOf makes a format, or says why this Envoy cannot write it.
func (k Params) formatOf(f settings.LogFormat) (logFormat, error) {
	var out logFormat
	var err error
	switch f.Type {
	case settings.FormatText:
		out = textFormat(f.Text)
	case settings.FormatJSON:
		out, err = objectFormat(f.JSON)
	case settings.FormatFields:
		out, err = objectFormat(k.fieldsByName(f.Fields))
	case settings.FormatECS:
		out, err = k.ecsFormat()
	case settings.FormatCombined:
		out, err = k.combinedFormat()
	default:
		f.Type = settings.FormatConsul
		out, err = objectFormat(k.defaultFields())
	}
	if err != nil {
		return logFormat{}, err
	}
	out.by = f.Type
	return out, k.check(out)
}

// consulFormat makes the format that proxy-defaults asks for.
func (k Params) consulFormat() (logFormat, error) {
	var out logFormat
	var err error
	switch {
	case k.Consul.JSONFormat != "":
		out, err = jsonFormat(k.Consul.JSONFormat)
	case k.Consul.TextFormat != "":
		out = textFormat(k.Consul.TextFormat)
	default:
		return k.formatOf(settings.LogFormat{Type: settings.FormatConsul})
	}
	if err != nil {
		return logFormat{}, err
	}
	return out, k.check(out)
}

func textFormat(text string) logFormat {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return logFormat{text: text}
}

func jsonFormat(text string) (logFormat, error) {
	var object map[string]any
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		return logFormat{}, fmt.Errorf("JSONFormat is not a JSON object: %w", err)
	}
	return objectFormat(object)
}

func objectFormat(object map[string]any) (logFormat, error) {
	fields, err := structpb.NewStruct(object)
	if err != nil {
		return logFormat{}, fmt.Errorf("JSONFormat: %w", err)
	}
	return logFormat{fields: fields}, nil
}

// defaultFields is the default format: Consul's keys, each with the operator
// of Envoy's that it is named after
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/advanced/substitution_formatter).
var defaultFields = map[string]any{
	"authority":                         "%REQ(:AUTHORITY)%",
	"bytes_received":                    "%BYTES_RECEIVED%",
	"bytes_sent":                        "%BYTES_SENT%",
	"connection_termination_details":    "%CONNECTION_TERMINATION_DETAILS%",
	"downstream_local_address":          "%DOWNSTREAM_LOCAL_ADDRESS%",
	"downstream_remote_address":         "%DOWNSTREAM_REMOTE_ADDRESS%",
	"duration":                          "%DURATION%",
	"method":                            "%REQ(:METHOD)%",
	"path":                              pathOperator,
	"protocol":                          "%PROTOCOL%",
	"request_id":                        "%REQ(X-REQUEST-ID)%",
	"requested_server_name":             "%REQUESTED_SERVER_NAME%",
	"response_code":                     "%RESPONSE_CODE%",
	"response_code_details":             "%RESPONSE_CODE_DETAILS%",
	"response_flags":                    "%RESPONSE_FLAGS%",
	"route_name":                        "%ROUTE_NAME%",
	"start_time":                        "%START_TIME%",
	"upstream_cluster":                  "%UPSTREAM_CLUSTER%",
	"upstream_host":                     "%UPSTREAM_HOST%",
	"upstream_local_address":            "%UPSTREAM_LOCAL_ADDRESS%",
	"upstream_service_time":             "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
	"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
	"user_agent":                        "%REQ(USER-AGENT)%",
	"x_forwarded_for":                   "%REQ(X-FORWARDED-FOR)%",
}

const (
	// pathOperator is the path as the client has sent it.
	pathOperator = "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"
	// directAddressField is the key of whoever connected.
	directAddressField = "downstream_direct_remote_address"
)

// defaultFields gives the default format. Where somebody in front of the gateway
// says who the client is, it also has the peer of the connection: the balancer,
// or whoever claims to be one.
func (k Params) defaultFields() map[string]any {
	fields := maps.Clone(defaultFields)
	if k.ClientAddressKnown {
		fields[directAddressField] = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"
	}
	for _, tlv := range k.TLVs {
		fields[tlv] = envoy.TLVOperator(tlv)
	}
	return fields
}

// namedFields are the operators of settings.LogFields.
var namedFields = map[string]string{
	"start_time":                     "%START_TIME%",
	"client_address":                 "%DOWNSTREAM_REMOTE_ADDRESS%",
	"client_ip":                      "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
	"client_port":                    "%DOWNSTREAM_REMOTE_PORT%",
	"balancer_address":               "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
	"gateway_address":                "%DOWNSTREAM_LOCAL_ADDRESS%",
	"x_forwarded_for":                "%REQ(X-FORWARDED-FOR)%",
	"tls_version":                    "%DOWNSTREAM_TLS_VERSION%",
	"tls_cipher":                     "%DOWNSTREAM_TLS_CIPHER%",
	"requested_server_name":          "%REQUESTED_SERVER_NAME%",
	"client_certificate_subject":     "%DOWNSTREAM_PEER_SUBJECT%",
	"client_certificate_issuer":      "%DOWNSTREAM_PEER_ISSUER%",
	"client_certificate_serial":      "%DOWNSTREAM_PEER_SERIAL%",
	"client_certificate_sha256":      "%DOWNSTREAM_PEER_FINGERPRINT_256%",
	"protocol":                       "%PROTOCOL%",
	"method":                         "%REQ(:METHOD)%",
	"authority":                      "%REQ(:AUTHORITY)%",
	"path":                           pathOperator,
	"user_agent":                     "%REQ(USER-AGENT)%",
	"referer":                        "%REQ(REFERER)%",
	"request_id":                     "%REQ(X-REQUEST-ID)%",
	"response_code":                  "%RESPONSE_CODE%",
	"response_code_details":          "%RESPONSE_CODE_DETAILS%",
	"response_flags":                 "%RESPONSE_FLAGS%",
	"grpc_status":                    "%GRPC_STATUS%",
	"route_name":                     "%ROUTE_NAME%",
	"service":                        "%UPSTREAM_CLUSTER%",
	"service_address":                "%UPSTREAM_HOST%",
	"attempts":                       "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
	"upstream_failure":               "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
	"bytes_received":                 "%BYTES_RECEIVED%",
	"bytes_sent":                     "%BYTES_SENT%",
	"duration":                       "%DURATION%",
	"request_duration":               "%REQUEST_DURATION%",
	"service_duration":               "%RESPONSE_DURATION%",
	"connection_id":                  "%CONNECTION_ID%",
	"connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
}

// fieldsByName makes JSON of the fields with names, and of all TLVs.
func (k Params) fieldsByName(names []string) map[string]any {
	fields := map[string]any{}
	for _, name := range names {
		fields[name] = namedFields[name]
	}
	for _, tlv := range k.TLVs {
		fields[tlv] = envoy.TLVOperator(tlv)
	}
	return fields
}

// ReservedField reports whether a key of the formats means something else than a TLV.
func ReservedField(key string) bool {
	_, consul := defaultFields[key]
	_, named := namedFields[key]
	return consul || named || key == directAddressField || key == rejectedField
}
