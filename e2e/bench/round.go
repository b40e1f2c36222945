//go:build e2e

package main

import (
	"context"
	"fmt"
	"os"
	"time"

	xds "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// ofGateway is the beginning of the names of rows about a gateway of that many
// services and Envoys.
func ofGateway(services, envoys int) string {
	return fmt.Sprintf("%s × %s: ", thousands(services), thousands(envoys))
}

// startUsher replaces Usher: every round begins with one that watches nothing.
func (b *bench) startUsher(ctx context.Context) error {
	if b.usher != nil {
		if err := b.usher.stop(); err != nil {
			return err
		}
	}
	u, err := startUsher(ctx, b.options, b.consul)
	b.usher = u
	return err
}

// usherSide and consulSide give sides without Envoys.
func (b *bench) usherSide(ctx context.Context) side {
	return side{b.usher.process, newFleet(ctx, b.usher.addr, len(b.catalog.ports), &b.library)}
}

func (b *bench) consulSide(ctx context.Context) side {
	return side{b.consul.process, newFleet(ctx, b.consul.xds(), len(b.catalog.ports), &b.library)}
}

// round is one round of both sides with so many Envoys; at full size also of
// everything that is measured with the whole gateway only.
func (b *bench) round(ctx context.Context, envoys int, full bool) error {
	name := ofGateway(len(b.catalog.ports), envoys)
	if err := b.startUsher(ctx); err != nil {
		return err
	}
	usher, consul := b.usherSide(ctx), b.consulSide(ctx)
	defer func() { usher.fleet.close() }() // a later step may replace it
	defer func() { consul.fleet.close() }()
	if err := b.firstStates(ctx, name, envoys, usher, consul); err != nil {
		return err
	}
	if err := b.changesOnBoth(ctx, name, envoys, usher, consul); err != nil {
		return err
	}
	if full {
		var err error
		if usher, consul, err = b.reconnect(ctx, name, usher, consul); err != nil {
			return err
		}
		if err := b.cpuWhileIdle(ctx, name, usher, consul); err != nil {
			return err
		}
		if err := b.configuration(ctx, name, usher, consul); err != nil {
			return err
		}
		if err := b.storm(ctx, name, usher, consul); err != nil {
			return err
		}
	}
	b.losses(name, usher, consul)
	consul.fleet.close()
	if err := b.changesOnUsher(ctx, name, b.barsOverFloor(envoys), usher); err != nil {
		return err
	}
	if full {
		return b.storm(ctx, name, usher)
	}
	return nil
}

// losses records how many streams ended unexpectedly, and prints why the first one
// did.
func (b *bench) losses(name string, usher, consul side) {
	var n [2]float64
	for i, s := range []side{usher, consul} {
		lost, first := s.fleet.losses()
		n[i] = float64(lost)
		if lost > 0 {
			fmt.Fprintf(os.Stderr, "%s%s broke %d streams; the first: %v\n", name, s.process.name, lost, first)
		}
	}
	b.report.record(name+"streams that broke", piece, pair(n[0], n[1]))
}

// firstStates measures how long it takes until all Envoys are complete, on one
// side after the other, and then one more.
func (b *bench) firstStates(ctx context.Context, name string, envoys int, usher, consul side) error {
	var all, fresh [2]float64
	for i, s := range []side{usher, consul} {
		took, err := b.connect(ctx, s.fleet, instanceIDs(0, envoys), 1)
		if err != nil {
			return err
		}
		all[i] = took
	}
	for i, s := range []side{usher, consul} {
		f := newFleet(ctx, s.fleet.addr, s.fleet.services, s.fleet.library)
		took, err := b.connect(ctx, f, instanceIDs(envoys, envoys+1), 1)
		f.close()
		if err != nil {
			return err
		}
		fresh[i] = took
	}
	b.report.record(name+"first full state of all, nothing watched before", millisecond, pair(all[0], all[1]))
	b.report.record(name+"first full state of a fresh Envoy", millisecond, pair(fresh[0], fresh[1]), ofConsul(5))
	return nil
}

// connect adds Envoys to a fleet, and returns the milliseconds until all are
// complete.
func (b *bench) connect(ctx context.Context, f *fleet, ids []string, perConnection int) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, deliveryDeadline)
	defer cancel()
	took, err := f.add(ctx, ids, perConnection)
	return milliseconds(took), err
}

// changesOnBoth changes endpoints while both deliver.
func (b *bench) changesOnBoth(ctx context.Context, name string, envoys int, usher, consul side) error {
	got, err := b.changeEndpoints(ctx, b.besideChanges, false, usher, consul)
	if err != nil {
		return err
	}
	u, c := got.sides[0], got.sides[1]
	latency, cpu := b.barsOfConsul(envoys)
	at := name + "endpoint change, both deliver: "
	b.report.record(at+"p50", millisecond, pair(percentile(u.latency, 50), percentile(c.latency, 50)), latency...)
	b.report.record(at+"p99", millisecond, pair(percentile(u.latency, 99), percentile(c.latency, 99)))
	b.report.record(at+"CPU a change", millisecond, pair(each(u.cpu, got.n), each(c.cpu, got.n)), cpu...)
	b.report.record(at+"resources a change and Envoy", piece,
		pair(each(float64(u.wire.total()), got.n*envoys), each(float64(c.wire.total()), got.n*envoys)), atMost(1, "1"))
	b.report.record(at+"bytes a change and Envoy", bytesOf,
		pair(each(float64(u.wire.bytes), got.n*envoys), each(float64(c.wire.bytes), got.n*envoys)))
	b.report.record(name+"resident memory", bytesOf, pair(usher.process.resident(), consul.process.resident()), b.barsOfMemory(envoys)...)
	return nil
}

// changesOnUsher changes endpoints while no Envoy is on Consul's own xDS, once
// the work of what went before is done.
func (b *bench) changesOnUsher(ctx context.Context, name string, bars []bar, usher side) error {
	if err := waitIdle(ctx, b.consul.process, usher.process); err != nil {
		return err
	}
	got, err := b.changeEndpoints(ctx, b.changes, true, usher)
	if err != nil {
		return err
	}
	u := got.sides[0]
	at := name + "endpoint change, Usher alone: "
	b.report.record(at+"p50", millisecond, overFloor(percentile(u.latency, 50), percentile(got.floor, 50)), bars...)
	b.report.record(at+"p99", millisecond, overFloor(percentile(u.latency, 99), percentile(got.floor, 99)))
	b.report.record(at+"CPU a change", millisecond, alone(each(u.cpu, got.n)))
	b.report.record(at+"the bench's own CPU a change", millisecond, alone(each(got.own, got.n)))
	return nil
}

// reconnect connects all Envoys again with what they have, and returns the new
// sides. A change that comes after shows that all that had to come has come.
func (b *bench) reconnect(ctx context.Context, name string, usher, consul side) (side, side, error) {
	before := [2]side{usher, consul}
	after := [2]side{b.usherSide(ctx), b.consulSide(ctx)}
	for i := range after {
		envoys := before[i].fleet.envoys
		before[i].fleet.close()
		if _, err := after[i].fleet.add(ctx, instanceIDs(0, len(envoys)), 1, envoys...); err != nil {
			return usher, consul, err
		}
	}
	if err := b.sentinel(ctx, after[:]...); err != nil {
		return usher, consul, err
	}
	var extra [2]float64
	for i, s := range after {
		n := len(s.fleet.envoys)
		extra[i] = each(float64(s.fleet.counted().total()-n), n)
	}
	b.report.record(name+"resources for an Envoy that reconnects up to date", piece, pair(extra[0], extra[1]), atMost(0, "0"))
	return after[0], after[1], nil
}

// sentinel makes one change and waits for it: what was sent before it has come
// as well.
func (b *bench) sentinel(ctx context.Context, sides ...side) error {
	f := b.plan(ctx, false)
	_, err := deliver(ctx, sides, f.write, []sign{f.sign})
	return err
}

// cpuWhileIdle measures the CPU of both while nothing changes, from when Usher has
// come to rest.
func (b *bench) cpuWhileIdle(ctx context.Context, name string, sides ...side) error {
	if err := waitIdle(ctx, b.usher.process); err != nil {
		return err
	}
	m := newMeter(sides)
	begin := time.Now()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(b.idle):
	}
	took := milliseconds(time.Since(begin))
	got := m.read()
	b.report.record(name+"CPU while idle, of a core", percent,
		pair(100*got[0].cpu/took, 100*got[1].cpu/took), atMost(0.5, "0.5 %"))
	return nil
}

// configChange is a change that is not of an endpoint.
type configChange struct {
	what  string
	write func(context.Context) error
	signs [][]sign // one list for both sides, or one for each
	// most are the resources of one type that an Envoy may get for it, and which.
	most  int
	which string
}

// configuration changes what is not an endpoint.
func (b *bench) configuration(ctx context.Context, name string, usher, consul side) error {
	b.marks++
	mark := fmt.Sprintf("mark-%d", b.marks)
	middle := len(b.catalog.ports) / 2
	all := []configChange{
		{
			what:  "route of a service",
			write: func(ctx context.Context) error { return b.catalog.writeRouter(ctx, middle, "/"+mark) },
			signs: [][]sign{{textSign(xds.RouteType, "/"+mark)}},
			most:  1, which: "1",
		},
		{
			what:  "gateway's config entry",
			write: func(ctx context.Context) error { return b.catalog.writeEntry(ctx, mark+".example.com") },
			signs: [][]sign{{textSign(xds.RouteType, mark+".example.com")}},
			most:  1, which: "1",
		},
		{
			what:  "proxy-defaults",
			write: func(ctx context.Context) error { return b.catalog.writeDefaults(ctx, mark) },
			signs: [][]sign{{textSign(xds.ListenerType, mark)}},
			most:  1, which: "1",
		},
	}
	if b.rotation {
		rotation, err := b.newRoot(ctx)
		if err != nil {
			return err
		}
		all = append(all, rotation)
	}
	for _, c := range all {
		if err := b.configure(ctx, name, c, usher, consul); err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
	}
	return nil
}

// configure makes one change.
func (b *bench) configure(ctx context.Context, name string, c configChange, sides ...side) error {
	m := newMeter(sides)
	took, err := deliver(ctx, sides, c.write, c.signs...)
	if err != nil {
		return err
	}
	// What follows the signs belongs to the change, but not to its CPU.
	got := m.read()
	if err := b.sentinel(ctx, sides...); err != nil {
		return err
	}
	wire := m.read()
	resources := func(i int) float64 {
		n := len(sides[i].fleet.envoys)
		wire[i].wire.resources[xds.EndpointType] -= n // the sentinel
		return each(float64(wire[i].wire.most()), n)
	}
	name += c.what + ": "
	b.report.record(name+"delivered", millisecond, pair(took[0], took[1]))
	b.report.record(name+"CPU", millisecond, pair(got[0].cpu, got[1].cpu), ofConsul(20))
	b.report.record(name+"resources of one type and Envoy", piece,
		pair(resources(0), resources(1)), atMost(float64(c.most), c.which))
	return nil
}

// newRoot makes Consul sign with a new root. Consul takes up to half a minute
// until it has signed the gateway's certificate again.
func (b *bench) newRoot(ctx context.Context) (configChange, error) {
	old, err := b.consul.signingKeys(ctx)
	if err != nil {
		return configChange{}, err
	}
	// Usher sends the roots and the leaf as two secrets, Consul puts both into
	// every cluster.
	ofUsher := []sign{{xds.SecretType, "", rotatedRoots(old)}, {xds.SecretType, "", rotatedLeaf(old)}}
	var ofConsul []sign
	for i := range b.catalog.ports {
		ofConsul = append(ofConsul, sign{xds.ClusterType, serviceName(i), rotatedBoth(old)})
	}
	b.bits = map[int]int{256: 384, 384: 256}[b.bits] // what Consul has already is no change
	return configChange{
		what:  "new root and leaf",
		write: func(ctx context.Context) error { return b.catalog.rotate(ctx, b.bits) },
		signs: [][]sign{ofUsher, ofConsul},
		most:  2, which: "2: roots, leaf",
	}, nil
}

// storm changes the endpoints of all services at once. The floor is how long
// the writing took.
func (b *bench) storm(ctx context.Context, name string, sides ...side) error {
	var signs []sign
	for i := range b.catalog.ports {
		signs = append(signs, b.catalog.flip(i))
	}
	var writing float64
	m := newMeter(sides)
	took, err := deliver(ctx, sides, func(ctx context.Context) error {
		begin := time.Now()
		err := inParallel(len(signs), func(i int) error { return b.catalog.writeEndpoint(ctx, i) })
		writing = milliseconds(time.Since(begin))
		return err
	}, signs)
	if err != nil {
		return fmt.Errorf("storm: %w", err)
	}
	got := m.read()
	name += fmt.Sprintf("storm of %s changes, ", thousands(len(signs)))
	if len(sides) == 1 {
		b.report.record(name+"Usher alone: delivered (floor: written)", millisecond, overFloor(took[0], writing), overFloorBy(1.2, 50))
		b.report.record(name+"Usher alone: CPU", millisecond, alone(got[0].cpu))
		return nil
	}
	b.report.record(name+"both deliver: delivered (floor: written)", millisecond, cells{took[0], took[1], writing})
	b.report.record(name+"both deliver: CPU", millisecond, pair(got[0].cpu, got[1].cpu))
	return nil
}
