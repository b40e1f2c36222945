package listeners

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// upstream adds the clusters and load assignments of a row.
func (parts *portResources) addClusters(env environment, p port, r portService, memo clusterCache) error {
	groups, err := targetGroupsOf(env.snapshot, r.chain)
	if err != nil {
		return err
	}
	limits := limitsOf(env.snapshot.Entry.Defaults, r.settings)
	for _, g := range groups {
		for _, peer := range g.unresolvedPeers {
			parts.problems = append(parts.problems, unresolvedPeer(peer))
		}
		if g.clusterName == "" {
			continue
		}
		if err := parts.addGroup(env, p, g, limits, memo); err != nil {
			return err
		}
	}
	return nil
}

// unknownPeer is the problem of a cluster peer that nothing is sent to.
func unresolvedPeer(name string) problem.Problem {
	return problem.Problem{
		Where: "cluster peer " + name,
		What: "its root certificates are not known, so that nothing is sent to it; " +
			"establish the peering, and give Usher's token peering:read",
	}
}

// group adds the clusters of what a resolver leads to.
func (parts *portResources) addGroup(env environment, p port, g targetGroup, limits limits, memo clusterCache) error {
	switch {
	case len(g.targets) == 0:
		parts.clusters = append(parts.clusters, emptyCluster(g.clusterName))
	case g.failover:
		aggregate, err := aggregateCluster(g, limits)
		if err != nil {
			return err
		}
		parts.clusters = append(parts.clusters, aggregate)
	}
	for _, l := range g.targets {
		cluster, err := memo.cluster(clusterKeyOf(env, p, g, l, limits))
		if err != nil {
			return fmt.Errorf("cluster %s: %w", l.name, err)
		}
		parts.clusters = append(parts.clusters, cluster)
		parts.targets = append(parts.targets, l)
	}
	return nil
}

// clusterMemo has the clusters of a shape and of the one before it, so that a
// cluster whose key is the same is not made again.
type clusterCache struct {
	previous, current map[clusterKey]*clusterv3.Cluster
}

func (m clusterCache) next() clusterCache {
	return clusterCache{previous: m.current, current: map[clusterKey]*clusterv3.Cluster{}}
}

func (m clusterCache) cluster(k clusterKey) (*clusterv3.Cluster, error) {
	for _, known := range []map[clusterKey]*clusterv3.Cluster{m.current, m.previous} {
		if c := known[k]; c != nil {
			m.current[k] = c
			return c, nil
		}
	}
	c, err := meshCluster(k)
	if err == nil {
		m.current[k] = c
	}
	return c, err
}

// clusterKey is everything that a cluster with instances follows from.
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

func clusterKeyOf(env environment, p port, g targetGroup, l targetCluster, limits limits) clusterKey {
	k := clusterKey{
		name:         l.name,
		target:       l.target,
		peer:         l.peer,
		resolver:     g.node.Resolver,
		loadBalancer: g.node.LoadBalancer,
		http2:        p.protocol == protocolHTTP2 || p.protocol == protocolGRPC,
		limits:       limits,
		fetch:        env.fetch,
		plain:        env.snapshot.Plain,
	}
	if roots := env.snapshot.Roots; roots != nil {
		k.trustDomain = roots.TrustDomain
	}
	if m := env.snapshot.Mesh; m != nil && m.TLS != nil {
		k.outgoing = m.TLS.Outgoing
	}
	return k
}

// meshCluster makes the cluster of a target's instances, which come by EDS
// under the same name.
func meshCluster(k clusterKey) (*clusterv3.Cluster, error) {
	c := &clusterv3.Cluster{
		Name:                 k.name,
		AltStatName:          k.name,
		ConnectTimeout:       connectTimeoutOf(k.resolver),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: envoy.OverADS(k.fetch)},
		// Never send to unhealthy instances, not even when most are.
		CommonLbConfig:   &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{}},
		CircuitBreakers:  &clusterv3.CircuitBreakers{Thresholds: k.limits.thresholds()},
		OutlierDetection: k.limits.outlierDetection(),
	}
	if err := setLoadBalancing(c, k.loadBalancer); err != nil {
		return nil, err
	}
	if k.http2 {
		options, err := envoy.HTTP2Options()
		if err != nil {
			return nil, err
		}
		c.TypedExtensionProtocolOptions = options
	}
	if !k.plain {
		socket, err := meshSocket(k)
		if err != nil {
			return nil, err
		}
		c.TransportSocket = socket
	}
	return c, envoy.Validate(c)
}

// meshSocket makes the mutual TLS to a target's sidecars: the gateway's
// certificate, and the target's identity as the only one that is accepted.
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
	who := meshIdentity{
		roots: RootsSecret, sni: k.target.SNI,
		identities: []string{service.SPIFFEID(k.trustDomain, k.target.Datacenter)},
	}
	if k.peer != nil {
		who = meshIdentity{roots: PeerSecret(k.target.Peer), identities: k.peer.SpiffeID}
		if len(k.peer.SNI) > 0 {
			who.sni = k.peer.SNI[0]
		}
	}
	return envoy.TLSSocket(&tlsv3.UpstreamTlsContext{
		Sni: who.sni,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams:                      params,
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{secretOverADS(LeafSecret)},
			ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
				CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
					DefaultValidationContext: &tlsv3.CertificateValidationContext{
						MatchTypedSubjectAltNames: who.sanMatchers(),
					},
					ValidationContextSdsSecretConfig: secretOverADS(who.roots),
				},
			},
		},
	})
}

// verified says how the other end of a connection is asked for and verified.
type meshIdentity struct {
	roots      string // the secret with the root certificates
	sni        string
	identities []string // those that are accepted, at least one
}

func (v meshIdentity) sanMatchers() []*tlsv3.SubjectAltNameMatcher {
	matchers := make([]*tlsv3.SubjectAltNameMatcher, len(v.identities))
	for i, id := range v.identities {
		matchers[i] = &tlsv3.SubjectAltNameMatcher{
			SanType: tlsv3.SubjectAltNameMatcher_URI,
			Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: id}},
		}
	}
	return matchers
}

// aggregateCluster makes the cluster that tries the legs of a group in order.
// Limits belong to the legs: Envoy counts nothing on an aggregate. Its outlier
// detection is as Consul writes it.
func aggregateCluster(g targetGroup, l limits) (*clusterv3.Cluster, error) {
	names := make([]string, len(g.targets))
	for i, leg := range g.targets {
		names[i] = leg.name
	}
	config, err := envoy.Pack(&aggregatev3.ClusterConfig{Clusters: names})
	if err != nil {
		return nil, err
	}
	c := &clusterv3.Cluster{
		Name:           g.clusterName,
		AltStatName:    g.clusterName,
		ConnectTimeout: connectTimeoutOf(g.node.Resolver),
		LbPolicy:       clusterv3.Cluster_CLUSTER_PROVIDED,
		ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name:        "envoy.clusters.aggregate",
			TypedConfig: config,
		}},
		OutlierDetection: l.outlierDetection(),
	}
	return c, envoy.Validate(c)
}

// emptyCluster makes a cluster without instances: what is sent there is
// answered 503, or goes on to the next leg of a failover.
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
