package consul

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

var (
	// healthType reads the instances of a mesh service with their sidecars, and their health
	// (https://developer.hashicorp.com/consul/api-docs/health#list-service-instances-for-service).
	healthType = &queryType{name: "health", path: "/v1/health/connect/", needs: "service:read on the service and node:read", decode: decodeRegistrations(endpointsOf)}
	// meshGatewayType reads the instances of one mesh gateway.
	meshGatewayType = &queryType{name: "mesh-gateway", path: "/v1/health/service/", needs: "service:read on the mesh gateways and node:read", decode: decodeRegistrations(endpointsOf)}
	// meshGatewayNamesType reads the names of a datacenter's mesh gateways.
	meshGatewayNamesType = &queryType{name: "mesh-gateways", path: "/v1/catalog/services", needs: "service:read on the mesh gateways and node:read", decode: decodeJSON("services", decodeNames)}
	// peeringType reads the state of a cluster peering
	// (https://developer.hashicorp.com/consul/api-docs/peering#read-a-peering-connection). Such a query cannot block.
	peeringType = &queryType{name: "peering", path: "/v1/peering/", needs: "peering:read", interval: 5 * time.Second, decode: decodeJSON("peering", decodePeering)}
)

// healthQuery returns the query for the instances of a target. It leaves out the local datacenter, so that equal
// queries are equal.
func healthQuery(t *gateway.Target, local string) query {
	q := serviceQuery(healthType, gateway.ServiceName{Name: t.Service, Namespace: t.Namespace, Partition: t.Partition})
	q.peer, q.filter = t.Peer, t.Subset.Filter
	if t.Datacenter != local {
		q.datacenter = t.Datacenter
	}
	return q
}

// registration is one instance in a response about health.
type registration struct {
	Node struct {
		Node, Partition, Address, Datacenter string
		TaggedAddresses                      map[string]string
	}
	Service struct {
		Kind, ID, Address string
		Port              int
		TaggedAddresses   map[string]gateway.Address
		Meta              struct {
			KubernetesNamespace string `json:"k8s-namespace"`
			KubernetesService   string `json:"k8s-service-name"`
		}
		Weights gateway.Weights
		Connect struct{ PeerMeta *gateway.PeerMeta }
		Proxy   struct {
			Config     map[string]any
			AccessLogs gateway.AccessLogs
		}
	}
	Checks []struct{ Status string }
}

// decodeRegistrations is decodeList for a list of instances.
func decodeRegistrations[V any](makeValue func([]*registration) *V) decodeFunc {
	return decodeList("instances", func(_ *V, list []*registration, r response) (*V, error) {
		if len(list) == 0 && r.filtered {
			return nil, errAllFiltered
		}
		if slices.ContainsFunc(list, func(r *registration) bool { return r.Node.Node == "" && r.Node.Address == "" }) {
			return nil, unexpected("an instance has no node")
		}
		return makeValue(list), nil
	})
}

func endpointsOf(list []*registration) *gateway.Endpoints {
	e := &gateway.Endpoints{Endpoints: make([]gateway.Endpoint, len(list))}
	for i, r := range list {
		e.Endpoints[i] = r.endpoint()
	}
	sortEndpoints(e.Endpoints)
	return e
}

func (r *registration) endpoint() gateway.Endpoint {
	return gateway.Endpoint{
		NodeDatacenter:  r.Node.Datacenter,
		NodePartition:   gateway.OmitDefault(r.Node.Partition),
		NodeAddress:     r.Node.Address,
		NodeWANAddress:  r.Node.TaggedAddresses["wan"],
		Address:         r.Service.Address,
		Port:            r.Service.Port,
		TaggedAddresses: r.Service.TaggedAddresses,
		Status:          r.status(),
		Weights:         r.Service.Weights,
		Peer:            r.Service.Connect.PeerMeta,
	}
}

// status returns the worst status of the checks. An unknown status counts as passing, as for Consul's own proxies.
func (r *registration) status() gateway.Status {
	worst := gateway.Passing
	for _, c := range r.Checks {
		switch c.Status {
		case "warning":
			worst = max(worst, gateway.Warning)
		case "critical":
			worst = max(worst, gateway.Critical)
		}
	}
	return worst
}

// sortEndpoints gives the endpoints a fixed order. Consul's order has no meaning.
func sortEndpoints(list []gateway.Endpoint) {
	slices.SortStableFunc(list, func(a, b gateway.Endpoint) int {
		return cmp.Or(
			cmp.Compare(cmp.Or(a.Address, a.NodeAddress), cmp.Or(b.Address, b.NodeAddress)),
			cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.NodeDatacenter, b.NodeDatacenter),
			cmp.Compare(a.NodeAddress, b.NodeAddress),
			cmp.Compare(a.Status, b.Status),
		)
	})
}

// decodeNames returns the names of services, sorted.
func decodeNames(_ *[]string, tags map[string]json.RawMessage, r response) (*[]string, error) {
	if tags == nil {
		return nil, unexpected("it is null")
	}
	if len(tags) == 0 && r.filtered {
		return nil, errAllFiltered
	}
	return new(slices.Sorted(maps.Keys(tags))), nil
}

// addMeshGateways adds the mesh gateways through which the gateway reaches a target of the chain in another datacenter
// or partition: those at the target in mode remote, and the local ones in mode local.
func (b *snapshotBuild) addMeshGateways(chain *gateway.Chain, t *gateway.Target) {
	local := b.next.datacenter
	if t.Peer != "" || gateway.MeshGatewayKey(t.Datacenter, t.Partition) == gateway.MeshGatewayKey(local, chain.Partition) {
		return
	}
	switch t.MeshGateway.Mode {
	case "remote":
		b.addMeshGatewaysOf(t.Datacenter, t.Partition)
	case "local":
		b.addMeshGatewaysOf(local, b.id.Partition)
	}
}

// addMeshGatewaysOf joins two queries: which services are mesh gateways, and where the instances of each are. It adds
// nothing until it has all of them, because a part of the mesh gateways would be a wrong result.
func (b *snapshotBuild) addMeshGatewaysOf(datacenter, partition string) {
	key := gateway.MeshGatewayKey(datacenter, partition)
	if b.snapshot.MeshGateways[key] != nil {
		return
	}
	namesQuery := partitionQuery(meshGatewayNamesType, partition)
	namesQuery.filter = `ServiceKind == "mesh-gateway"`
	if datacenter != b.next.datacenter {
		namesQuery.datacenter = datacenter
	}
	const what = "mesh gateways of datacenter"
	names, r := read[[]string](b, namesQuery)
	b.waitOrGoOn(namesQuery, r, what, key)
	if names == nil {
		return
	}
	joined, complete := &gateway.Endpoints{}, true
	for _, name := range *names {
		q := partitionQuery(meshGatewayType, partition)
		q.name, q.datacenter = name, namesQuery.datacenter
		part, r := read[gateway.Endpoints](b, q)
		b.waitOrGoOn(q, r, what, key)
		if part != nil {
			joined.Endpoints = append(joined.Endpoints, part.Endpoints...)
		}
		complete = complete && part != nil
	}
	if !complete {
		return
	}
	sortEndpoints(joined.Endpoints)
	if b.prev.last != nil {
		joined = reuse(b.prev.last.MeshGateways[key], joined)
	}
	if b.snapshot.MeshGateways == nil {
		b.snapshot.MeshGateways = map[string]*gateway.Endpoints{}
	}
	b.snapshot.MeshGateways[key] = joined
}

// addPeer adds the root certificates of the cluster peer that a target is in.
func (b *snapshotBuild) addPeer(t *gateway.Target) {
	if t.Peer == "" || b.snapshot.Peers[t.Peer] != nil {
		return
	}
	q := query{queryType: peeringType, name: t.Peer, partition: gateway.OrDefault(t.Partition)}
	roots, r := read[gateway.Roots](b, q)
	if roots == nil && outcomeOf(r.err) == outcomeMissing && b.deadlineExceeded(q.String(), b.options.AnswerTimeout) {
		// Consul has no such peering, so Usher serves nothing of that peer.
		b.addProblem(fmt.Sprintf("cluster peer %q", t.Peer),
			fmt.Sprintf("Consul has no such peering (%v), so its services get no traffic; establish the peering, or remove the peer from the service-resolver", r.err))
		roots = noRoots
	} else {
		b.waitOrHoldBack(q, r, "cluster peer", t.Peer)
	}
	if roots == nil {
		return
	}
	if b.snapshot.Peers == nil {
		b.snapshot.Peers = map[string]*gateway.Roots{}
	}
	b.snapshot.Peers[t.Peer] = roots
}

// noRoots is the value for a peering that does not exist.
var noRoots = &gateway.Roots{}

// decodePeering returns the peer's root certificates. Consul's servers write the latest ones of the peer into the
// peering, in the same transaction as the trust bundle for Consul's own proxies. Before the peer has sent any, there
// are none. The peer's trust domain is part of the name of its servers, which only the side that has dialled knows:
// "server.dc2.peering.<trust domain>".
func decodePeering(_ *gateway.Roots, body peeringBody, _ response) (*gateway.Roots, error) {
	if body.Name == "" || slices.Contains(body.PeerCAPems, "") {
		return nil, unexpected("it lacks the name or a certificate")
	}
	_, domain, _ := strings.Cut(body.PeerServerName, ".peering.")
	return &gateway.Roots{TrustDomain: domain, PEMs: body.PeerCAPems}, nil
}

type peeringBody struct {
	Name, PeerServerName string
	PeerCAPems           []string
}
