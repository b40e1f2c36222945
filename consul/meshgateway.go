package consul

import (
	"fmt"

	"github.com/usherproxy/usher/gateway"
)

// meshGateways reads the mesh gateways that the way to a target leads through:
// those of the target's datacenter in mode remote, and the local ones in mode
// local.
func (b *build) meshGateways(t *gateway.Target) {
	if t.Peer != "" || t.Datacenter == b.local {
		return
	}
	switch t.MeshGateway.Mode {
	case "remote":
		b.meshGatewaysIn(t.Datacenter)
	case "local":
		b.meshGatewaysIn(b.local)
	}
}

// meshGatewaysIn joins two questions: which services are mesh gateways, and
// where the instances of each are.
func (b *build) meshGatewaysIn(dc string) {
	if b.snapshot.MeshGateways[dc] != nil {
		return
	}
	q := query{kind: meshGatewaysKind, partition: b.id.Partition, datacenter: dc, filter: `ServiceKind == "mesh-gateway"`}
	if dc == b.local {
		q.datacenter = ""
	}
	list, f := read[names](b.lease, q)
	if final(f) {
		b.problem(fmt.Sprintf("mesh gateways of datacenter %q", dc), f.err.Error())
	}
	if list == nil {
		if open(f) {
			b.unsettled = append(b.unsettled, q.String())
		}
		return
	}
	joined := &gateway.Endpoints{}
	for _, name := range list.list {
		part, f := read[gateway.Endpoints](b.lease, query{
			kind: meshGatewayKind, name: name, partition: b.id.Partition, datacenter: q.datacenter,
		})
		if part == nil {
			if open(f) {
				b.unsettled = append(b.unsettled, "mesh-gateway:"+name)
			}
			continue
		}
		joined.Endpoints = append(joined.Endpoints, part.Endpoints...)
	}
	sortEndpoints(joined.Endpoints)
	b.join(dc, joined)
}

// join keeps the pointer of the snapshot before when nothing changed.
func (b *build) join(dc string, joined *gateway.Endpoints) {
	if b.snapshot.MeshGateways == nil {
		b.snapshot.MeshGateways = map[string]*gateway.Endpoints{}
	}
	if b.last != nil {
		joined = keep(b.last.MeshGateways[dc], joined)
	}
	b.snapshot.MeshGateways[dc] = joined
}
