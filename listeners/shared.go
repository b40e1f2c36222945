package listeners

import (
	"maps"
	"reflect"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
)

// sharedKey is everything that shared resources depend on beside their snapshot.
type sharedKey struct {
	envoy envoy.Capabilities
	fetch envoy.FetchTimeout
}

// environment is what all parts of a compile may depend on.
type environment struct {
	sharedKey
	snapshot *gateway.Snapshot
}

// sharedResources are what the instances of a gateway share: everything but the listeners. They are immutable.
type sharedResources struct {
	env         environment
	ports       []compiledPort // in ascending order
	routes      ordered.Map[*routev3.RouteConfiguration]
	clusters    ordered.Map[*clusterv3.Cluster]
	secrets     ordered.Map[*tlsv3.Secret]
	targets     targetClusters // one for each load assignment
	peerTargets []string       // the IDs of targets in cluster peers
	problems    []problem.Problem

	clusterCache clusterCache
	assignments  assignments
}

// compiledPort is a port, and why it cannot be served.
type compiledPort struct {
	port
	err error
}

// update returns the shared resources of a newer snapshot. The first have no last ones.
func (last *sharedResources) update(env environment) *sharedResources {
	if last == nil {
		last = &sharedResources{}
	} else if last.unchanged(env.snapshot) {
		now := *last
		now.env = env
		now.assignments = last.assignments.update(env.snapshot, last.targets.changedBetween(last.env.snapshot, env.snapshot))
		return &now
	}
	now := newShared(env, last.clusterCache.next())
	now.routes, now.clusters = now.routes.OrSame(last.routes), now.clusters.OrSame(last.clusters)
	now.secrets = now.secrets.OrSame(last.secrets)
	now.assignments = newAssignments(env.snapshot, now.targets.all, last.assignments)
	return now
}

// unchanged reports whether nothing but load assignments differs in a newer snapshot. It compares pointers: false
// may be wrong.
func (last *sharedResources) unchanged(s *gateway.Snapshot) bool {
	old := last.env.snapshot
	for _, id := range last.peerTargets { // their instances name and verify their clusters
		if s.Endpoints.Get(id) != old.Endpoints.Get(id) {
			return false
		}
	}
	return old.ID == s.ID && old.Datacenter == s.Datacenter && old.DualStack == s.DualStack && old.Plain == s.Plain &&
		old.Entry == s.Entry && old.Mesh == s.Mesh && old.Roots == s.Roots &&
		old.Leaf == s.Leaf && old.DownstreamLeaf == s.DownstreamLeaf &&
		samePointer(old.Services, s.Services) && samePointer(old.Chains, s.Chains) && maps.Equal(old.Peers, s.Peers)
}

// peerTargetsOf returns the IDs of all targets in cluster peers.
func peerTargetsOf(s *gateway.Snapshot) []string {
	var ids []string
	for _, c := range s.Chains {
		if c == nil {
			continue
		}
		for id, t := range c.Targets {
			if t != nil && t.Peer != "" {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// samePointer reports whether two slices, or two maps, are one and the same.
func samePointer[T any](a, b T) bool {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	return x.Pointer() == y.Pointer() && x.Len() == y.Len()
}

// newShared makes shared resources. Where two have the same name the first one counts, and ports come in ascending
// order: a cluster of two listeners has the settings of the listener with the lowest port.
func newShared(env environment, cache clusterCache) *sharedResources {
	s := &sharedResources{
		env:          env,
		secrets:      ordered.By(secretsOf(env.snapshot), (*tlsv3.Secret).GetName),
		peerTargets:  peerTargetsOf(env.snapshot),
		clusterCache: cache,
	}
	var all portResources
	for _, p := range portsOf(env.snapshot) {
		resources, err := compilePort(env, p, cache)
		s.ports = append(s.ports, compiledPort{p, err})
		all.routes = append(all.routes, resources.routes...)
		all.clusters = append(all.clusters, resources.clusters...)
		all.targets = append(all.targets, resources.targets...)
		all.problems = append(all.problems, resources.problems...)
	}
	s.routes = ordered.By(all.routes, (*routev3.RouteConfiguration).GetName)
	s.clusters = ordered.By(all.clusters, (*clusterv3.Cluster).GetName)
	s.targets, s.problems = targetClustersOf(all.targets), all.problems
	return s
}
