package consul

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// These types read instances with their health
// (https://developer.hashicorp.com/consul/api-docs/health#list-service-instances-for-service),
// and what Envoy needs to connect to those of other datacenters and clusters.
var (
	// healthType reads the instances of a mesh service with their sidecars.
	healthType = &queryType{name: "health", path: "/v1/health/connect/", decode: decodeAs(decodeEndpoints)}
	// meshGatewayType reads the instances of one mesh gateway.
	meshGatewayType = &queryType{name: "mesh-gateway", path: "/v1/health/service/", decode: decodeAs(decodeEndpoints)}
	// meshGatewayNamesType reads the names of a datacenter's mesh gateways.
	meshGatewayNamesType = &queryType{name: "mesh-gateways", path: "/v1/catalog/services", decode: decodeAs(decodeNames)}
	// peeringType reads the state of a cluster peering
	// (https://developer.hashicorp.com/consul/api-docs/peering#read-a-peering-connection).
	// Such a query cannot block.
	peeringType = &queryType{name: "peering", path: "/v1/peering/", interval: 5 * time.Second, decode: decodeAs(decodePeering)}
)

// healthQuery returns the query for the instances of a target. It leaves out the local
// datacenter, so that equal queries are equal.
func healthQuery(t *gateway.Target, local string) query {
	q := query{
		queryType:  healthType,
		name:       t.Service,
		namespace:  gateway.OrDefault(t.Namespace),
		partition:  gateway.OrDefault(t.Partition),
		datacenter: t.Datacenter,
		peer:       t.Peer,
		filter:     t.Subset.Filter,
	}
	if q.datacenter == local {
		q.datacenter = ""
	}
	return q
}

// registration is one instance in an answer about health.
type registration struct {
	Node struct {
		Node            string
		Partition       string
		Address         string
		Datacenter      string
		TaggedAddresses map[string]string
	}
	Service struct {
		Kind            string
		ID              string
		Address         string
		Port            int
		TaggedAddresses map[string]gateway.Address
		Meta            struct {
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

func decodeRegistrations(a answer) ([]*registration, error) {
	list, err := decodeList[registration]("instances", a)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 && a.filtered {
		return nil, errHidden
	}
	for _, r := range list {
		if r.Node.Node == "" && r.Node.Address == "" {
			return nil, errors.New("instances: one has no node")
		}
	}
	return list, nil
}

func decodeEndpoints(_ *gateway.Endpoints, a answer) (*gateway.Endpoints, error) {
	list, err := decodeRegistrations(a)
	if err != nil {
		return nil, err
	}
	e := &gateway.Endpoints{Endpoints: make([]gateway.Endpoint, len(list))}
	for i, r := range list {
		e.Endpoints[i] = r.endpoint()
	}
	sortEndpoints(e.Endpoints)
	return e, nil
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

// status returns the worst status of the checks. An unknown status counts as passing,
// as for Consul's own proxies.
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

// names are the names of services, sorted.
type names struct {
	list []string
}

func decodeNames(_ *names, a answer) (*names, error) {
	var tags map[string]json.RawMessage
	if err := json.Unmarshal(a.body, &tags); err != nil {
		return nil, fmt.Errorf("services: %w", err)
	}
	if tags == nil {
		return nil, errors.New("services: the answer is null")
	}
	if len(tags) == 0 && a.filtered {
		return nil, errHidden
	}
	return &names{list: slices.Sorted(maps.Keys(tags))}, nil
}

// addMeshGateways adds the mesh gateways through which the gateway reaches a target of
// the chain in another datacenter or partition: those at the target in mode remote,
// and the local ones in mode local.
func (c *compilation) addMeshGateways(chain *gateway.Chain, t *gateway.Target) {
	local := c.next.datacenter
	if t.Peer != "" || gateway.MeshGatewayKey(t.Datacenter, t.Partition) == gateway.MeshGatewayKey(local, chain.Partition) {
		return
	}
	switch t.MeshGateway.Mode {
	case "remote":
		c.addMeshGatewaysOf(t.Datacenter, t.Partition)
	case "local":
		c.addMeshGatewaysOf(local, c.id.Partition)
	}
}

// addMeshGatewaysOf joins two queries: which services are mesh gateways, and where the
// instances of each are. It adds nothing until it has all answers, because a part of
// the mesh gateways would be a wrong result.
func (c *compilation) addMeshGatewaysOf(datacenter, partition string) {
	key := gateway.MeshGatewayKey(datacenter, partition)
	if c.snapshot.MeshGateways[key] != nil {
		return
	}
	namesQuery := partitionQuery(meshGatewayNamesType, partition)
	namesQuery.filter = `ServiceKind == "mesh-gateway"`
	if datacenter != c.next.datacenter {
		namesQuery.datacenter = datacenter
	}
	list := readMeshGateways[names](c, key, namesQuery)
	if list == nil {
		return
	}
	joined, complete := &gateway.Endpoints{}, true
	for _, name := range list.list {
		q := partitionQuery(meshGatewayType, partition)
		q.name, q.datacenter = name, namesQuery.datacenter
		if part := readMeshGateways[gateway.Endpoints](c, key, q); part != nil {
			joined.Endpoints = append(joined.Endpoints, part.Endpoints...)
		} else {
			complete = false
		}
	}
	if !complete {
		return
	}
	sortEndpoints(joined.Endpoints)
	if c.prev.last != nil {
		joined = reuse(c.prev.last.MeshGateways[key], joined)
	}
	if c.snapshot.MeshGateways == nil {
		c.snapshot.MeshGateways = map[string]*gateway.Endpoints{}
	}
	c.snapshot.MeshGateways[key] = joined
}

// readMeshGateways reads a part of the mesh gateways. The snapshot waits for it.
func readMeshGateways[T any](c *compilation, key string, q query) *T {
	v, r := read[T](c, q)
	if c.refusedLong(q, r) {
		c.addProblem(fmt.Sprintf("mesh gateways of datacenter %q", key), r.err.Error())
	}
	if v == nil {
		c.waitFor(q.String())
	}
	return v
}

// addPeer adds the root certificates of the cluster peer that a target is in.
func (c *compilation) addPeer(t *gateway.Target) {
	if t.Peer == "" || c.snapshot.Peers[t.Peer] != nil {
		return
	}
	q := query{queryType: peeringType, name: t.Peer, partition: gateway.OrDefault(t.Partition)}
	roots, r := read[gateway.Roots](c, q)
	where := fmt.Sprintf("cluster peer %q", t.Peer)
	switch {
	case roots != nil:
		if c.refusedLong(q, r) {
			c.addProblem(where, r.err.Error())
		}
	case !c.lasted(q.String(), c.answerTimeout):
		c.addMissing(q.String(), r.err)
		return
	case outcomeOf(r.err) == outcomeMissing:
		// Consul has no such peering, so Usher serves nothing of that peer.
		c.addProblem(where, r.err.Error())
		roots = noRoots
	default:
		c.addProblem(where, heldBack(q, r))
		return
	}
	if c.snapshot.Peers == nil {
		c.snapshot.Peers = map[string]*gateway.Roots{}
	}
	c.snapshot.Peers[t.Peer] = roots
}

// noRoots is the value for a peer that has sent no root certificates.
var noRoots = &gateway.Roots{}

// hasRoots reports whether the root certificates of a cluster peer are known.
func (c *compilation) hasRoots(peer string) bool {
	roots := c.snapshot.Peers[peer]
	return roots != nil && len(roots.PEMs) > 0
}

// decodePeering returns the peer's root certificates. Consul's servers write the latest
// ones of the peer into the peering, in the same transaction as the trust bundle for
// Consul's own proxies. Before the peer has sent any, there are none. The peer's trust
// domain is part of the name of its servers, which only the side that has dialled
// knows: "server.dc2.peering.<trust domain>".
func decodePeering(_ *gateway.Roots, a answer) (*gateway.Roots, error) {
	var out struct {
		Name           string
		PeerServerName string
		PeerCAPems     []string
	}
	if err := json.Unmarshal(a.body, &out); err != nil {
		return nil, fmt.Errorf("peering: %w", err)
	}
	if out.Name == "" || slices.Contains(out.PeerCAPems, "") {
		return nil, errors.New("peering: the answer lacks the name or a certificate")
	}
	_, domain, _ := strings.Cut(out.PeerServerName, ".peering.")
	return &gateway.Roots{TrustDomain: domain, PEMs: out.PeerCAPems}, nil
}
