package controlplane

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/xds"
)

// GatewayState is what a Plane had of a gateway after its last change. It is immutable.
type GatewayState struct {
	ID       gateway.ID
	Snapshot *gateway.Snapshot // with the settings of the config file and the load balancers; nil: the source has delivered none
	// Sets are what Envoys of the gateway got last, sorted by node, service ID and release, also of those that have
	// disconnected meanwhile.
	Sets []SetState
}

// SetState is what the Envoys of one instance and release got last.
type SetState struct {
	Node, ServiceID string
	Envoy           gateway.EnvoyVersion
	Set             *xds.Set
	Connected       []netip.Addr // the Envoys that have it now, one for each stream; not valid for a unix socket
}

// States returns the states of all gateways that the plane watches, sorted by their names.
func (p *Plane) States() []GatewayState {
	p.mu.Lock()
	workers := slices.Collect(maps.Values(p.workers))
	p.mu.Unlock()
	states := make([]GatewayState, 0, len(workers))
	for _, w := range workers {
		states = append(states, w.lastState())
	}
	slices.SortFunc(states, func(a, b GatewayState) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	return states
}

// State returns the state of a gateway. It reports false if the plane does not watch it.
func (p *Plane) State(id gateway.ID) (state GatewayState, watched bool) {
	p.mu.Lock()
	w := p.workers[id]
	p.mu.Unlock()
	if w == nil {
		return GatewayState{}, false
	}
	return w.lastState(), true
}

// sentTo is a stream with the set that it has.
type sentTo struct {
	set  *xds.Set
	peer netip.Addr
}

// currentSets returns the newest sets, without Connected, and the streams with the sets that they have.
func (w *gatewayWorker) currentSets() (sets []SetState, streams []sentTo) {
	sets = make([]SetState, 0, len(w.encoder.latest))
	for k, c := range w.encoder.latest {
		if c.set != nil {
			sets = append(sets, SetState{Node: k.node, ServiceID: k.serviceID, Envoy: k.envoy.EnvoyVersion, Set: c.set})
		}
	}
	streams = make([]sentTo, 0, len(w.streams))
	for _, s := range w.streams {
		streams = append(streams, sentTo{s.sent, s.node.Peer})
	}
	return sets, streams
}

// lastState returns what the loop has published last. Any goroutine may call it.
func (w *gatewayWorker) lastState() GatewayState {
	p := w.view.Load()
	if p == nil {
		return GatewayState{ID: w.id}
	}
	connected := map[*xds.Set][]netip.Addr{}
	for _, s := range p.streams {
		connected[s.set] = append(connected[s.set], s.peer)
	}
	sets := slices.Clone(p.sets)
	for i := range sets {
		sets[i].Connected = connected[sets[i].Set]
	}
	slices.SortFunc(sets, func(a, b SetState) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.ServiceID, b.ServiceID), compareReleases(a.Envoy, b.Envoy))
	})
	return GatewayState{ID: w.id, Snapshot: p.snapshot, Sets: sets}
}

func compareReleases(a, b gateway.EnvoyVersion) int {
	return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor), cmp.Compare(a.Patch, b.Patch))
}
