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

// The reads of instances with their health
// (https://developer.hashicorp.com/consul/api-docs/health#list-service-instances-for-service).
var (
	// healthKind reads the instances of a mesh service, each through its
	// sidecar.
	healthType = &queryType{name: "health", path: "/v1/health/connect/", decode: decodeAs(decodeEndpoints)}
	// meshGatewayKind reads the instances of one mesh gateway.
	meshGatewayType = &queryType{name: "mesh-gateway", path: "/v1/health/service/", decode: decodeAs(decodeEndpoints)}
	// meshGatewaysKind reads the names of a datacenter's mesh gateways.
	meshGatewayNamesType = &queryType{name: "mesh-gateways", path: "/v1/catalog/services", decode: decodeAs(decodeNames)}
)

// healthOf is the query for the instances of a target; local is the local
// datacenter, which is left out so that equal questions are equal.
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

// registration is one instance in an answer of the health endpoints.
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

// status gives the worst status among the checks; a check whose status is
// unknown counts as passing, as it does for Consul's own proxies.
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

// sortEndpoints makes the order independent of Consul's, which has no meaning.
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

// meshGateways reads the mesh gateways that the way to a target of the chain
// leads through where it is in another datacenter or partition: those at the
// target in mode remote, and the gateway's own in mode local.
func (b *snapshotBuilder) addMeshGateways(c *gateway.Chain, t *gateway.Target) {
	if t.Peer != "" || gateway.MeshGatewayKey(t.Datacenter, t.Partition) == gateway.MeshGatewayKey(b.datacenter, c.Partition) {
		return
	}
	switch t.MeshGateway.Mode {
	case "remote":
		b.addMeshGatewaysOf(t.Datacenter, t.Partition)
	case "local":
		b.addMeshGatewaysOf(b.datacenter, b.id.Partition)
	}
}

// meshGatewaysIn joins two questions: which services are mesh gateways, and
// where the instances of each are. It adds nothing until all answers are there: a
// part of the mesh gateways would be a wrong result.
func (b *snapshotBuilder) addMeshGatewaysOf(dc, partition string) {
	locality := gateway.MeshGatewayKey(dc, partition)
	if b.snapshot.MeshGateways[locality] != nil {
		return
	}
	q := partitionQuery(meshGatewayNamesType, partition)
	q.filter = `ServiceKind == "mesh-gateway"`
	if dc != b.datacenter {
		q.datacenter = dc
	}
	list, f := read[names](b.subscription, q)
	where := fmt.Sprintf("mesh gateways of datacenter %q", locality)
	if b.refusedLong(q, f) {
		b.addProblem(where, f.err.Error())
	}
	if list == nil {
		b.pending = append(b.pending, q.String())
		return
	}
	joined, complete := &gateway.Endpoints{}, true
	for _, name := range list.list {
		of := partitionQuery(meshGatewayType, partition)
		of.name, of.datacenter = name, q.datacenter
		part, f := read[gateway.Endpoints](b.subscription, of)
		if b.refusedLong(of, f) {
			b.addProblem(where, f.err.Error())
		}
		if part == nil {
			b.pending = append(b.pending, of.String())
			complete = false
			continue
		}
		joined.Endpoints = append(joined.Endpoints, part.Endpoints...)
	}
	if complete {
		sortEndpoints(joined.Endpoints)
		b.setMeshGateways(locality, joined)
	}
}

// join keeps the pointer of the snapshot before when nothing changed.
func (b *snapshotBuilder) setMeshGateways(locality string, joined *gateway.Endpoints) {
	if b.snapshot.MeshGateways == nil {
		b.snapshot.MeshGateways = map[string]*gateway.Endpoints{}
	}
	if b.last != nil {
		joined = reuse(b.last.MeshGateways[locality], joined)
	}
	b.snapshot.MeshGateways[locality] = joined
}

// peeringKind reads what is known of a cluster peer
// (https://developer.hashicorp.com/consul/api-docs/peering#read-a-peering-connection).
// Consul cannot block on it.
var peeringType = &queryType{name: "peering", path: "/v1/peering/", interval: 5 * time.Second, decode: decodeAs(decodePeering)}

// peer reads the root certificates of the cluster peer that a target is in.
func (b *snapshotBuilder) addPeer(t *gateway.Target) {
	if t.Peer == "" || b.snapshot.Peers[t.Peer] != nil {
		return
	}
	q := query{queryType: peeringType, name: t.Peer, partition: gateway.OrDefault(t.Partition)}
	roots, f := read[gateway.Roots](b.subscription, q)
	where := fmt.Sprintf("cluster peer %q", t.Peer)
	switch {
	case roots != nil:
		if b.refusedLong(q, f) {
			b.addProblem(where, f.err.Error())
		}
	case !b.lasted(q.String()):
		b.addMissing(q.String(), f.err)
		return
	case outcomeOf(f.err) == outcomeMissing:
		// Consul has no such peering, so Usher serves nothing of that peer.
		b.addProblem(where, f.err.Error())
		roots = noRoots
	default:
		b.addProblem(where, heldBack(q, f))
		return
	}
	if b.snapshot.Peers == nil {
		b.snapshot.Peers = map[string]*gateway.Roots{}
	}
	b.snapshot.Peers[t.Peer] = roots
}

// noRoots is the value for a peer that has sent no root certificates.
var noRoots = &gateway.Roots{}

// hasRoots reports whether the root certificates of a cluster peer are known.
func (b *snapshotBuilder) hasRoots(peer string) bool {
	roots := b.snapshot.Peers[peer]
	return roots != nil && len(roots.PEMs) > 0
}

// decodePeering gives the peer's root certificates. Consul's servers write those
// that the peer has told them last into the peering, in one transaction with
// the trust bundle that its own proxies get; there are none before the peer has
// told any. The peer's trust domain stands in the name of its servers, which
// only the side that has dialled knows: "server.dc2.peering.<trust domain>".
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
