//go:build e2e

package main

import (
	"context"
	"fmt"
)

// growth measures Usher with few and with many services, one Envoy each.
func (b *bench) growth(ctx context.Context, services int) error {
	if err := b.catalog.grow(ctx, services, 2); err != nil {
		return err
	}
	return b.repeat("growth", func() error {
		if err := b.startUsher(ctx); err != nil {
			return err
		}
		usher := b.usherSide(ctx)
		defer usher.fleet.close()
		took, err := b.connect(ctx, usher.fleet, instanceIDs(0, 1), 1)
		if err != nil {
			return err
		}
		name := ofGateway(services, 1)
		b.report.record(name+"first full state, nothing watched before", millisecond, alone(took))
		return b.changesOnUsher(ctx, name, nil, usher)
	})
}

// compareGrowth compares what growth measured.
func (b *bench) compareGrowth(small, large int) {
	for _, what := range []string{"p50", "CPU a change"} {
		at := "endpoint change, Usher alone: " + what
		b.report.compare(fmt.Sprintf("growth from %s to %s services: %s", thousands(small), thousands(large), what),
			ofGateway(large, 1)+at, ofGateway(small, 1)+at, atMost(2, "2 ×"))
	}
}

// crowd is one round of one Usher with many Envoys.
func (b *bench) crowd(ctx context.Context) error {
	if err := b.startUsher(ctx); err != nil {
		return err
	}
	usher := b.usherSide(ctx)
	defer usher.fleet.close()
	if _, err := b.connect(ctx, usher.fleet, instanceIDs(0, b.envoys), b.perConnection); err != nil {
		return err
	}
	if err := b.sentinel(ctx, usher); err != nil {
		return err
	}
	few := usher.process.resident()
	name := ofGateway(len(b.catalog.ports), b.crowdSize)
	took, err := b.connect(ctx, usher.fleet, instanceIDs(b.envoys, b.crowdSize), b.perConnection)
	if err != nil {
		return err
	}
	b.report.record(name+fmt.Sprintf("first full state of %d at once", b.crowdSize-b.envoys), millisecond, alone(took))
	if err := b.changesOnUsher(ctx, name, []bar{atMost(100, "100 ms")}, usher); err != nil {
		return err
	}
	b.report.record(name+"resident memory", bytesOf, alone(usher.process.resident()))
	b.report.record(name+"memory of each further Envoy", bytesOf,
		alone(each(usher.process.resident()-few, b.crowdSize-b.envoys)), atMost(100<<10, "100 KiB"))
	return nil
}

// coldStart is one round of the time from a process's start to the first full
// state of an Envoy: of Usher beside a Consul that is up, and of Consul.
func (b *bench) coldStart(ctx context.Context) error {
	if err := b.startUsher(ctx); err != nil {
		return err
	}
	usher, err := b.firstState(ctx, b.usherSide(ctx))
	if err != nil {
		return err
	}
	if err := b.usher.stop(); err != nil {
		return err
	}
	b.usher = nil
	if err := b.consul.stop(); err != nil {
		return err
	}
	if err := b.consul.start(ctx); err != nil {
		return err
	}
	consul, err := b.firstState(ctx, b.consulSide(ctx))
	if err != nil {
		return err
	}
	b.report.record(ofGateway(len(b.catalog.ports), 1)+"cold start to first full state", millisecond, pair(usher, consul), ofConsul(1))
	return b.consul.ready(ctx)
}

func (b *bench) firstState(ctx context.Context, s side) (float64, error) {
	defer s.fleet.close()
	return b.connect(ctx, s.fleet, instanceIDs(0, 1), 1)
}
