package listeners

import (
	"fmt"
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// wan is the name of the tagged address that other datacenters use.
const wan = "wan"

// maxWeight is the largest weight that Envoy takes for an instance.
const maxWeight = 128

// assignmentKey is everything that a load assignment depends on.
type assignmentKey struct {
	cluster         string
	locality        string // the gateway.Locality that addresses are seen from; "": none
	onlyPassing     bool
	instances       *gateway.Endpoints // of the target; nil: not answered yet
	viaMeshGateways bool               // by way of mesh gateways
	meshGateways    *gateway.Endpoints // the mesh gateways; nil: not answered yet
}

func assignmentKeyOf(s *gateway.Snapshot, c targetCluster) assignmentKey {
	k := assignmentKey{
		cluster:     c.name,
		locality:    gateway.MeshGatewayKey(s.Datacenter, c.fromPartition),
		onlyPassing: c.target.Subset.OnlyPassing,
		instances:   s.Endpoints.Get(c.target.ID),
	}
	if c.target.Peer != "" {
		// What a peer exports is as it says, and behind its mesh gateways, whose datacenter may be called like the
		// local one.
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

// loadAssignment returns the instances of a cluster: the target's own, or the mesh gateways in front of them, which
// then have the health of the target. It is nil while they are not known. It is empty if there are none: only then
// can Envoy finish its start. An instance that Envoy would reject, with all others, is left out and is a problem.
func loadAssignment(k assignmentKey) (*endpointv3.ClusterLoadAssignment, []problem.Problem) {
	if k.instances == nil || k.viaMeshGateways && k.meshGateways == nil {
		return nil, nil
	}
	instances, shared := k.instances.Endpoints, corev3.HealthStatus_UNKNOWN
	if k.viaMeshGateways {
		instances, shared = k.meshGateways.Endpoints, overallHealth(k.instances, k.onlyPassing)
	}
	var problems []problem.Problem
	group := &endpointv3.LocalityLbEndpoints{}
	for i := range instances {
		ep := &instances[i]
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
		group.LbEndpoints = append(group.LbEndpoints, lbEndpoint(envoy.SocketAddress(address, port), health, weight))
	}
	return &endpointv3.ClusterLoadAssignment{
		ClusterName: k.cluster,
		Endpoints:   []*endpointv3.LocalityLbEndpoints{group},
	}, problems
}

func lbEndpoint(a *corev3.Address, health corev3.HealthStatus, weight uint32) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}},
		HealthStatus:        health,
		LoadBalancingWeight: wrapperspb.UInt32(weight),
	}
}

// bestAddress returns where an instance is reached from its own datacenter and partition, or with remote from
// others, in Consul's order.
func bestAddress(ep *gateway.Endpoint, remote bool) (address string, port int) {
	address, port = ep.Address, ep.Port
	if a, ok := ep.TaggedAddresses[wan]; remote && ok {
		address = a.Address
		if a.Port != 0 {
			port = a.Port
		}
	}
	if address != "" {
		return address, port
	}
	if remote && ep.NodeWANAddress != "" {
		return ep.NodeWANAddress, port
	}
	return ep.NodeAddress, port
}

func reachable(address string, port int) error {
	if _, err := netip.ParseAddr(address); err != nil {
		return fmt.Errorf("its address %q is not an IP address, and no traffic is sent to it; register it with one", address)
	}
	if port < 1 || port > 65535 {
		return fmt.Errorf("its port %d is out of range, and no traffic is sent to it; register it with one from 1 to 65535",
			port)
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
	return health, uint32(min(weight, maxWeight))
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
