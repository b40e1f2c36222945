package controlplane

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/xds"
)

// TestStateIsWhatEnvoysHave follows one gateway from its first Envoy to after its last one.
func TestStateIsWhatEnvoysHave(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		id := gateway.ID{Name: "edge"}
		if _, watched := r.plane.State(id); watched || len(r.plane.States()) != 0 {
			t.Error("there is a state without an Envoy")
		}
		node := edge
		node.Peer, node.Major, node.Minor = netip.MustParseAddr("192.0.2.7"), 1, 36
		e := r.connect(node)
		if s, watched := r.plane.State(id); !watched || s.ID != id || s.Snapshot != nil || len(s.Sets) != 0 {
			t.Errorf("before the first snapshot: %v, %v", s, watched)
		}
		r.plane.SetConfigFile(settings.File{All: strictLayer})
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		s, _ := r.plane.State(id)
		if s.Snapshot == nil || s.Snapshot.FileAll.Settings.ProxyProtocol.Mode != settings.Strict {
			t.Errorf("the snapshot lacks what the config file says: %v", s.Snapshot)
		}
		want := SetState{Node: "a", ServiceID: "edge", Envoy: gateway.EnvoyVersion{Major: 1, Minor: 36}}
		if len(s.Sets) != 1 || s.Sets[0].Node != want.Node || s.Sets[0].ServiceID != want.ServiceID || s.Sets[0].Envoy != want.Envoy {
			t.Fatalf("%+v, want one like %+v", s.Sets, want)
		}
		if s.Sets[0].Set != e.sets[len(e.sets)-1] || !slices.Equal(s.Sets[0].Connected, []netip.Addr{node.Peer}) {
			t.Errorf("the set is not that of the Envoy, or %v is not connected", node.Peer)
		}
		e.leave()
		synctest.Wait()
		if s, _ := r.plane.State(id); len(s.Sets) != 1 || s.Sets[0].Set != e.sets[len(e.sets)-1] || len(s.Sets[0].Connected) != 0 {
			t.Errorf("after the Envoy has gone: %+v, want its set and no connection", s.Sets)
		}
	})
}

func TestStatesAreSorted(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		for _, name := range []string{"b", "c", "a"} {
			r.connect(xds.Node{ID: name, Cluster: name})
		}
		var names []string
		for _, s := range r.plane.States() {
			names = append(names, s.ID.String())
		}
		if !slices.Equal(names, []string{"a", "b", "c"}) {
			t.Errorf("%q", names)
		}
	})
}
