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

// shapeKey is everything that a shape depends on beside its snapshot.
type shapeKey struct {
	envoy envoy.Capabilities
	fetch envoy.FetchTimeout
}

// shape is what the instances of a gateway share: everything but the listeners.
// It is immutable.
type shape struct {
	env      environment
	ports    []compiledPort // in ascending order
	routes   ordered.Map[*routev3.RouteConfiguration]
	clusters ordered.Map[*clusterv3.Cluster]
	secrets  ordered.Map[*tlsv3.Secret]
	legs     legs     // one for each load assignment
	peers    []string // the IDs of targets in cluster peers
	problems []problem.Problem

	memo        clusterMemo
	assignments assignments
}

// compiledPort is a port, and why it cannot be served.
type compiledPort struct {
	port
	err error
}

// next gives the shape of a newer snapshot. The shape before the first is nil.
func (last *shape) next(k shapeKey, s *gateway.Snapshot) *shape {
	if last == nil {
		last = &shape{}
	} else if last.holds(s) {
		now := *last
		now.env.snapshot = s
		now.assignments = last.assignments.next(s, last.legs.between(last.env.snapshot, s))
		return &now
	}
	now := newShape(environment{snapshot: s, envoy: k.envoy, fetch: k.fetch}, last.memo.next())
	now.routes, now.clusters, now.secrets = now.routes.OrSame(last.routes), now.clusters.OrSame(last.clusters), now.secrets.OrSame(last.secrets)
	now.assignments = assign(s, now.legs.all, last.assignments)
	return now
}

// holds says whether a newer snapshot has the same shape. It looks at pointers
// only: false says nothing.
func (last *shape) holds(s *gateway.Snapshot) bool {
	old := last.env.snapshot
	return old.ID == s.ID && old.Datacenter == s.Datacenter && old.DualStack == s.DualStack && old.Plain == s.Plain &&
		old.Entry == s.Entry && old.Mesh == s.Mesh && old.Roots == s.Roots && old.Leaf == s.Leaf && old.DownstreamLeaf == s.DownstreamLeaf &&
		identical(old.Services, s.Services) && identical(old.Chains, s.Chains) &&
		maps.Equal(old.Peers, s.Peers) && last.samePeers(s)
}

// samePeers says whether the instances in cluster peers are the same: they
// tell how their clusters are called and verified.
func (last *shape) samePeers(s *gateway.Snapshot) bool {
	for _, id := range last.peers {
		if s.Endpoints.Get(id) != last.env.snapshot.Endpoints.Get(id) {
			return false
		}
	}
	return true
}

// peersOf gives the IDs of all targets in cluster peers.
func peersOf(s *gateway.Snapshot) []string {
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

// identical says whether two slices, or two maps, are one and the same.
func identical[T any](a, b T) bool {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	return x.Pointer() == y.Pointer() && x.Len() == y.Len()
}

// newShape makes a shape. Where two parts have the same name the first one
// counts, and ports come in ascending order: a cluster that two listeners share
// has the settings of the listener with the lowest port.
func newShape(env environment, memo clusterMemo) *shape {
	s := &shape{env: env, secrets: named(secretsOf(env.snapshot)), peers: peersOf(env.snapshot), memo: memo}
	var routes []*routev3.RouteConfiguration
	var clusters []*clusterv3.Cluster
	var legs []leg
	for _, p := range portsOf(env.snapshot) {
		parts, err := compilePort(env, p, memo)
		s.ports = append(s.ports, compiledPort{p, err})
		s.problems = append(s.problems, parts.problems...)
		routes = append(routes, parts.routes...)
		clusters = append(clusters, parts.clusters...)
		legs = append(legs, parts.legs...)
	}
	s.routes, s.clusters = named(routes), named(clusters)
	s.legs = legsOf(legs)
	return s
}
