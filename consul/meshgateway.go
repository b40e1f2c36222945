package consul

import (
	"fmt"

	"github.com/usherproxy/usher/internal/gateway"
)

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
