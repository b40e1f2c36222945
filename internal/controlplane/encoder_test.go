package controlplane

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/listeners"
)

func TestSetsOfRemovedInstancesAreDropped(t *testing.T) {
	p := newEncoder(NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler), func(evidence.Key) compiler { return new(listeners.Compiler) })
	here := &gateway.Instance{Node: "here", ServiceID: "edge"}
	p.startGeneration(snapshot(here, &gateway.Instance{Node: "gone", ServiceID: "edge"}), evidence.Key{})
	for _, in := range p.snapshot.Instances {
		p.resourceSetFor(in, edge)
	}
	// The instance that is registered keeps what it had without being asked for.
	p.startGeneration(snapshot(here), evidence.Key{})
	p.startGeneration(snapshot(here, &gateway.Instance{Node: "new", ServiceID: "edge"}), evidence.Key{})
	if len(p.latest) != 1 {
		t.Errorf("%d sets are held, want the one of the instance that is registered", len(p.latest))
	}
}
