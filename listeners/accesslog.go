package listeners

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/gateway"
)

// accessLogs are the logs of an instance's listeners. The zero value logs
// nothing.
type accessLogs struct {
	listener []*accesslogv3.AccessLog // of connections that found no filter chain
	filter   []*accesslogv3.AccessLog // of requests, or of connections on tcp
}

// accessLogKey is everything that the access logs follow from.
type accessLogKey struct {
	settings gateway.AccessLogs
	proxied  bool // the listeners take PROXY headers
}

// accessLogsOf makes the access logs. A log that cannot be made is a problem
// and stays away; it does not keep a listener from serving, as with Consul.
func accessLogsOf(k accessLogKey) (accessLogs, []gateway.Problem) {
	if !k.settings.Enabled {
		return accessLogs{}, nil
	}
	sink, err := logSink(k)
	if err != nil {
		return accessLogs{}, []gateway.Problem{{
			Where: "config entry proxy-defaults/global: AccessLogs",
			What:  err.Error() + "; until this is mended nothing is logged",
		}}
	}
	logs := accessLogs{filter: []*accesslogv3.AccessLog{{
		Name:       "Consul Listener Filter Log",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: sink},
	}}}
	if !k.settings.DisableListenerLogs {
		logs.listener = []*accesslogv3.AccessLog{{
			Name: "Consul Listener Log",
			Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
				ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"NR"}},
			}},
			ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: sink},
		}}
	}
	return logs, nil
}

func logSink(k accessLogKey) (*anypb.Any, error) {
	format, err := logFormat(k)
	if err != nil {
		return nil, err
	}
	switch k.settings.Type {
	case "", "stdout":
		return pack(&streamlogv3.StdoutAccessLog{
			AccessLogFormat: &streamlogv3.StdoutAccessLog_LogFormat{LogFormat: format},
		})
	case "stderr":
		return pack(&streamlogv3.StderrAccessLog{
			AccessLogFormat: &streamlogv3.StderrAccessLog_LogFormat{LogFormat: format},
		})
	case "file":
		return pack(&filelogv3.FileAccessLog{
			Path:            k.settings.Path,
			AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: format},
		})
	}
	return nil, fmt.Errorf("type %q is not allowed; use stdout, stderr or file", k.settings.Type)
}

func logFormat(k accessLogKey) (*corev3.SubstitutionFormatString, error) {
	switch {
	case k.settings.JSONFormat != "":
		return jsonFormat(k.settings.JSONFormat)
	case k.settings.TextFormat != "":
		return textFormat(k.settings.TextFormat), nil
	}
	return defaultFormat(k.proxied)
}

func textFormat(text string) *corev3.SubstitutionFormatString {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{
		TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}},
	}}
}

func jsonFormat(text string) (*corev3.SubstitutionFormatString, error) {
	var object map[string]any
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		return nil, fmt.Errorf("JSONFormat is not a JSON object: %w", err)
	}
	return objectFormat(object)
}

func objectFormat(object map[string]any) (*corev3.SubstitutionFormatString, error) {
	fields, err := structpb.NewStruct(object)
	if err != nil {
		return nil, fmt.Errorf("JSONFormat: %w", err)
	}
	return &corev3.SubstitutionFormatString{
		Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: fields},
	}, nil
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
	"path":                              "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
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

// defaultFormat gives the default format. Where PROXY headers say who the
// client is, it also has the peer of the connection: the balancer, or whoever
// claims to be one.
func defaultFormat(proxied bool) (*corev3.SubstitutionFormatString, error) {
	fields := maps.Clone(defaultFields)
	if proxied {
		fields["downstream_direct_remote_address"] = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"
	}
	return objectFormat(fields)
}
