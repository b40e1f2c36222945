package accesslog

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// logFormat is how a log entry is written: as a line of text, or as JSON.
type logFormat struct {
	from   settings.LogFormatType // "": proxy-defaults' own text or JSON
	text   string                 // ends in a newline
	fields *structpb.Struct       // nil: text counts
	sparse bool                   // fields without a value are left out
	reason string                 // why the connection was rejected
}

// each returns the format with every text in it changed.
func (f logFormat) each(change func(string) string) logFormat {
	if f.fields == nil {
		f.text = change(f.text)
		return f
	}
	f.fields = proto.CloneOf(f.fields)
	eachText(structpb.NewStructValue(f.fields), change)
	return f
}

// eachText changes the texts in a value.
func eachText(v *structpb.Value, change func(string) string) {
	switch v := v.Kind.(type) {
	case *structpb.Value_StringValue:
		v.StringValue = change(v.StringValue)
	case *structpb.Value_StructValue:
		for _, field := range v.StructValue.Fields {
			eachText(field, change)
		}
	case *structpb.Value_ListValue:
		for _, item := range v.ListValue.Values {
			eachText(item, change)
		}
	}
}

// rejected returns the format of log entries of connections that were rejected for a reason.
func (f logFormat) rejected(reason string) logFormat {
	f.reason = reason
	switch f.from {
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

// formatOf makes a format. The error says why this Envoy cannot write it.
func (p Params) formatOf(f settings.LogFormat) (logFormat, error) {
	var out logFormat
	var err error
	switch f.Type {
	case settings.FormatText:
		out = lineFormat(f.Text)
	case settings.FormatJSON:
		out, err = objectFormat(f.JSON)
	case settings.FormatFields:
		out, err = objectFormat(p.fields(f.Fields))
	case settings.FormatECS:
		out, err = p.ecsFormat()
	case settings.FormatCombined:
		out, err = p.combinedFormat()
	default:
		f.Type = settings.FormatConsul
		fields := p.fields(consulFields)
		if p.ClientAddressKnown { // then the address of the downstream is another one
			fields[directAddressField] = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"
		}
		out, err = objectFormat(fields)
	}
	out.from = f.Type
	if err == nil {
		err = p.check(out)
	}
	return out, err
}

// consulFormat makes the format of proxy-defaults.
func (p Params) consulFormat() (logFormat, error) {
	if p.Consul.JSONFormat == "" && p.Consul.TextFormat == "" {
		return p.formatOf(settings.LogFormat{Type: settings.FormatConsul})
	}
	out := lineFormat(p.Consul.TextFormat)
	if p.Consul.JSONFormat != "" {
		var object map[string]any
		err := json.Unmarshal([]byte(p.Consul.JSONFormat), &object)
		if err != nil {
			return logFormat{}, fmt.Errorf("JSONFormat is not a JSON object: %w; correct it", err)
		}
		if out, err = objectFormat(object); err != nil {
			return logFormat{}, err
		}
	}
	return out, p.check(out)
}

func lineFormat(text string) logFormat { return logFormat{text: strings.TrimSuffix(text, "\n") + "\n"} }

func objectFormat(object map[string]any) (logFormat, error) {
	fields, err := structpb.NewStruct(object)
	if err != nil {
		return logFormat{}, errors.New("the JSON format has text that is not valid UTF-8; write it in UTF-8")
	}
	return logFormat{fields: fields}, nil
}

// consulFields are the keys of Consul's default format.
var consulFields = strings.Fields(`
	authority bytes_received bytes_sent connection_termination_details downstream_local_address
	downstream_remote_address duration method path protocol request_id requested_server_name response_code
	response_code_details response_flags route_name start_time upstream_cluster upstream_host upstream_local_address
	upstream_service_time upstream_transport_failure_reason user_agent x_forwarded_for
`)

// fieldOperators are the operators of fields, Consul's and those of settings.LogFieldNames. A field that is not here
// has the operator of its name, such as %START_TIME%.
var fieldOperators = map[string]string{
	"attempts":                   "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
	"authority":                  "%REQ(:AUTHORITY)%",
	"balancer_address":           "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
	"client_address":             "%DOWNSTREAM_REMOTE_ADDRESS%",
	"client_certificate_issuer":  "%DOWNSTREAM_PEER_ISSUER%",
	"client_certificate_serial":  "%DOWNSTREAM_PEER_SERIAL%",
	"client_certificate_sha256":  "%DOWNSTREAM_PEER_FINGERPRINT_256%",
	"client_certificate_subject": "%DOWNSTREAM_PEER_SUBJECT%",
	"client_ip":                  "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
	"client_port":                "%DOWNSTREAM_REMOTE_PORT%",
	"gateway_address":            "%DOWNSTREAM_LOCAL_ADDRESS%",
	"method":                     "%REQ(:METHOD)%",
	"path":                       pathOperator,
	"referer":                    "%REQ(REFERER)%",
	"request_id":                 "%REQ(X-REQUEST-ID)%",
	"service":                    "%UPSTREAM_CLUSTER%",
	"service_address":            "%UPSTREAM_HOST%",
	"service_duration":           "%RESPONSE_DURATION%",
	"tls_cipher":                 "%DOWNSTREAM_TLS_CIPHER%",
	"tls_version":                "%DOWNSTREAM_TLS_VERSION%",
	"upstream_failure":           "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
	"upstream_service_time":      "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
	"user_agent":                 "%REQ(USER-AGENT)%",
	"x_forwarded_for":            "%REQ(X-FORWARDED-FOR)%",
}

const (
	// pathOperator is the path as the client has sent it.
	pathOperator = "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"
	// directAddressField is the key of the downstream's address.
	directAddressField = "downstream_direct_remote_address"
	// rejectedField is the key of the reason for a rejection.
	rejectedField = "rejected"
)

// fields returns an object with fields by name, and with all TLVs.
func (p Params) fields(names []string) map[string]any {
	fields := map[string]any{}
	for _, name := range names {
		fields[name] = cmp.Or(fieldOperators[name], "%"+strings.ToUpper(name)+"%")
	}
	for _, tlv := range p.TLVs {
		fields[tlv] = envoy.TLVOperator(tlv)
	}
	return fields
}

// ReservedField reports whether a key of the formats means something else than a TLV.
func ReservedField(key string) bool {
	return slices.Contains(consulFields, key) || slices.Contains(settings.LogFieldNames, key) ||
		key == directAddressField || key == rejectedField
}
