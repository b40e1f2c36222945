package listeners

import (
	"cmp"
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
	if _, err := netip.ParseAddr(address); err != nil { // Envoy resolves no names for a listener
		return nil, fmt.Errorf("address %q of the gateway's registration is not an IP address; "+
			"register the gateway with one, or set envoy_gateway_no_default_bind and envoy_gateway_bind_addresses", address)
	}
	chains, err := filterChains(l)
	if err != nil {
		return nil, err
	}
	name := listenerName(l.port, address)
	filters, err := listenerFilters(l, name)
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
		for _, chain := range chains {
			l.restrict(chain, from)
		}
		all = append(all, chains...)
	}
	return all, nil
}

// restrict makes a chain accept only some downstreams. Where trust in PROXY headers matters, Envoy compares the
// connecting address; for HTTP proxies it compares the address that the connection has after a PROXY header.
func (l *listenerParams) restrict(chain *listenerv3.FilterChain, to downstreams) {
	if to.trust != trustedHeaders && !to.proxies {
		return
	}
	chain.FilterChainMatch = cmp.Or(chain.FilterChainMatch, &listenerv3.FilterChainMatch{})
	if to.trust == trustedHeaders {
		chain.FilterChainMatch.DirectSourcePrefixRanges = ranges(l.settings.ProxyProtocol.TrustedCIDRs)
	}
	if to.proxies {
		chain.FilterChainMatch.SourcePrefixRanges = ranges(l.settings.ClientAddress.TrustedCIDRs)
	}
}

func ranges(networks []netip.Prefix) []*corev3.CidrRange {
	list := make([]*corev3.CidrRange, len(networks))
	for i, p := range networks {
		list[i] = &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}
	}
	return list
}

// chainName names a filter chain where PROXY protocol is on: a log recognizes a rejected connection by the missing
// name. Consul's own chains have none.
func (l *listenerParams) chainName(name string, from downstreams) string {
	if !l.settings.ProxyProtocol.Enabled() {
		return ""
	}
	if from.proxies {
		return name + "_proxies"
	}
	return name + from.suffix()
}

// listenerFilters returns the listener filters in the order they run. The PROXY header is the first thing on the
// wire, before the client's TLS handshake, so its filter comes first: after tls_inspector it would never see a
// header.
func listenerFilters(l listenerParams, listener string) ([]*listenerv3.ListenerFilter, error) {
	var filters []*listenerv3.ListenerFilter
	if l.settings.ProxyProtocol.Enabled() {
		proxy, err := proxyProtocolFilter(l, listener)
		if err != nil {
			return nil, err
		}
		filters = append(filters, proxy)
	}
	if l.needsTLSInspector() {
		inspector, err := listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorv3.TlsInspector{})
		if err != nil {
			return nil, err
		}
		filters = append(filters, inspector)
	}
	return filters, nil
}

func listenerFilter(name string, config envoy.Message) (*listenerv3.ListenerFilter, error) {
	return envoy.Extension(&listenerv3.ListenerFilter{}, name, config)
}

func networkFilter(name string, config envoy.Message) (*listenerv3.Filter, error) {
	return envoy.Extension(&listenerv3.Filter{}, name, config)
}

const proxyProtocolName = "envoy.filters.listener.proxy_protocol"

// proxyProtocolFilter returns the listener filter that reads PROXY headers
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/listeners/listener_filters/proxy_protocol).
//
// A listener with this filter never sets continue_on_listener_filters_timeout: it would make a strict listener serve
// a client that sends no header until the timeout.
func proxyProtocolFilter(l listenerParams, listener string) (*listenerv3.ListenerFilter, error) {
	proxy, can := l.settings.ProxyProtocol, l.input.capabilities
	if proxy.Mode != settings.Strict && proxy.Mode != settings.Permissive {
		return nil, fmt.Errorf("PROXY protocol mode %q: a bug in Usher; please report it", proxy.Mode)
	}
	config := &proxyv3.ProxyProtocol{
		Rules: tlvRules(l), AllowRequestsWithoutProxyProtocol: proxy.Mode == settings.Permissive,
		PassThroughTlvs: l.upstreamTLVs(),
	}
	if !slices.Contains(proxy.Versions, settings.V1) {
		config.DisallowedVersions = append(config.DisallowedVersions, corev3.ProxyProtocolConfig_V1)
	}
	if !slices.Contains(proxy.Versions, settings.V2) {
		config.DisallowedVersions = append(config.DisallowedVersions, corev3.ProxyProtocolConfig_V2)
	}
	if can.ProxyStatPrefix {
		config.StatPrefix = envoy.StatName(listener)
	}
	return listenerFilter(proxyProtocolName, config)
}
