package listeners

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/gateway"
)

// accessLogs are the logs of a listener. The zero value logs nothing.
type accessLogs struct {
	listener  []*accesslogv3.AccessLog // of connections that found no filter chain
	filter    []*accesslogv3.AccessLog // of requests, or of connections on tcp
	untrusted []*accesslogv3.AccessLog // the same, of peers whose headers are not believed
}

// of gives the logs of the filter chains for some peers.
func (l accessLogs) of(who peers) []*accesslogv3.AccessLog {
	if who == untrusted {
		return l.untrusted
	}
	return l.filter
}

// accessLogKey is everything that the access logs follow from.
type accessLogKey struct {
	settings gateway.AccessLogs
	told     bool          // somebody in front of the gateway says who the client is
	proxied  bool          // with PROXY headers
	limited  bool          // and not everybody's are believed
	tlvs     []gateway.TLV // that are told
	dialect  dialect
}

func accessLogKeyOf(l listening) accessLogKey {
	proxied := l.policy.ProxyProtocol.On()
	return accessLogKey{
		settings: l.in.registered.AccessLogs,
		told:     proxied || l.policy.ClientAddress.On(),
		proxied:  proxied,
		limited:  proxied && !l.policy.ProxyProtocol.BelievesAll(),
		tlvs:     l.tlvs(),
		dialect:  l.env.dialect,
	}
}

// accessLogsOf makes the access logs. A log that cannot be made is a problem
// and stays away; it does not keep a listener from serving, as with Consul.
func accessLogsOf(k accessLogKey) (accessLogs, []gateway.Problem) {
	if !k.settings.Enabled {
		return accessLogs{}, nil
	}
	logs, err := k.logs()
	if err != nil {
		return accessLogs{}, []gateway.Problem{{
			Where: "config entry proxy-defaults/global: AccessLogs",
			What:  err.Error() + "; until this is mended nothing is logged",
		}}
	}
	return logs, nil
}

func (k accessLogKey) logs() (accessLogs, error) {
	format, err := logFormat(k)
	if err != nil {
		return accessLogs{}, err
	}
	sink, err := logSink(k.settings, format)
	if err != nil {
		return accessLogs{}, err
	}
	// A log line of a peer that is not believed has the peer's own address, under
	// whatever name the format asks for the client's.
	own, err := logSink(k.settings, ownAddresses(format, k.dialect))
	if err != nil {
		return accessLogs{}, err
	}
	const filterLog = "Consul Listener Filter Log"
	logs := accessLogs{filter: logTo(filterLog, sink, nil)}
	if k.limited {
		logs.untrusted = logTo(filterLog, own, nil)
		sink = own
	}
	if k.settings.DisableListenerLogs {
		return logs, nil
	}
	logs.listener = logTo("Consul Listener Log", sink, foundNoChain())
	if k.proxied && k.dialect.expressions {
		rejected, err := wasRejected()
		if err != nil {
			return accessLogs{}, err
		}
		logs.listener = append(logs.listener, logTo("Usher Listener Log", own, rejected)...)
	}
	return logs, nil
}

func logTo(name string, sink *anypb.Any, filter *accesslogv3.AccessLogFilter) []*accesslogv3.AccessLog {
	return []*accesslogv3.AccessLog{{
		Name:       name,
		Filter:     filter,
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: sink},
	}}
}

// foundNoChain selects the connections that no filter chain is for.
func foundNoChain() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"NR"}},
	}}
}

// wasRejected selects the connections that the PROXY filter has closed: those
// that have no filter chain, and no flag that says why.
func wasRejected() (*accesslogv3.AccessLogFilter, error) {
	expression, err := pack(&celv3.ExpressionFilter{Expression: "xds.filter_chain_name == '' && response.flags == 0"})
	if err != nil {
		return nil, err
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
		ExtensionFilter: &accesslogv3.ExtensionFilter{
			Name:       "envoy.access_loggers.extension_filters.cel",
			ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: expression},
		},
	}}, nil
}

func logSink(settings gateway.AccessLogs, format *corev3.SubstitutionFormatString) (*anypb.Any, error) {
	switch settings.Type {
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
			Path:            settings.Path,
			AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: format},
		})
	}
	return nil, fmt.Errorf("type %q is not allowed; use stdout, stderr or file", settings.Type)
}

func logFormat(k accessLogKey) (*corev3.SubstitutionFormatString, error) {
	switch {
	case k.settings.JSONFormat != "":
		return jsonFormat(k.settings.JSONFormat)
	case k.settings.TextFormat != "":
		return textFormat(k.settings.TextFormat), nil
	}
	return defaultFormat(k)
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

// directAddressField is the key of whoever connected.
const directAddressField = "downstream_direct_remote_address"

// defaultFormat gives the default format. Where somebody in front of the gateway
// says who the client is, it also has the peer of the connection: the balancer,
// or whoever claims to be one.
func defaultFormat(k accessLogKey) (*corev3.SubstitutionFormatString, error) {
	fields := maps.Clone(defaultFields)
	if k.told {
		fields[directAddressField] = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"
	}
	for _, tlv := range k.tlvs {
		fields[tlv.Name] = tlvOperator(tlv)
	}
	return objectFormat(fields)
}
