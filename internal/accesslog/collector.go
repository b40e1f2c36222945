package accesslog

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// collectorKey is everything that the cluster of a collector depends on.
type collectorKey struct {
	address settings.HostPort
	tls     *settings.CollectorTLS
}

// name names the cluster: listeners with the same collector share one. The names of Consul's clusters have no colon.
func (k collectorKey) name() string {
	name := "usher-collector:" + net.JoinHostPort(k.address.Host, strconv.Itoa(k.address.Port))
	if k.tls != nil {
		hash := sha256.Sum256(fmt.Appendf(nil, "%q %q", k.tls.CA, k.tls.SNI))
		name += fmt.Sprintf(":tls-%x", hash[:4])
	}
	return name
}

// collectorCluster leads to a collector, over HTTP/2.
func collectorCluster(k collectorKey) (*clusterv3.Cluster, error) {
	options, err := envoy.HTTP2Options()
	if err != nil {
		return nil, err
	}
	discovery := clusterv3.Cluster_STRICT_DNS
	if _, err := netip.ParseAddr(k.address.Host); err == nil {
		discovery = clusterv3.Cluster_STATIC
	}
	name := k.name()
	c := &clusterv3.Cluster{
		Name:                 name,
		AltStatName:          envoy.StatName(name),
		ConnectTimeout:       durationpb.New(envoy.ConnectTimeout),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: discovery},
		// Listeners do not wait until DNS knows the collector.
		WaitForWarmOnInit:             wrapperspb.Bool(false),
		LoadAssignment:                envoy.SingleEndpoint(name, envoy.SocketAddress(k.address.Host, k.address.Port)),
		TypedExtensionProtocolOptions: options,
	}
	if k.tls != nil {
		if c.TransportSocket, err = collectorSocket(k); err != nil {
			return nil, err
		}
	}
	return c, envoy.Validate(c)
}

// collectorSocket makes the TLS to a collector: Envoy verifies the collector's name or address in its certificate.
func collectorSocket(k collectorKey) (*corev3.TransportSocket, error) {
	name, sanType := k.tls.SNI, tlsv3.SubjectAltNameMatcher_DNS
	if name == "" {
		name = k.address.Host
		if _, err := netip.ParseAddr(name); err == nil {
			sanType = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
		}
	}
	context := &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		AlpnProtocols: []string{"h2"},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: envoy.Inline(k.tls.CA),
			MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
				SanType: sanType,
				Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}},
			}},
		}},
	}}
	if sanType == tlsv3.SubjectAltNameMatcher_DNS {
		context.Sni = name
	}
	return envoy.TLSSocket(context)
}
