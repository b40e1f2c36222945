package listeners

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	statev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	upstreamproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// A loopback listener is how a tcp service behind a sidecar gets a PROXY header. Envoy writes the header of a
// cluster outside the cluster's TLS, where a sidecar rejects it. So the listener's connections go through a second
// listener of the same Envoy, on loopback:
//
//	listener --cluster that writes the header--> loopback listener, 127.… --cluster of the mesh, mTLS--> sidecar
//
// Envoy's internal listeners need an extension in the bootstrap that Consul's bootstraps do not have. A Unix socket
// cannot be shared by two Envoys, and a new Envoy shares the ports of the one that it replaces. usesLoopback reports
// whether the port's connections go through a loopback listener.
func (l *listenerParams) usesLoopback() bool {
	return !l.port.http() && l.settings.ProxyProtocol.Upstream != settings.UpstreamNone
}

const loopbackPrefix = "usher-relay:"

// loopbackName names the loopback listener of a port and the cluster in front of it.
func loopbackName(p port) string { return loopbackPrefix + strconv.Itoa(p.number) }

// IsLoopback reports whether a name is that of a loopback listener. Clients reach its port through another listener.
func IsLoopback(name string) bool { return strings.HasPrefix(name, loopbackPrefix) }

// loopbackAddress is the listener's own port on a loopback address of this instance, because several may run on one
// machine. This part of 127.0.0.0/8 is otherwise unused.
func loopbackAddress(l listenerParams) *corev3.Address {
	in := l.instance.registered
	hash := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", l.port.gateway, in.Node, in.ServiceID))
	return envoy.SocketAddress(fmt.Sprintf("127.%d.%d.%d", 64+hash[0]%128, hash[1], 1+hash[2]%254), l.port.number)
}

// newLoopback makes the loopback listener and the cluster that leads to it.
func newLoopback(l listenerParams) (*listenerv3.Listener, *clusterv3.Cluster, error) {
	listener, err := loopbackListener(l)
	if err != nil {
		return nil, nil, err
	}
	cluster, err := loopbackCluster(l)
	return listener, cluster, err
}

// loopbackListener passes connections with the header in front on to the service.
func loopbackListener(l listenerParams) (*listenerv3.Listener, error) {
	cluster, err := tcpCluster(l.input, l.port.services[0])
	if err != nil {
		return nil, err
	}
	proxy, err := tcpProxy(cluster, envoy.StatName(loopbackName(l.port)), nil)
	if err != nil {
		return nil, err
	}
	out := &listenerv3.Listener{
		Name:             loopbackName(l.port),
		Address:          loopbackAddress(l),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		FilterChains:     []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{proxy}}},
	}
	return out, envoy.Validate(out)
}

// loopbackCluster leads to the loopback listener and writes the header.
func loopbackCluster(l listenerParams) (*clusterv3.Cluster, error) {
	plain, err := envoy.TransportSocket("envoy.transport_sockets.raw_buffer", &rawv3.RawBuffer{})
	if err != nil {
		return nil, err
	}
	version := corev3.ProxyProtocolConfig_V1
	if l.settings.ProxyProtocol.Upstream == settings.UpstreamV2 {
		version = corev3.ProxyProtocolConfig_V2
	}
	socket, err := envoy.TransportSocket("envoy.transport_sockets.upstream_proxy_protocol",
		&upstreamproxyv3.ProxyProtocolUpstreamTransport{
			Config:          &corev3.ProxyProtocolConfig{Version: version, PassThroughTlvs: l.upstreamTLVs()},
			TransportSocket: plain,
		})
	if err != nil {
		return nil, err
	}
	name := loopbackName(l.port)
	c := &clusterv3.Cluster{
		Name:                 name,
		ConnectTimeout:       durationpb.New(envoy.ConnectTimeout),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment:       envoy.SingleEndpoint(name, loopbackAddress(l)),
		CircuitBreakers:      unlimited(), // The service's own cluster has the limits.
		TransportSocket:      socket,
	}
	return c, envoy.Validate(c)
}

// upstreamTLVs are the TLVs that the filter keeps and the new header has; nil for none.
func (l *listenerParams) upstreamTLVs() *corev3.ProxyProtocolPassThroughTLVs {
	types := l.settings.ProxyProtocol.UpstreamTLVs
	if !l.usesLoopback() || len(types) == 0 {
		return nil
	}
	out := &corev3.ProxyProtocolPassThroughTLVs{MatchType: corev3.ProxyProtocolPassThroughTLVs_INCLUDE}
	for _, t := range types {
		out.TlvType = append(out.TlvType, uint32(t))
	}
	return out
}

// ownPoolFilters give each connection whose TLVs are handed on its own connection pool. Envoy writes the TLVs of a pool's
// first connection into the headers of all of its connections, and has one pool for all that come from the same address
// and port. Behind AWS PrivateLink two clients of different networks may have the same ones. Pools differ by the server
// name, which a connection without TLS does not send.
func (l *listenerParams) ownPoolFilters() ([]*listenerv3.Filter, error) {
	if l.upstreamTLVs() == nil {
		return nil, nil
	}
	const serverName = "envoy.network.upstream_server_name"
	return stateFilters([]*statev3.FilterStateValue{envoy.StateValue(serverName, serverName, "%CONNECTION_ID%")})
}

// blackholeCluster does not exist: Envoy closes connections to it.
const blackholeCluster = "usher-nowhere"

// loopbackDestination leads to the loopback listener. Envoy copies the connection's own header into the new one,
// whichever host sent it. So the connection of an untrusted downstream goes there only if it claims its real address.
func loopbackDestination(l listenerParams, from downstreams) (string, []*listenerv3.Filter, error) {
	if !from.untrusted() {
		filters, err := l.ownPoolFilters()
		return loopbackName(l.port), filters, err
	}
	filters, err := stateFilters([]*statev3.FilterStateValue{
		envoy.StoreDirectAddress(),
		envoy.StateValue("envoy.tcp_proxy.cluster", "envoy.tcp_proxy.cluster",
			envoy.CEL(fmt.Sprintf("bytes(source.address) == filter_state['%s'] ? '%s' : '%s'", envoy.DirectAddressState,
				loopbackName(l.port), blackholeCluster))),
	})
	return blackholeCluster, filters, err
}
