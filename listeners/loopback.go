package listeners

import (
	"crypto/sha256"
	"fmt"
	"strconv"

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

// A relay is how a tcp service behind a sidecar gets a PROXY header. Envoy
// writes the header of a cluster outside the cluster's TLS, where a sidecar
// refuses it. So the listener's connections go by a second listener of the same
// Envoy, on loopback:
//
//	listener --cluster that writes the header--> relay listener, 127.… --cluster of the mesh, mTLS--> sidecar
//
// Envoy has internal listeners for this, which need an extension in the
// bootstrap that Consul's bootstraps do not have. A socket without a network
// address would do, too; but an Envoy that takes the place of another one has to
// share the relay with it, as it shares the ports of the listeners.
type loopback struct {
	listener *listenerv3.Listener
	cluster  *clusterv3.Cluster
}

// relays says whether the port's connections go by a relay.
func (l *listenerParams) usesLoopback() bool {
	return !l.port.http() && l.policy.ProxyProtocol.Upstream != settings.UpstreamNone
}

// relayName names the relay of a port, its listener and its cluster.
func loopbackName(p port) string { return "usher-relay:" + strconv.Itoa(p.number) }

// relayAddress is where the relay listens: on the listener's own port, and on a
// loopback address of the instance's own, because several may run on one
// machine. Nobody else uses this part of 127.0.0.0/8.
func loopbackAddress(l listenerParams) *corev3.Address {
	in := l.instance.registered
	of := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", l.port.gateway, in.Node, in.ServiceID))
	return envoy.SocketAddress(fmt.Sprintf("127.%d.%d.%d", 64+of[0]%128, of[1], 1+of[2]%254), l.port.number)
}

func newLoopback(l listenerParams) (loopback, error) {
	listener, err := loopbackListener(l)
	if err != nil {
		return loopback{}, err
	}
	cluster, err := loopbackCluster(l)
	return loopback{listener: listener, cluster: cluster}, err
}

// relayListener takes connections with a header in front, and sends them as they
// are to the service.
func loopbackListener(l listenerParams) (*listenerv3.Listener, error) {
	cluster, err := tcpCluster(l.env, l.port.services[0])
	if err != nil {
		return nil, err
	}
	proxy, err := tcpProxy(tcpKey{cluster: cluster, stats: envoy.StatName(loopbackName(l.port))})
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

// relayCluster leads to the relay's listener, with the header in front.
func loopbackCluster(l listenerParams) (*clusterv3.Cluster, error) {
	plain, err := envoy.Pack(&rawv3.RawBuffer{})
	if err != nil {
		return nil, err
	}
	version := corev3.ProxyProtocolConfig_V1
	if l.policy.ProxyProtocol.Upstream == settings.UpstreamV2 {
		version = corev3.ProxyProtocolConfig_V2
	}
	socket, err := envoy.Pack(&upstreamproxyv3.ProxyProtocolUpstreamTransport{
		Config: &corev3.ProxyProtocolConfig{Version: version},
		TransportSocket: &corev3.TransportSocket{
			Name:       "envoy.transport_sockets.raw_buffer",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: plain},
		},
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
		// The limits of connections are those of the service's own cluster.
		CircuitBreakers: unlimited(),
		TransportSocket: &corev3.TransportSocket{
			Name:       "envoy.transport_sockets.upstream_proxy_protocol",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: socket},
		},
	}
	return c, envoy.Validate(c)
}

// nowhere is a cluster that does not exist: what is sent there is closed.
const blackholeCluster = "usher-nowhere"

// relayDestination leads to the relay. Envoy writes into the header what the
// connection's own header says, whoever has sent that. So the connection of an
// untrusted peer goes to the relay only if it says of itself what is true.
func loopbackDestination(l listenerParams, who downstreams) (destination, error) {
	if who != untrustedDownstreams {
		return destination{cluster: loopbackName(l.port)}, nil
	}
	filters, err := stateFilters([]*statev3.FilterStateValue{
		envoy.StoreDirectAddress(),
		envoy.StateValue("envoy.tcp_proxy.cluster", "envoy.tcp_proxy.cluster",
			envoy.CEL(fmt.Sprintf("bytes(source.address) == filter_state['%s'] ? '%s' : '%s'", envoy.DirectAddressState, loopbackName(l.port), blackholeCluster))),
	})
	return destination{cluster: blackholeCluster, filters: filters}, err
}
