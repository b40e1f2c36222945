package accesslog

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	otlplogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	reqwithoutqueryv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/req_without_query/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	otlpv1 "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// sinkConfig makes the configuration of a logger.
func (p Params) sinkConfig(s sink, e logEntry) (envoy.Message, error) {
	switch s.Type {
	case settings.SinkOTLP:
		return p.otlpConfig(s, e)
	case settings.SinkGRPC:
		return p.grpcConfig(s, e), nil
	}
	format, err := e.format.proto()
	switch s.Type {
	case settings.SinkStdout:
		return &streamlogv3.StdoutAccessLog{AccessLogFormat: &streamlogv3.StdoutAccessLog_LogFormat{LogFormat: format}}, err
	case settings.SinkStderr:
		return &streamlogv3.StderrAccessLog{AccessLogFormat: &streamlogv3.StderrAccessLog_LogFormat{LogFormat: format}}, err
	}
	return &filelogv3.FileAccessLog{Path: s.Path, AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: format}}, err
}

// proto is the format as Envoy's file and stream loggers have it.
func (f logFormat) proto() (*corev3.SubstitutionFormatString, error) {
	formatters, err := f.formatters()
	out := &corev3.SubstitutionFormatString{OmitEmptyValues: f.sparse, Formatters: formatters}
	if f.fields != nil {
		out.Format = &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: f.fields}
	} else {
		out.Format = &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: envoy.Inline(f.text)}
	}
	return out, err
}

// formatters are the extensions that the format's operators need.
func (f logFormat) formatters() ([]*corev3.TypedExtensionConfig, error) {
	needed := false
	f.each(func(text string) string {
		needed = needed || strings.Contains(text, "%REQ_WITHOUT_QUERY(")
		return text
	})
	if !needed {
		return nil, nil
	}
	formatter, err := envoy.Extension(&corev3.TypedExtensionConfig{}, "envoy.formatter.req_without_query",
		&reqwithoutqueryv3.ReqWithoutQuery{})
	return []*corev3.TypedExtensionConfig{formatter}, err
}

// commonConfig names a collector. Batches are Envoy's default, a second or 16 KiB. Envoy drops a batch that the
// collector does not take: traffic never waits.
func (p Params) commonConfig(s sink) *grpclogv3.CommonGrpcAccessLogConfig {
	return &grpclogv3.CommonGrpcAccessLogConfig{
		LogName:             p.Gateway.String(),
		GrpcService:         envoy.GRPCService(collectorName(s.Sink)),
		TransportApiVersion: corev3.ApiVersion_V3,
	}
}

// otlpConfig writes log records: a text is the body, fields are attributes.
func (p Params) otlpConfig(s sink, e logEntry) (envoy.Message, error) {
	formatters, err := e.format.formatters()
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
	return out, err
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
func (p Params) grpcConfig(s sink, e logEntry) envoy.Message {
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
		return &grpclogv3.TcpGrpcAccessLogConfig{CommonConfig: common}
	}
	return &grpclogv3.HttpGrpcAccessLogConfig{CommonConfig: common, AdditionalRequestHeadersToLog: s.RequestHeaders}
}

// collectorName names the cluster of a sink's collector: listeners with the same collector share one. The names of
// Consul's clusters have no colon.
func collectorName(s settings.Sink) string {
	name := "usher-collector:" + net.JoinHostPort(s.Address.Host, strconv.Itoa(s.Address.Port))
	if s.TLS != nil {
		hash := sha256.Sum256(fmt.Appendf(nil, "%q %q", s.TLS.CA, s.TLS.SNI))
		name += fmt.Sprintf(":tls-%x", hash[:4])
	}
	return name
}

// collectorCluster leads to a collector, over HTTP/2.
func collectorCluster(s settings.Sink) (*clusterv3.Cluster, error) {
	options, err := envoy.HTTP2Options()
	if err != nil {
		return nil, err
	}
	discovery := clusterv3.Cluster_STRICT_DNS
	if _, err := netip.ParseAddr(s.Address.Host); err == nil {
		discovery = clusterv3.Cluster_STATIC
	}
	name := collectorName(s)
	c := &clusterv3.Cluster{
		Name:                 name,
		AltStatName:          envoy.StatName(name),
		ConnectTimeout:       durationpb.New(envoy.ConnectTimeout),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: discovery},
		// Listeners do not wait until DNS knows the collector.
		WaitForWarmOnInit:             wrapperspb.Bool(false),
		LoadAssignment:                envoy.SingleEndpoint(name, envoy.SocketAddress(s.Address.Host, s.Address.Port)),
		TypedExtensionProtocolOptions: options,
	}
	if s.TLS != nil {
		if c.TransportSocket, err = collectorSocket(s); err != nil {
			return nil, err
		}
	}
	return c, envoy.Validate(c)
}

// collectorSocket makes the TLS to a collector: Envoy verifies the collector's name or address in its certificate.
func collectorSocket(s settings.Sink) (*corev3.TransportSocket, error) {
	name, sanType := s.TLS.SNI, tlsv3.SubjectAltNameMatcher_DNS
	if name == "" {
		name = s.Address.Host
		if _, err := netip.ParseAddr(name); err == nil {
			sanType = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
		}
	}
	context := &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		AlpnProtocols: []string{"h2"},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa:                 envoy.Inline(s.TLS.CA),
			MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{SanType: sanType, Matcher: envoy.Exactly(name)}},
		}},
	}}
	if sanType == tlsv3.SubjectAltNameMatcher_DNS {
		context.Sni = name
	}
	return envoy.TransportSocket("tls", context)
}
