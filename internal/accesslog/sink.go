package accesslog

import (
	"maps"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	otlplogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	reqwithoutqueryv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/req_without_query/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	otlpv1 "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// sinkConfig makes the configuration of a logger.
func (p Params) sinkConfig(s sink, e logEntry) (*anypb.Any, error) {
	switch s.Type {
	case settings.SinkOTLP:
		return p.otlpConfig(s, e)
	case settings.SinkGRPC:
		return p.grpcConfig(s, e)
	}
	format, err := e.format.proto()
	if err != nil {
		return nil, err
	}
	switch s.Type {
	case settings.SinkStdout:
		return envoy.Pack(&streamlogv3.StdoutAccessLog{AccessLogFormat: &streamlogv3.StdoutAccessLog_LogFormat{LogFormat: format}})
	case settings.SinkStderr:
		return envoy.Pack(&streamlogv3.StderrAccessLog{AccessLogFormat: &streamlogv3.StderrAccessLog_LogFormat{LogFormat: format}})
	}
	return envoy.Pack(&filelogv3.FileAccessLog{
		Path:            s.Path,
		AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: format},
	})
}

// proto is the format as Envoy's file and stream loggers have it.
func (f logFormat) proto() (*corev3.SubstitutionFormatString, error) {
	formatters, err := f.formatters()
	if err != nil {
		return nil, err
	}
	out := &corev3.SubstitutionFormatString{OmitEmptyValues: f.sparse, Formatters: formatters}
	if f.fields != nil {
		out.Format = &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: f.fields}
		return out, nil
	}
	out.Format = &corev3.SubstitutionFormatString_TextFormatSource{
		TextFormatSource: envoy.Inline(f.text),
	}
	return out, nil
}

// formatters are the extensions that the format's operators need.
func (f logFormat) formatters() ([]*corev3.TypedExtensionConfig, error) {
	if !f.any(func(text string) bool { return strings.Contains(text, "%REQ_WITHOUT_QUERY(") }) {
		return nil, nil
	}
	config, err := envoy.Pack(&reqwithoutqueryv3.ReqWithoutQuery{})
	if err != nil {
		return nil, err
	}
	return []*corev3.TypedExtensionConfig{{Name: "envoy.formatter.req_without_query", TypedConfig: config}}, nil
}

// commonConfig names a collector. Batches are Envoy's default, a second or 16 KiB. Envoy drops a batch that the
// collector does not take: traffic never waits.
func (p Params) commonConfig(s sink) *grpclogv3.CommonGrpcAccessLogConfig {
	return &grpclogv3.CommonGrpcAccessLogConfig{
		LogName: p.Gateway.String(),
		GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
			EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: collectorKey{address: s.Address, tls: s.TLS}.name()},
		}},
		TransportApiVersion: corev3.ApiVersion_V3,
	}
}

// otlpConfig writes log records: a text is the body, fields are attributes.
func (p Params) otlpConfig(s sink, e logEntry) (*anypb.Any, error) {
	formatters, err := e.format.formatters()
	if err != nil {
		return nil, err
	}
	out := &otlplogv3.OpenTelemetryAccessLogConfig{
		//nolint:staticcheck // Envoy before 1.37 knows no other way to name the collector.
		CommonConfig: p.commonConfig(s),
		ResourceAttributes: &otlpv1.KeyValueList{Values: []*otlpv1.KeyValue{
			{Key: "service.name", Value: otlpString(p.Gateway.String())},
		}},
		Formatters: formatters,
	}
	if e.format.fields != nil {
		out.Attributes = otlpFields(e.format.fields)
	} else {
		out.Body = otlpString(strings.TrimSuffix(e.format.text, "\n"))
	}
	return envoy.Pack(out)
}

func otlpString(text string) *otlpv1.AnyValue {
	return &otlpv1.AnyValue{Value: &otlpv1.AnyValue_StringValue{StringValue: text}}
}

// otlpFields makes attributes of fields. Envoy takes only texts and lists of keys.
func otlpFields(fields *structpb.Struct) *otlpv1.KeyValueList {
	out := &otlpv1.KeyValueList{}
	for _, key := range slices.Sorted(maps.Keys(fields.Fields)) {
		value := fields.Fields[key]
		attribute := &otlpv1.KeyValue{Key: key}
		switch v := value.Kind.(type) {
		case *structpb.Value_StructValue:
			attribute.Value = &otlpv1.AnyValue{Value: &otlpv1.AnyValue_KvlistValue{KvlistValue: otlpFields(v.StructValue)}}
		case *structpb.Value_StringValue:
			attribute.Value = otlpString(v.StringValue)
		default:
			text, _ := value.MarshalJSON() // of a number or a boolean
			attribute.Value = otlpString(string(text))
		}
		out.Values = append(out.Values, attribute)
	}
	return out
}

// grpcConfig sends Envoy's own log entries, which have no format.
func (p Params) grpcConfig(s sink, e logEntry) (*anypb.Any, error) {
	common := p.commonConfig(s)
	tag := func(name, value string) {
		common.CustomTags = append(common.CustomTags, &tracingv3.CustomTag{
			Tag:  name,
			Type: &tracingv3.CustomTag_Literal_{Literal: &tracingv3.CustomTag_Literal{Value: value}},
		})
	}
	if e.format.reason != "" {
		tag("usher.rejected", strings.TrimSuffix(e.format.reason, ": "+tlsFailure))
	}
	if e.untrusted {
		tag("usher.proxy_header", "not believed")
	} else {
		for _, tlv := range p.TLVs {
			common.FilterStateObjectsToLog = append(common.FilterStateObjectsToLog, envoy.TLVState(tlv))
		}
	}
	if !e.http {
		return envoy.Pack(&grpclogv3.TcpGrpcAccessLogConfig{CommonConfig: common})
	}
	return envoy.Pack(&grpclogv3.HttpGrpcAccessLogConfig{
		CommonConfig:                  common,
		AdditionalRequestHeadersToLog: s.RequestHeaders,
	})
}
