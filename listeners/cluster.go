package listeners

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// addClusters adds the clusters and load assignments of a service.
func (r *portResources) addClusters(input compileInput, p port, s portService, cache clusterCache) error {
	groups, err := targetGroupsOf(input.snapshot, s.chain)
	if err != nil {
		return err
	}
	limits := limitsOf(input.snapshot.Entry.Defaults, s.settings.Limits)
	for _, g := range groups {
		for _, peer := range g.unresolvedPeers {
			r.problems = append(r.problems, problem.Problem{
				Where: "cluster peer " + peer,
				What: "its root certificates are not known, and no traffic is sent to it; " +
					"establish the peering, and give Usher's token peering:read",
			})
		}
		if g.clusterName != "" {
			if err := r.addGroup(input, p, g, limits, cache); err != nil {
				return err
			}
		}
	}
	return nil
}

// addGroup adds the clusters of what a resolver leads to.
func (r *portResources) addGroup(input compileInput, p port, g targetGroup, limits limits, cache clusterCache) error {
	switch {
	case len(g.targets) == 0:
		r.clusters = append(r.clusters, emptyCluster(g.clusterName))
	case g.failover:
		aggregate, err := aggregateCluster(g, limits)
		if err != nil {
			return err
		}
		r.clusters = append(r.clusters, aggregate)
	}
	for _, t := range g.targets {
		cluster, err := cache.cluster(clusterKeyOf(input, p, g, t, limits))
		if err != nil {
			return fmt.Errorf("cluster %s: %w", t.name, err)
		}
		r.clusters = append(r.clusters, cluster)
		r.targets = append(r.targets, t)
	}
	return nil
}

// clusterCache holds the clusters of these shared resources and of the previous ones: a cluster whose key is the
// same is not made again.
type clusterCache struct {
	previous, current map[clusterKey]*clusterv3.Cluster
}

func (c clusterCache) next() clusterCache {
	return clusterCache{previous: c.current, current: map[clusterKey]*clusterv3.Cluster{}}
}

func (c clusterCache) cluster(k clusterKey) (*clusterv3.Cluster, error) {
	for _, known := range []map[clusterKey]*clusterv3.Cluster{c.current, c.previous} {
		if cluster := known[k]; cluster != nil {
			c.current[k] = cluster
			return cluster, nil
		}
	}
	cluster, err := meshCluster(k)
	if err == nil {
		c.current[k] = cluster
	}
	return cluster, err
}

// clusterKey is everything that a cluster with endpoints depends on.
type clusterKey struct {
	name         string
	target       *gateway.Target
	peer         *gateway.PeerMeta // of a target in a cluster peer
	resolver     *gateway.Resolver
	loadBalancer *gateway.LoadBalancer
	http2        bool
	limits       limits
	fetch        envoy.FetchTimeout
	plain        bool
	trustDomain  string
	outgoing     *gateway.TLSParameters // of the mesh entry; nil: Envoy's defaults
}

func clusterKeyOf(input compileInput, p port, g targetGroup, t edsCluster, limits limits) clusterKey {
	k := clusterKey{
		name: t.name, target: t.target, peer: t.peer,
		resolver: g.node.Resolver, loadBalancer: g.node.LoadBalancer,
		http2:  p.protocol == gateway.ProtocolHTTP2 || p.protocol == gateway.ProtocolGRPC,
		limits: limits, fetch: input.fetchTimeout, plain: input.snapshot.Plain,
	}
	if roots := input.snapshot.Roots; roots != nil {
		k.trustDomain = roots.TrustDomain
	}
	if m := input.snapshot.Mesh; m != nil && m.TLS != nil {
		k.outgoing = m.TLS.Outgoing
	}
	return k
}

// meshCluster makes the cluster of a target's endpoints, which come by EDS under the same name.
func meshCluster(k clusterKey) (*clusterv3.Cluster, error) {
	c := &clusterv3.Cluster{
		Name:                 k.name,
		AltStatName:          k.name,
		ConnectTimeout:       connectTimeoutOf(k.resolver),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: envoy.OverADS(k.fetch)},
		// Never send to unhealthy endpoints, not even when most are.
		CommonLbConfig:   &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}},
		CircuitBreakers:  &clusterv3.CircuitBreakers{Thresholds: k.limits.thresholds()},
		OutlierDetection: k.limits.outlierDetection(),
	}
	if err := setLoadBalancing(c, k.loadBalancer); err != nil {
		return nil, err
	}
	var err error
	if k.http2 {
		if c.TypedExtensionProtocolOptions, err = envoy.HTTP2Options(); err != nil {
			return nil, err
		}
	}
	if !k.plain {
		if c.TransportSocket, err = meshSocket(k); err != nil {
			return nil, err
		}
	}
	return c, envoy.Validate(c)
}

// meshSocket makes the mutual TLS to a target's sidecars: the gateway's certificate, and the target's identity as
// the only one that is accepted.
func meshSocket(k clusterKey) (*corev3.TransportSocket, error) {
	var outgoing gateway.TLSParameters
	if k.outgoing != nil {
		outgoing = *k.outgoing
	}
	params, err := tlsParameters(outgoing)
	if err != nil {
		return nil, fmt.Errorf("config entry mesh: TLS.Outgoing: %w", err)
	}
	service := gateway.ServiceName{Name: k.target.Service, Namespace: k.target.Namespace, Partition: k.target.Partition}
	roots, sni, identities := RootsSecret, k.target.SNI, []string{service.SPIFFEID(k.trustDomain, k.target.Datacenter)}
	if k.peer != nil {
		roots, sni, identities = PeerSecret(k.target.Peer), "", k.peer.SpiffeID
		if len(k.peer.SNI) > 0 {
			sni = k.peer.SNI[0]
		}
	}
	var names []*tlsv3.SubjectAltNameMatcher
	for _, id := range identities {
		names = append(names, &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: envoy.Exactly(id)})
	}
	return envoy.TransportSocket("tls", &tlsv3.UpstreamTlsContext{
		Sni: sni,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams:                      params,
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{secretOverADS(LeafSecret)},
			ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
				CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
					DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: names},
					ValidationContextSdsSecretConfig: secretOverADS(roots),
				},
			},
		},
	})
}

// aggregateCluster makes the cluster that tries the clusters of a group in order. Those have the limits, because
// Envoy counts nothing on an aggregate. Its outlier detection is as Consul writes it.
func aggregateCluster(g targetGroup, l limits) (*clusterv3.Cluster, error) {
	names := make([]string, len(g.targets))
	for i, t := range g.targets {
		names[i] = t.name
	}
	aggregate, err := envoy.Extension(&clusterv3.Cluster_CustomClusterType{}, "envoy.clusters.aggregate",
		&aggregatev3.ClusterConfig{Clusters: names})
	if err != nil {
		return nil, err
	}
	c := &clusterv3.Cluster{
		Name:                 g.clusterName,
		AltStatName:          g.clusterName,
		ConnectTimeout:       connectTimeoutOf(g.node.Resolver),
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
		ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: aggregate},
		OutlierDetection:     l.outlierDetection(),
	}
	return c, envoy.Validate(c)
}

// emptyCluster makes a cluster without endpoints: a request there is answered 503, or goes on to the next cluster of
// a failover.
func emptyCluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		AltStatName:          name,
		ConnectTimeout:       durationpb.New(envoy.ConnectTimeout),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment:       &endpointv3.ClusterLoadAssignment{ClusterName: name},
	}
}

func connectTimeoutOf(r *gateway.Resolver) *durationpb.Duration {
	if r.ConnectTimeout > 0 {
		return durationpb.New(time.Duration(r.ConnectTimeout))
	}
	return durationpb.New(envoy.ConnectTimeout)
}
