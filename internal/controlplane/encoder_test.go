package controlplane

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/listeners"
	"github.com/usherproxy/usher/xds"
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

// A set has the mark of its snapshot. If only the mark goes, the resources stay the same, and nothing is encoded.
func TestTheSetOfARestoredSnapshotHasItsMark(t *testing.T) {
	p := newEncoder(NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler), func(evidence.Key) compiler { return new(listeners.Compiler) })
	here := &gateway.Instance{Node: "here", ServiceID: "edge"}
	setFor := func(restored time.Time, keep gateway.Keep) *xds.Set {
		s := snapshot(here)
		s.Restored, s.Keep = restored, keep
		p.startGeneration(s, evidence.Key{})
		set, _ := p.resourceSetFor(here, edge)
		return set
	}
	at := time.Now()
	first, second, current := setFor(at, gateway.KeepAll), setFor(at, gateway.KeepAll), setFor(at, gateway.KeepNothing)
	if !first.Restored().Equal(at) || second != first {
		t.Errorf("the set is restored at %v, want %v, and the same for an equal snapshot: %t", first.Restored(), at, second == first)
	}
	if !current.Restored().IsZero() || !equalSets(current, first) || current.Collection(xds.Listener) != first.Collection(xds.Listener) {
		t.Errorf("when the source answers the same, the set is restored at %v, or its resources are other ones", current.Restored())
	}
}
