package listeners

import (
	"fmt"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
)

// tcpChains makes the one filter chain of a tcp listener, which leads to the
// one service that such a listener has.
func tcpChains(env environment, in instance, p port) (chainSet, error) {
	socket, err := listenerSocket(env, p)
	if err != nil {
		return chainSet{}, err
	}
	cluster, err := tcpCluster(env, p.rows[0])
	if err != nil {
		return chainSet{}, err
	}
	c := p.rows[0].chain
	chain, err := tcpChain(tcpKey{
		cluster: cluster,
		stats:   strings.Join([]string{c.ServiceName, c.Namespace, c.Partition, c.Datacenter}, "."),
		logs:    in.logs.filter,
		socket:  socket,
	})
	if err != nil {
		return chainSet{}, err
	}
	return chainSet{chains: []*listenerv3.FilterChain{chain}}, nil
}

// tcpCluster names the cluster that connections go to. A tcp service has no
// requests to route or split, so its chain begins with a resolver.
func tcpCluster(env environment, r row) (string, error) {
	start := r.chain.Nodes[r.chain.StartNode]
	g, err := groupOf(env.snapshot, r.chain, start)
	if err != nil {
		return "", fmt.Errorf("service %s: a tcp listener leads to one place: %w", r.service.Service, err)
	}
	if g.base == "" {
		return "", fmt.Errorf("service %s: the root certificates of cluster peer %s are not known", r.service.Service, g.unknown[0])
	}
	return g.base, nil
}

// tcpKey is everything that the chain of a tcp listener follows from.
type tcpKey struct {
	cluster string
	stats   string
	logs    []*accesslogv3.AccessLog
	socket  *corev3.TransportSocket
}

func tcpChain(k tcpKey) (*listenerv3.FilterChain, error) {
	filter, err := networkFilter("envoy.filters.network.tcp_proxy", &tcpproxyv3.TcpProxy{
		StatPrefix:       "upstream." + strings.ReplaceAll(k.stats, ":", "_"),
		ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: k.cluster},
		AccessLog:        k.logs,
	})
	if err != nil {
		return nil, err
	}
	return &listenerv3.FilterChain{Filters: []*listenerv3.Filter{filter}, TransportSocket: k.socket}, nil
}
