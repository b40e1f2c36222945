// Package envoy holds what several packages need to write Envoy's configuration: its protobuf messages, and what
// each release can do.
package envoy

import (
	"fmt"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
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
	a := &anypb.Any{}
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return a, nil
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
	return &endpointv3.ClusterLoadAssignment{ClusterName: cluster, Endpoints: []*endpointv3.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
			Endpoint: &endpointv3.Endpoint{Address: address},
		}}},
	}}}
}

// TLSSocket is Envoy's TLS with the given context.
func TLSSocket(context Message) (*corev3.TransportSocket, error) {
	config, err := Pack(context)
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{
		Name:       "tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: config},
	}, nil
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
