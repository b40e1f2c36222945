package listeners

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
)

// assignments are the load assignments of clusters, by the clusters' names. They are immutable.
type assignments struct {
	all        ordered.Map[*assignment]
	endpoints  ordered.Map[*endpointv3.ClusterLoadAssignment] // those that are known
	incomplete ordered.Map[*assignment]                       // those that are not known, or have problems
}

// assignment is the load assignment of a key.
type assignment struct {
	key      assignmentKey
	message  *endpointv3.ClusterLoadAssignment // nil: not known
	problems []problem.Problem
}

func (a *assignment) isIncomplete() bool { return a.message == nil || len(a.problems) > 0 }

// targetClusters are clusters with endpoints, no two of one name.
type edsClusters struct {
	all        []edsCluster
	byTargetID map[string][]edsCluster
}

// targetClustersOf returns the clusters. Of two of one name the first counts.
func targetClustersOf(list []edsCluster) edsClusters {
	out := edsClusters{byTargetID: make(map[string][]edsCluster, len(list))}
	seen := make(map[string]bool, len(list))
	for _, c := range list {
		if !seen[c.name] {
			seen[c.name] = true
			out.all = append(out.all, c)
			out.byTargetID[c.target.ID] = append(out.byTargetID[c.target.ID], c)
		}
	}
	return out
}

// changedBetween returns the clusters whose endpoints differ between two snapshots.
func (t edsClusters) changedBetween(before, now *gateway.Snapshot) iter.Seq[edsCluster] {
	if !maps.Equal(before.MeshGateways, now.MeshGateways) {
		return slices.Values(t.all)
	}
	return func(yield func(edsCluster) bool) {
		for id := range now.Endpoints.ChangedSince(before.Endpoints) {
			for _, c := range t.byTargetID[id] {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// newAssignments makes the assignments of all clusters. One whose key is the same as before is not made again.
func newAssignments(s *gateway.Snapshot, clusters []edsCluster, previous assignments) assignments {
	var all, incomplete []*assignment
	var known []*endpointv3.ClusterLoadAssignment
	for _, c := range clusters {
		a := previous.build(assignmentKeyOf(s, c))
		all = append(all, a)
		if a.message != nil {
			known = append(known, a.message)
		}
		if a.isIncomplete() {
			incomplete = append(incomplete, a)
		}
	}
	byCluster := func(a *assignment) string { return a.key.cluster }
	return assignments{
		all:        ordered.By(all, byCluster),
		endpoints:  ordered.By(known, (*endpointv3.ClusterLoadAssignment).GetClusterName).OrSame(previous.endpoints),
		incomplete: ordered.By(incomplete, byCluster),
	}
}

// update returns the assignments of a newer snapshot in which the clusters are the same and some of them have other
// instances.
func (a assignments) update(s *gateway.Snapshot, changed iter.Seq[edsCluster]) assignments {
	for c := range changed {
		now := a.build(assignmentKeyOf(s, c))
		a.all, a.endpoints = a.all.With(c.name, now), a.endpoints.With(c.name, now.message)
		if !now.isIncomplete() {
			now = nil
		}
		a.incomplete = a.incomplete.With(c.name, now)
	}
	return a
}

// build returns the assignment of a key, the same one if there is one.
func (a assignments) build(k assignmentKey) *assignment {
	if known := a.all.Get(k.cluster); known != nil && known.key == k {
		return known
	}
	message, problems := loadAssignment(k)
	return &assignment{key: k, message: message, problems: problems}
}

// report returns the names of the assignments that are not known, in order, and the problems of the others.
func (a assignments) report() (heldBack []string, problems []problem.Problem) {
	for name, assignment := range a.incomplete.All() {
		if assignment.message == nil {
			heldBack = append(heldBack, name)
		}
		problems = append(problems, assignment.problems...)
	}
	return heldBack, problems
}

// assignmentKey is everything that a load assignment depends on.
type assignmentKey struct {
	cluster         string
	locality        string // the gateway.Locality that addresses are seen from; "": none
	onlyPassing     bool
	endpoints       *gateway.Endpoints // of the target; nil: not answered yet
	viaMeshGateways bool               // by way of mesh gateways
	meshGateways    *gateway.Endpoints // the mesh gateways; nil: not answered yet
}

func assignmentKeyOf(s *gateway.Snapshot, c edsCluster) assignmentKey {
	k := assignmentKey{
		cluster:     c.name,
		locality:    gateway.MeshGatewayKey(s.Datacenter, c.fromPartition),
		onlyPassing: c.target.Subset.OnlyPassing,
		endpoints:   s.Endpoints.Get(c.target.ID),
	}
	if c.target.Peer != "" {
		// A peer's endpoints are its mesh gateways. Their datacenter may have the name of the local one.
		k.locality, k.onlyPassing = "", false
		return k
	}
	at := gateway.MeshGatewayKey(c.target.Datacenter, c.target.Partition)
	if at == k.locality {
		return k
	}
	switch c.target.MeshGateway.Mode {
	case "local":
		k.viaMeshGateways, k.meshGateways = true, s.MeshGateways[gateway.MeshGatewayKey(s.Datacenter, s.ID.Partition)]
	case "remote":
		k.viaMeshGateways, k.meshGateways = true, s.MeshGateways[at]
	}
	return k
}

// loadAssignment returns the endpoints of a cluster: the target's own, or the mesh gateways in front of them, which
// then have the health of the target. It is nil while they are not known. It is empty if there are none: only then
// can Envoy finish its start. Envoy would reject all endpoints for an invalid one, so that one is left out and is a
// problem.
func loadAssignment(k assignmentKey) (*endpointv3.ClusterLoadAssignment, []problem.Problem) {
	if k.endpoints == nil || k.viaMeshGateways && k.meshGateways == nil {
		return nil, nil
	}
	endpoints, shared := k.endpoints.Endpoints, corev3.HealthStatus_UNKNOWN
	if k.viaMeshGateways {
		endpoints, shared = k.meshGateways.Endpoints, overallHealth(k.endpoints, k.onlyPassing)
	}
	var problems []problem.Problem
	group := &endpointv3.LocalityLbEndpoints{}
	for i := range endpoints {
		ep := &endpoints[i]
		remote := ep.NodeDatacenter != "" && gateway.MeshGatewayKey(ep.NodeDatacenter, ep.NodePartition) != k.locality
		address, port := bestAddress(ep, remote)
		if err := reachable(address, port); err != nil {
			problems = append(problems, problem.Problem{Where: "instance in cluster " + k.cluster, What: err.Error()})
			continue
		}
		health, weight := healthAndWeight(ep, k.onlyPassing)
		if k.viaMeshGateways {
			health = shared
		}
		endpoint := envoy.Endpoint(envoy.SocketAddress(address, port))
		endpoint.HealthStatus, endpoint.LoadBalancingWeight = health, wrapperspb.UInt32(weight)
		group.LbEndpoints = append(group.LbEndpoints, endpoint)
	}
	groups := []*endpointv3.LocalityLbEndpoints{group}
	return &endpointv3.ClusterLoadAssignment{ClusterName: k.cluster, Endpoints: groups}, problems
}

// bestAddress returns where an instance is reached from its own datacenter and partition, or with remote from
// others, in Consul's order.
func bestAddress(ep *gateway.Endpoint, remote bool) (address string, port int) {
	address, port = ep.Address, ep.Port
	if a, ok := ep.TaggedAddresses["wan"]; remote && ok {
		address, port = a.Address, cmp.Or(a.Port, port)
	}
	if remote {
		address = cmp.Or(address, ep.NodeWANAddress)
	}
	return cmp.Or(address, ep.NodeAddress), port
}

func reachable(address string, port int) error {
	if _, err := netip.ParseAddr(address); err != nil {
		return fmt.Errorf("its address %q is not an IP address, and no traffic is sent to it; register it with one", address)
	}
	if port < 1 || port > 65535 {
		return fmt.Errorf("its port %d is out of range, and no traffic is sent to it; register it with one from 1 to 65535", port)
	}
	return nil
}

// healthAndWeight translates an instance's status. To Consul a weight of 0 means no traffic. Envoy has no such
// weight, so the instance is unhealthy.
func healthAndWeight(ep *gateway.Endpoint, onlyPassing bool) (corev3.HealthStatus, uint32) {
	health := corev3.HealthStatus_HEALTHY
	if ep.Status == gateway.Critical || onlyPassing && ep.Status != gateway.Passing {
		health = corev3.HealthStatus_UNHEALTHY
	}
	weight := 1
	if ep.Weights != (gateway.Weights{}) {
		weight = ep.Weights.Passing
		if ep.Status == gateway.Warning {
			weight = ep.Weights.Warning
		}
	}
	if weight < 1 {
		return corev3.HealthStatus_UNHEALTHY, 1
	}
	return health, uint32(min(weight, 128)) // Envoy's maximum
}

// overallHealth reports whether any instance can take requests.
func overallHealth(e *gateway.Endpoints, onlyPassing bool) corev3.HealthStatus {
	for i := range e.Endpoints {
		if health, _ := healthAndWeight(&e.Endpoints[i], onlyPassing); health == corev3.HealthStatus_HEALTHY {
			return health
		}
	}
	return corev3.HealthStatus_UNHEALTHY
}
