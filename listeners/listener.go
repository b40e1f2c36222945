package listeners

import (
	"fmt"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	proxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// listenerOf makes the listener on one address.
func listenerOf(l listenerParams, address string) (*listenerv3.Listener, error) {
	if err := checkBindAddress(address); err != nil {
		return nil, err
	}
	chains, err := filterChains(l)
	if err != nil {
		return nil, err
	}
	name := listenerName(l.port, address)
	filters, err := listenerFilters(listenerFilterKey{
		listener:     name,
		policy:       l.policy.ProxyProtocol,
		tlsInspector: l.needsTLSInspector(),
		envoy:        l.env.envoy,
	})
	if err != nil {
		return nil, err
	}
	out := &listenerv3.Listener{
		Name:             name,
		Address:          envoy.SocketAddress(address, l.port.number),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		AccessLog:        l.logs.Listener,
		ListenerFilters:  filters,
		FilterChains:     chains,
	}
	return out, envoy.Validate(out)
}

// filterChains makes the chains of a listener. Envoy matches the server name first and the downstream's address
// then, so all downstreams have the chains of every name.
func filterChains(l listenerParams) ([]*listenerv3.FilterChain, error) {
	chainsFor := tcpChains
	if l.port.http() {
		chainsFor = httpChains
	}
	var all []*listenerv3.FilterChain
	for _, from := range l.servedDownstreams() {
		chains, err := chainsFor(l, from)
		if err != nil {
			return nil, err
		}
		if from == trustedDownstreams {
			for _, chain := range chains {
				restrict(chain, l.policy.ProxyProtocol.TrustedCIDRs)
			}
		}
		all = append(all, chains...)
	}
	return all, nil
}

// restrict makes a chain accept downstreams of some networks only, whatever their PROXY headers say.
func restrict(chain *listenerv3.FilterChain, to []netip.Prefix) {
	if chain.FilterChainMatch == nil {
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{}
	}
	for _, p := range to {
		ranges := &chain.FilterChainMatch.DirectSourcePrefixRanges
		*ranges = append(*ranges, &corev3.CidrRange{
			AddressPrefix: p.Addr().String(),
			PrefixLen:     wrapperspb.UInt32(uint32(p.Bits())),
		})
	}
}

// chainName names a filter chain where PROXY protocol is on: a log recognizes a rejected connection by the missing
// name. Consul's own chains have none.
func (l *listenerParams) chainName(name string, from downstreams) string {
	if !l.policy.ProxyProtocol.Enabled() {
		return ""
	}
	return name + from.suffix()
}

// listenerFilterKey is everything that a listener's filters depend on.
type listenerFilterKey struct {
	listener     string // its name
	policy       settings.ProxyProtocol
	tlsInspector bool
	envoy        envoy.Capabilities
}

// listenerFilters returns the listener filters in the order they run. The PROXY header is the first thing on the
// wire, before the client's TLS handshake, so its filter comes first: after tls_inspector it would never see a
// header.
func listenerFilters(k listenerFilterKey) ([]*listenerv3.ListenerFilter, error) {
	var filters []*listenerv3.ListenerFilter
	proxy, err := proxyProtocolFilter(k)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		filters = append(filters, proxy)
	}
	if k.tlsInspector {
		inspector, err := listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorv3.TlsInspector{})
		if err != nil {
			return nil, err
		}
		filters = append(filters, inspector)
	}
	return filters, nil
}

func listenerFilter(name string, config envoy.Message) (*listenerv3.ListenerFilter, error) {
	packed, err := envoy.Pack(config)
	if err != nil {
		return nil, err
	}
	return &listenerv3.ListenerFilter{
		Name:       name,
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: packed},
	}, nil
}

func networkFilter(name string, config envoy.Message) (*listenerv3.Filter, error) {
	packed, err := envoy.Pack(config)
	if err != nil {
		return nil, err
	}
	return &listenerv3.Filter{
		Name:       name,
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed},
	}, nil
}

const proxyProtocolName = "envoy.filters.listener.proxy_protocol"

// proxyProtocolFilter returns the listener filter that reads PROXY headers, or nil when the mode is off
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/listeners/listener_filters/proxy_protocol).
//
// A listener with this filter never sets continue_on_listener_filters_timeout: it would make a strict listener serve
// a client that sends no header until the timeout.
func proxyProtocolFilter(k listenerFilterKey) (*listenerv3.ListenerFilter, error) {
	config := &proxyv3.ProxyProtocol{
		DisallowedVersions: disallowed(k.policy.Versions),
		Rules:              tlvRules(k.policy.TLVs, k.envoy),
	}
	switch k.policy.Mode {
	case settings.Off:
		return nil, nil
	case settings.Strict:
	case settings.Permissive:
		config.AllowRequestsWithoutProxyProtocol = true
	default:
		return nil, fmt.Errorf("PROXY protocol mode %q is not allowed; use off, permissive or strict", k.policy.Mode)
	}
	if k.envoy.ProxyStatPrefix {
		config.StatPrefix = envoy.StatName(k.listener)
	}
	return listenerFilter(proxyProtocolName, config)
}

// proxyVersions are the versions as Envoy has them.
var proxyVersions = []struct {
	version settings.Version
	proto   corev3.ProxyProtocolConfig_Version
}{
	{settings.V1, corev3.ProxyProtocolConfig_V1},
	{settings.V2, corev3.ProxyProtocolConfig_V2},
}

// disallowed returns the versions that are not among the allowed ones.
func disallowed(allowed []settings.Version) []corev3.ProxyProtocolConfig_Version {
	var out []corev3.ProxyProtocolConfig_Version
	for _, v := range proxyVersions {
		if !slices.Contains(allowed, v.version) {
			out = append(out, v.proto)
		}
	}
	return out
}
