package consul

import (
	"fmt"

	"github.com/usherproxy/usher/internal/gateway"
)

// meshGateways reads the mesh gateways that the way to a target of the chain
// leads through where it is in another datacenter or partition: those at the
// target in mode remote, and the gateway's own in mode local.
func (b *build) meshGateways(c *gateway.Chain, t *gateway.Target) {
	if t.Peer != "" || gateway.MeshGatewayKey(t.Datacenter, t.Partition) == gateway.MeshGatewayKey(b.local, c.Partition) {
		return
	}
	switch t.MeshGateway.Mode {
	case "remote":
		b.meshGatewaysIn(t.Datacenter, t.Partition)
	case "local":
		b.meshGatewaysIn(b.local, b.id.Partition)
	}
}

// meshGatewaysIn joins two questions: which services are mesh gateways, and
// where the instances of each are. It adds nothing until all answers are there: a
// part of the mesh gateways would be a wrong result.
func (b *build) meshGatewaysIn(dc, partition string) {
	locality := gateway.MeshGatewayKey(dc, partition)
	if b.snapshot.MeshGateways[locality] != nil {
		return
	}
	q := inPartition(meshGatewaysKind, partition)
	q.filter = `ServiceKind == "mesh-gateway"`
	if dc != b.local {
		q.datacenter = dc
	}
	list, f := read[names](b.lease, q)
	where := fmt.Sprintf("mesh gateways of datacenter %q", locality)
	if b.refused(q, f) {
		b.problem(where, f.err.Error())
	}
	if list == nil {
		b.unsettled = append(b.unsettled, q.String())
		return
	}
	joined, complete := &gateway.Endpoints{}, true
	for _, name := range list.list {
		of := inPartition(meshGatewayKind, partition)
		of.name, of.datacenter = name, q.datacenter
		part, f := read[gateway.Endpoints](b.lease, of)
		if b.refused(of, f) {
			b.problem(where, f.err.Error())
		}
		if part == nil {
			b.unsettled = append(b.unsettled, of.String())
			complete = false
			continue
		}
		joined.Endpoints = append(joined.Endpoints, part.Endpoints...)
	}
	if complete {
		sortEndpoints(joined.Endpoints)
		b.join(locality, joined)
	}
}

// join keeps the pointer of the snapshot before when nothing changed.
func (b *build) join(locality string, joined *gateway.Endpoints) {
	if b.snapshot.MeshGateways == nil {
		b.snapshot.MeshGateways = map[string]*gateway.Endpoints{}
	}
	if b.last != nil {
		joined = keep(b.last.MeshGateways[locality], joined)
	}
	b.snapshot.MeshGateways[locality] = joined
}
