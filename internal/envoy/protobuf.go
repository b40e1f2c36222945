// Package envoy holds what several packages need to write Envoy's configuration: its protobuf messages, and what
// each release can do.
package envoy

import (
	"fmt"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Message is a generated message of Envoy's API with its validator.
type Message interface {
	proto.Message
	ValidateAll() error
}

// Pack wraps m into an Any whose bytes depend on m alone. It returns an error for a message that Envoy would reject:
// no validator looks into an Any later.
func Pack(m Message) (*anypb.Any, error) {
	if err := Validate(m); err != nil {
		return nil, err
	}
	packed := &anypb.Any{}
	if err := anypb.MarshalFrom(packed, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return packed, nil
}

// Validate returns why Envoy would reject m.
func Validate(m Message) error {
	if err := m.ValidateAll(); err != nil {
		return fmt.Errorf("not valid for Envoy: %w", err)
	}
	return nil
}

// ConnectTimeout is how long Envoy waits for a connection to an instance. It is Consul's default.
const ConnectTimeout = 5 * time.Second

// FetchTimeout is how long Envoy waits for a resource that another one refers to. The zero value leaves Envoy's
// default.
type FetchTimeout struct {
	IsSet    bool
	Duration time.Duration
}

// OverADS is the source of a resource that comes over the same stream as the resource with the reference.
func OverADS(t FetchTimeout) *corev3.ConfigSource {
	source := &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
	if t.IsSet {
		source.InitialFetchTimeout = durationpb.New(t.Duration)
	}
	return source
}

// SocketAddress is an IP address with a TCP port.
func SocketAddress(address string, port int) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       address,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// SingleEndpoint is the load assignment of a cluster with one fixed address.
func SingleEndpoint(cluster string, address *corev3.Address) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{ClusterName: cluster, Endpoints: []*endpointv3.LocalityLbEndpoints{
		{LbEndpoints: []*endpointv3.LbEndpoint{Endpoint(address)}},
	}}
}

// Endpoint is an instance in a load assignment.
func Endpoint(address *corev3.Address) *endpointv3.LbEndpoint {
	endpoint := &endpointv3.Endpoint{Address: address}
	return &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: endpoint}}
}

// Extension sets the fields name and typed_config of a message that names an extension, such as a filter or a
// transport socket, and returns the message.
func Extension[M proto.Message](message M, name string, config Message) (M, error) {
	packed, err := Pack(config)
	if err != nil {
		var none M
		return none, err
	}
	reflected := message.ProtoReflect()
	fields := reflected.Descriptor().Fields()
	reflected.Set(fields.ByName("name"), protoreflect.ValueOfString(name))
	reflected.Set(fields.ByName("typed_config"), protoreflect.ValueOfMessage(packed.ProtoReflect()))
	return message, nil
}

// TransportSocket is the transport socket of a name, such as tls.
func TransportSocket(name string, config Message) (*corev3.TransportSocket, error) {
	return Extension(&corev3.TransportSocket{}, name, config)
}

// GRPCService is a gRPC service whose cluster Envoy has.
func GRPCService(cluster string) *corev3.GrpcService {
	return &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
		EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster},
	}}
}

// HTTP2Options makes a cluster speak HTTP/2 to its instances.
func HTTP2Options() (map[string]*anypb.Any, error) {
	options, err := Pack(&upstreamhttpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
				},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	return map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}, nil
}

// Exactly matches one text.
func Exactly(text string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: text}}
}

// Inline is text that stands in the message itself.
func Inline(text string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}}
}

// StatName makes a name one segment of a statistic's name. Envoy separates the segments by dots, and reads the
// prefix of the PROXY filter's statistics from the one segment after proxy_proto.
func StatName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_':
			return r
		}
		return '_'
	}, name)
}

// DirectAddressState is the filter state with the address and port that Envoy is connected with, whatever a PROXY
// header says.
const DirectAddressState = "usher.peer"

// TLVState is the filter state with the text of the TLV of this name.
func TLVState(name string) string { return "usher.tlv." + name }

// TLVOperator is the operator that formats show a TLV with.
func TLVOperator(name string) string { return "%FILTER_STATE(" + TLVState(name) + ":PLAIN)%" }

// CEL is the operator of an expression
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/advanced/attributes).
func CEL(expression string) string { return "%CEL(" + expression + ")%" }

// StateValue sets the filter state key to the text of a format. An empty text sets nothing.
func StateValue(key, factory, format string) *statev3.FilterStateValue {
	return &statev3.FilterStateValue{
		Key:         &statev3.FilterStateValue_ObjectKey{ObjectKey: key},
		FactoryKey:  factory,
		SkipIfEmpty: true,
		Value: &statev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: Inline(format)},
		}},
	}
}

// StoreDirectAddress sets DirectAddressState.
func StoreDirectAddress() *statev3.FilterStateValue {
	return StateValue(DirectAddressState, "envoy.string", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%")
}
