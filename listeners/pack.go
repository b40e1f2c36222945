package listeners

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// message is a generated message of Envoy's API with its validator.
type message interface {
	proto.Message
	ValidateAll() error
}

// pack wraps m into an Any whose bytes depend on m alone. A message that Envoy
// would refuse is an error here: validators do not look into an Any later.
func pack(m message) (*anypb.Any, error) {
	if err := valid(m); err != nil {
		return nil, err
	}
	a := &anypb.Any{}
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return a, nil
}

// valid says why Envoy would refuse m.
func valid(m message) error {
	if err := m.ValidateAll(); err != nil {
		return fmt.Errorf("not valid for Envoy: %w", err)
	}
	return nil
}

// overADS is the source of a resource that comes over the stream that the
// resource with this reference came over.
func overADS(fetch fetchTimeout) *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
		InitialFetchTimeout:   fetch.proto(),
	}
}

// socketAddress is an IP address with a TCP port.
func socketAddress(address string, port int) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       address,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// transportSocket is Envoy's TLS with the given context.
func transportSocket(context message) (*corev3.TransportSocket, error) {
	config, err := pack(context)
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{
		Name:       "tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: config},
	}, nil
}
