package listeners

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
)

// listenerOf makes the listener of a port on one address of an instance.
func listenerOf(env environment, in instance, p port, address string) (*listenerv3.Listener, error) {
	if err := bindable(address); err != nil {
		return nil, err
	}
	chains, err := filterChains(env, in, p)
	if err != nil {
		return nil, err
	}
	name := listenerName(p, address)
	filters, err := listenerFilters(listenerFilterKey{
		listener: name,
		mode:     in.mode,
		bySNI:    chains.bySNI,
		dialect:  env.dialect,
	})
	if err != nil {
		return nil, err
	}
	l := &listenerv3.Listener{
		Name:             name,
		Address:          socketAddress(address, p.number),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		AccessLog:        in.logs.listener,
		ListenerFilters:  filters,
		FilterChains:     chains.chains,
	}
	return l, valid(l)
}

// chainSet is a listener's filter chains.
type chainSet struct {
	chains []*listenerv3.FilterChain
	bySNI  bool // some chain is chosen by the name that the client asks for
}

func filterChains(env environment, in instance, p port) (chainSet, error) {
	if p.http() {
		return httpChains(env, in, p)
	}
	return tcpChains(env, in, p)
}
