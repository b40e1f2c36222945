package listeners

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
)

// tcpChains makes the one filter chain of a tcp listener for some downstreams. It leads to the one service that such
// a listener has.
func tcpChains(l listenerParams, from downstreams) ([]*listenerv3.FilterChain, error) {
	socket, err := listenerSocket(l.input, l.port)
	if err != nil {
		return nil, err
	}
	filters, err := tlvFilters(l, from, socket != nil)
	if err != nil {
		return nil, err
	}
	directAddress, err := directAddressFilters(l, from)
	if err != nil {
		return nil, err
	}
	cluster, clusterFilters, err := tcpDestination(l, from)
	if err != nil {
		return nil, err
	}
	proxy, err := tcpProxy(cluster, tcpStatPrefix(l, from), l.logs.For(from.untrusted()))
	if err != nil {
		return nil, err
	}
	chain := &listenerv3.FilterChain{
		Name:            l.chainName(strconv.Itoa(l.port.number), from),
		Filters:         slices.Concat(filters, directAddress, clusterFilters, []*listenerv3.Filter{proxy}),
		TransportSocket: socket,
	}
	return []*listenerv3.FilterChain{chain}, nil
}

// tcpStatPrefix names the statistics of a tcp listener for some downstreams. Consul's bootstraps read the service's
// name and datacenter out of Consul's own name, so the name for untrusted downstreams is another one, as on http
// listeners.
func tcpStatPrefix(l listenerParams, from downstreams) string {
	if from.untrusted() {
		return "ingress_upstream_" + strconv.Itoa(l.port.number) + from.suffix()
	}
	c := l.port.services[0].chain
	name := strings.Join([]string{"upstream", c.ServiceName, c.Namespace, c.Partition, c.Datacenter}, ".")
	return strings.ReplaceAll(name, ":", "_")
}

// tcpDestination returns the cluster that a tcp listener's connections go to, of the service or of the loopback
// listener on the way to it, and the filters that choose it.
func tcpDestination(l listenerParams, from downstreams) (string, []*listenerv3.Filter, error) {
	if l.usesLoopback() {
		return loopbackDestination(l, from)
	}
	cluster, err := tcpCluster(l.input, l.port.services[0])
	return cluster, nil, err
}

// tcpCluster names the cluster that connections go to. A tcp service has no requests to route or split, so its chain
// begins with a resolver.
func tcpCluster(input compileInput, s portService) (string, error) {
	start := s.chain.Nodes[s.chain.StartNode]
	if start != nil && start.Type != gateway.NodeResolver {
		return "", fmt.Errorf("service %s: a tcp listener can reach only one service; "+
			"remove the service-router and the service-splitter of the service, or use protocol http", s.service.Service)
	}
	g, err := targetGroupOf(input.snapshot, s.chain, start)
	if err != nil {
		return "", fmt.Errorf("service %s: %w", s.service.Service, err)
	}
	if g.clusterName == "" {
		return "", fmt.Errorf("service %s: the root certificates of cluster peer %s are not known; establish the peering, and give Usher's token peering:read", s.service.Service, g.unresolvedPeers[0])
	}
	return g.clusterName, nil
}

func tcpProxy(cluster, stats string, logs []*accesslogv3.AccessLog) (*listenerv3.Filter, error) {
	return networkFilter("envoy.filters.network.tcp_proxy", &tcpproxyv3.TcpProxy{
		StatPrefix: stats, ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster}, AccessLog: logs,
	})
}

// directAddressFilters store the downstream's address if a log recognizes health checks by it.
func directAddressFilters(l listenerParams, from downstreams) ([]*listenerv3.Filter, error) {
	if from.untrusted() || !l.logs.NeedsDirectAddress {
		return nil, nil
	}
	return stateFilters([]*statev3.FilterStateValue{envoy.StoreDirectAddress()})
}
