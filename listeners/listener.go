package listeners

import (
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
)

// listenerOf makes the listener on one address.
func listenerOf(l listening, address string) (*listenerv3.Listener, error) {
	if err := bindable(address); err != nil {
		return nil, err
	}
	chains, err := filterChains(l)
	if err != nil {
		return nil, err
	}
	name := listenerName(l.port, address)
	filters, err := listenerFilters(listenerFilterKey{
		listener: name,
		policy:   l.policy.ProxyProtocol,
		looks:    l.looksForServerName(),
		envoy:    l.env.envoy,
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

// filterChains makes the chains of a listener, for each kind of peers that it
// serves. Envoy looks at the server name first and at the peer then, so the
// chains of every name are there for every kind of peers.
func filterChains(l listening) ([]*listenerv3.FilterChain, error) {
	chainsFor := tcpChains
	if l.port.http() {
		chainsFor = httpChains
	}
	var all []*listenerv3.FilterChain
	for _, who := range l.served() {
		chains, err := chainsFor(l, who)
		if err != nil {
			return nil, err
		}
		if who == trusted {
			for _, chain := range chains {
				restrict(chain, l.policy.ProxyProtocol.TrustedCIDRs)
			}
		}
		all = append(all, chains...)
	}
	return all, nil
}

// restrict lets a chain take the connections of some peers only: those that
// Envoy is connected with, whatever a PROXY header says.
func restrict(chain *listenerv3.FilterChain, to []netip.Prefix) {
	if chain.FilterChainMatch == nil {
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{}
	}
	for _, p := range to {
		chain.FilterChainMatch.DirectSourcePrefixRanges = append(chain.FilterChainMatch.DirectSourcePrefixRanges, &corev3.CidrRange{
			AddressPrefix: p.Addr().String(),
			PrefixLen:     wrapperspb.UInt32(uint32(p.Bits())),
		})
	}
}

// chainName names a filter chain where PROXY protocol is on: what found no
// chain, because it was rejected before, is known by having no name. Consul's
// own chains have none.
func (l *listening) chainName(name string, who peers) string {
	if !l.policy.ProxyProtocol.Enabled() {
		return ""
	}
	return name + who.suffix()
}
