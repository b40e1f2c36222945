//go:build e2e

package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// deliveryDeadline is how long a change may take until the run is given up.
const deliveryDeadline = 3 * time.Minute

// side is one of the two that are measured: its process, and the Envoys that it
// serves.
type side struct {
	process *process
	fleet   *fleet
}

// cost is what a number of changes cost one side.
type cost struct {
	latency []float64 // ms until the slowest Envoy had each change
	cpu     float64   // ms of the process
	wire    wireCounts
}

// meter measures sides from its beginning on.
type meter struct {
	sides []side
	cpu   []time.Duration
	wire  []wireCounts
}

func newMeter(sides []side) meter {
	m := meter{sides: sides}
	for _, s := range sides {
		m.cpu = append(m.cpu, s.process.cpu())
		m.wire = append(m.wire, s.fleet.counted())
	}
	return m
}

// read returns the cost since the beginning.
func (m meter) read() []cost {
	out := make([]cost, len(m.sides))
	for i, s := range m.sides {
		out[i].cpu = milliseconds(s.process.cpu() - m.cpu[i])
		out[i].wire = s.fleet.counted().minus(m.wire[i])
	}
	return out
}

// Processes have settled when together they have used less than settledShare of
// a core for settledFor.
const (
	idleFor   = 500 * time.Millisecond
	idleShare = 0.05
)

// waitIdle waits until the processes have settled.
func waitIdle(ctx context.Context, processes ...*process) error {
	ctx, cancel := context.WithTimeout(ctx, deliveryDeadline)
	defer cancel()
	total := func() (sum time.Duration) {
		for _, p := range processes {
			sum += p.cpu()
		}
		return sum
	}
	for {
		before := total()
		select {
		case <-ctx.Done():
			return fmt.Errorf("the parts do not come to rest: %w", context.Cause(ctx))
		case <-time.After(idleFor):
		}
		if float64(total()-before) < idleShare*float64(idleFor) {
			return nil
		}
	}
}

// deliver makes a change, and returns how long it took until the slowest Envoy of
// each side had all its signs, in milliseconds from before the write. All sides
// are to show the same signs if there is one list, each its own otherwise.
func deliver(ctx context.Context, sides []side, write func(context.Context) error, signs ...[]sign) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, deliveryDeadline)
	defer cancel()
	expected := make([]*expectation, len(sides))
	for i, s := range sides {
		expected[i] = s.fleet.expect(signs[min(i, len(signs)-1)])
	}
	begin := time.Now()
	if err := write(ctx); err != nil {
		return nil, err
	}
	out := make([]float64, len(sides))
	for i, e := range expected {
		at, err := e.wait(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", sides[i].process.name, err)
		}
		out[i] = milliseconds(at.Sub(begin))
	}
	return out, nil
}

// changes is the outcome of endpoint changes that were made one at a time.
type changes struct {
	n     int
	sides []cost
	floor []float64 // ms; empty where it was not measured
	own   float64   // ms of the bench's own CPU
}

// changeEndpoints changes one endpoint after the other, each of another service,
// as soon as all Envoys have the one before. One change goes ahead that does not
// count. Where the floor is asked for, a bare query is open long before its
// change is made.
func (b *bench) changeEndpoints(ctx context.Context, n int, floor bool, sides ...side) (changes, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := changes{n: n, sides: make([]cost, len(sides))}
	latency := make([][]float64, len(sides))
	var m meter
	var own time.Duration
	next := b.plan(ctx, floor)
	for i := range n + 1 {
		current := next
		next = b.plan(ctx, floor && i < n)
		if i == 1 {
			m, own = newMeter(sides), cpuOf(os.Getpid())
		}
		begin := time.Now()
		took, err := deliver(ctx, sides, current.write, []sign{current.sign})
		if err != nil {
			return out, fmt.Errorf("change of an endpoint: %w", err)
		}
		if floor {
			w := <-current.woken
			if w.err != nil {
				return out, fmt.Errorf("bare blocking query: %w", w.err)
			}
			if i > 0 {
				out.floor = append(out.floor, milliseconds(w.at.Sub(begin)))
			}
		}
		for s := range took {
			if i > 0 {
				latency[s] = append(latency[s], took[s])
			}
		}
	}
	out.sides = m.read()
	out.own = milliseconds(cpuOf(os.Getpid()) - own)
	for s := range sides {
		out.sides[s].latency = latency[s]
	}
	return out, nil
}

// flip is a change of an endpoint that is about to be made.
type flip struct {
	sign  sign
	write func(context.Context) error
	woken <-chan woken // by a bare blocking query, where it was asked for
}

// plan chooses the next service, and opens a bare blocking query on it.
func (b *bench) plan(ctx context.Context, floor bool) flip {
	// A step that has no divisor in common with the number of services comes to
	// all of them before it comes to one again.
	const step = 7919
	i := b.turn * step % len(b.catalog.ports)
	b.turn++
	f := flip{sign: b.catalog.flip(i), write: func(ctx context.Context) error { return b.catalog.writeEndpoint(ctx, i) }}
	if floor {
		f.woken = b.consul.watchPort(ctx, serviceName(i), b.catalog.ports[i])
	}
	return f
}
