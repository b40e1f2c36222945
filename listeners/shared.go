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

// sharedKey is everything that shared resources depend on besides their snapshot.
type sharedKey struct {
	capabilities envoy.Capabilities
	fetchTimeout envoy.FetchTimeout
}

// compileInput is what all shared resources depend on.
type compileInput struct {
	sharedKey
	snapshot *gateway.Snapshot
}

// sharedResources are what the instances of a gateway share: everything but the listeners. They are immutable.
type sharedResources struct {
	input       compileInput
	ports       []compiledPort // in ascending order
	routes      ordered.Map[*routev3.RouteConfiguration]
	clusters    ordered.Map[*clusterv3.Cluster]
	secrets     ordered.Map[*tlsv3.Secret]
	targets     edsClusters // one for each load assignment
	peerTargets []string    // the IDs of targets in cluster peers
	problems    []problem.Problem

	clusterCache clusterCache
	assignments  assignments
}

// compiledPort is a port, and why it cannot be served.
type compiledPort struct {
	port
	untrustedRoutes map[string]*routev3.RouteConfiguration
	err             error
}

// sharedResourcesOf returns the shared resources for an input. Previous are those of the snapshot before, or nil.
func sharedResourcesOf(input compileInput, previous *sharedResources) *sharedResources {
	if previous == nil {
		previous = &sharedResources{}
	} else if previous.onlyAssignmentsDiffer(input.snapshot) {
		s := *previous
		s.input = input
		changed := previous.targets.changedBetween(previous.input.snapshot, input.snapshot)
		s.assignments = previous.assignments.update(input.snapshot, changed)
		return &s
	}
	s := newShared(input, previous.clusterCache.next())
	s.clusters = s.clusters.OrSame(previous.clusters)
	s.assignments = newAssignments(input.snapshot, s.targets.all, previous.assignments)
	return s
}

// onlyAssignmentsDiffer reports whether nothing but load assignments differs in a newer snapshot. It compares
// pointers: false may be wrong.
func (s *sharedResources) onlyAssignmentsDiffer(now *gateway.Snapshot) bool {
	before := s.input.snapshot
	for _, id := range s.peerTargets { // their endpoints name and verify their clusters
		if now.Endpoints.Get(id) != before.Endpoints.Get(id) {
			return false
		}
	}
	return before.ID == now.ID && before.Datacenter == now.Datacenter && before.DualStack == now.DualStack &&
		before.NormalizePath == now.NormalizePath && before.Plain == now.Plain && before.Entry == now.Entry && before.Mesh == now.Mesh && before.Roots == now.Roots &&
		before.Leaf == now.Leaf && before.DownstreamLeaf == now.DownstreamLeaf && maps.Equal(before.Peers, now.Peers) &&
		samePointer(before.Services, now.Services) && samePointer(before.Chains, now.Chains)
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
func newShared(input compileInput, cache clusterCache) *sharedResources {
	s := &sharedResources{
		input:        input,
		secrets:      ordered.By(secretsOf(input.snapshot), (*tlsv3.Secret).GetName),
		peerTargets:  peerTargetsOf(input.snapshot),
		clusterCache: cache,
	}
	var all portResources
	for _, p := range portsOf(input.snapshot) {
		resources, err := compilePort(input, p, cache)
		s.ports = append(s.ports, compiledPort{p, resources.untrustedRoutes, err})
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
