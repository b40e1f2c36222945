package controlplane

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/status"
	"github.com/usherproxy/usher/xds"
)

// nodeOf is the node of a stream of an instance.
func nodeOf(serviceID string, stream uint64) xds.Node {
	return xds.Node{ID: serviceID, Cluster: "edge", Stream: stream}
}

// has reports that an Envoy has a set, which counts from the first.
func (e *testEnvoy) has(r *testPlane, n xds.Node, set int) { r.plane.Delivered(&n, e.sets[set]) }

// at returns the snapshot with an instance of its service on a port.
func at(s *gateway.Snapshot, port int) *gateway.Snapshot {
	next := *s
	next.Endpoints = ordered.From(map[string]*gateway.Endpoints{"t": {Endpoints: []gateway.Endpoint{{NodeDatacenter: "dc1", Address: "127.0.0.1", Port: port}}}})
	return &next
}

func TestChangesHaveTheTimeUntilAllEnvoysHadThem(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		first, second, third := nodeOf("edge-1", 1), nodeOf("edge-2", 2), nodeOf("edge-2", 3)
		a, b, c := r.connect(first), r.connect(second), r.connect(third)
		s := snapshot(&gateway.Instance{ServiceID: "edge-1"}, &gateway.Instance{ServiceID: "edge-2"})
		want := func(what string, all ...status.Change) {
			t.Helper()
			got := r.plane.Changes(nil)
			if diff := cmp.Diff(all, got, cmpopts.IgnoreFields(status.Change{}, "Time", "Resources")); diff != "" {
				t.Errorf("%s: -want +got\n%s", what, diff)
			}
		}
		r.put(s)
		want("new Envoys", []status.Change{}...)
		r.put(at(s, 9091))
		endpoint := []status.Resource{{Type: "endpoint", Changed: 1, Names: []string{"web.default.dc1.internal.x"}}}
		if diff := cmp.Diff(endpoint, r.plane.Changes(nil)[0].Resources); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		one := status.Change{Number: 1, Gateway: "edge", Envoys: 3}
		want("sent", one)
		time.Sleep(20 * time.Millisecond) // of the bubble
		a.has(r, first, 1)
		a.has(r, first, 1) // of the same set: nothing new
		one.Acknowledged = 1
		want("one has it", one)

		r.put(at(s, 9092))
		two := status.Change{Number: 2, Gateway: "edge", Envoys: 3}
		want("the next one", two, one)
		time.Sleep(30 * time.Millisecond)
		b.has(r, second, 2) // and with it what was before
		one.Acknowledged, two.Acknowledged = 2, 1
		want("one has both", two, one)
		c.leave()
		synctest.Wait()
		one.Disconnected, two.Disconnected, one.Milliseconds = 1, 1, 50
		want("one is gone", two, one)
		a.has(r, first, 2)
		two.Acknowledged, two.Milliseconds = 2, 30
		want("all have it", two, one)

		r.put(at(s, 9092)) // not a change for Envoys
		want("the same again", two, one)
		if len(r.plane.changes.waiting) != 0 {
			t.Errorf("it keeps what is delivered: %v", r.plane.changes.waiting)
		}
	})
}

// An Envoy that refuses a change has it as soon as it has accepted all of a later set.
func TestChangesHaveTheEnvoysThatRefuseThem(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		n := nodeOf("edge-1", 7)
		e := r.connect(n)
		s := snapshot(&gateway.Instance{ServiceID: "edge-1"})
		r.put(s)
		r.put(at(s, 9091))
		client := &xds.Client{Node: n}
		client.Types[xds.Endpoint].Sync = xds.Refused
		if got := r.plane.Changes([]*xds.Client{client})[0]; got.Refused != 1 || got.Waiting() != 0 || got.Milliseconds != 0 {
			t.Errorf("refused: %+v", got)
		}
		r.put(at(s, 9092))
		e.has(r, n, 2)
		for _, c := range r.plane.Changes([]*xds.Client{{Node: n}}) {
			if c.Refused != 0 || c.Acknowledged != 1 {
				t.Errorf("accepted: %+v", c)
			}
		}
	})
}

// An Envoy disconnects while its worker has its next set, and has not taken the new list of streams yet.
func TestAChangeForAnEnvoyThatHasJustLeftDoesNotWait(t *testing.T) {
	p := New(Options{Logger: slog.New(slog.DiscardHandler)})
	w := newGatewayWorker(p, gateway.ID{Name: "edge"})
	endpoints := func(names ...string) *xds.Set {
		all := map[string]*xds.Resource{}
		for _, name := range names {
			r, err := xds.NewResource(xds.Endpoint, name, &endpointv3.ClusterLoadAssignment{ClusterName: name})
			if err != nil {
				t.Fatal(err)
			}
			all[name] = r
		}
		var collections [xds.NumTypes]*xds.Collection
		collections[xds.Endpoint] = xds.NewCollection(all, nil)
		return xds.NewSet(collections)
	}
	s := &stream{node: nodeOf("edge-1", 1), put: func(*xds.Set) {}, sent: endpoints("a")}
	w.setStreams([]*stream{s})
	p.unsubscribe(w, s)
	w.send([]update{{s, endpoints("a", "b")}})
	w.setStreams(<-w.newStreams.C())
	if got := p.Changes(nil)[0]; got.Disconnected != 1 || got.Waiting() != 0 || len(p.changes.waiting) != 0 {
		t.Errorf("%+v, with %d deliveries on the way; want that the Envoy counts as disconnected", got, len(p.changes.waiting))
	}
}

func TestTheLastChangesAreKept(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		r.connect(nodeOf("edge-1", 1))
		s := snapshot(&gateway.Instance{ServiceID: "edge-1"})
		r.put(s)
		for i := range 2*maxChanges + 3 {
			r.put(at(s, 10000+i))
		}
		last := r.plane.Changes(nil)
		if len(last) != maxChanges || last[0].Number != 2*maxChanges+3 || last[maxChanges-1].Number != maxChanges+4 || len(r.plane.changes.waiting[1]) != maxChanges {
			t.Errorf("%d changes, %d to %d; %d on the way; want the last %d", len(last), last[len(last)-1].Number, last[0].Number, len(r.plane.changes.waiting[1]), maxChanges)
		}
	})
}

func TestChangesNameTheFirstResources(t *testing.T) {
	resource := func(name string, weight uint32) *xds.Resource {
		r, err := xds.NewResource(xds.Endpoint, name, &endpointv3.ClusterLoadAssignment{ClusterName: name, Policy: &endpointv3.ClusterLoadAssignment_Policy{
			OverprovisioningFactor: wrapperspb.UInt32(weight),
		}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	set := func(all ...*xds.Resource) *xds.Set {
		byName := map[string]*xds.Resource{}
		for _, r := range all {
			byName[r.Name()] = r
		}
		var collections [xds.NumTypes]*xds.Collection
		collections[xds.Endpoint] = xds.NewCollection(byName, nil)
		return xds.NewSet(collections)
	}
	old := set(resource("a", 1), resource("b", 1), resource("c", 1))
	next := set(resource("b", 2), resource("c", 1), resource("d", 1), resource("e", 1))
	got := changedResources([]update{{&stream{sent: old}, next}, {&stream{sent: old}, next}})
	want := []status.Resource{{Type: "endpoint", Added: 2, Changed: 1, Removed: 1, Names: []string{"a", "b", "d"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// The state has for each listener where its settings come from, and its services.
func TestStatusHasSettingsAndServices(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		r.connect(edge)
		s := snapshot(&gateway.Instance{ServiceID: "edge"})
		s.Services[0].Hosts = []string{"web.example.com"}
		const secret = "abcd"
		layer, problems := settings.Layer{}.Update("usher.hcl:1", map[string]any{
			"proxy_protocol": map[string]any{"mode": "strict"},
			"access_log": map[string]any{
				"request_header": map[string]any{"name": "x-key", "value": secret}, "expression": "request.headers['x-key'] == '" + secret + "'",
			},
		})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		r.plane.SetConfigFile(settings.File{Gateways: map[string]settings.Layer{"edge": layer}})
		r.put(s)
		gateways, _ := r.plane.Status(nil)
		l := gateways[0].Listeners[0]
		want := []status.Setting{
			{Setting: "proxy_protocol.mode", Value: `"strict"`, Place: "usher.hcl:1: usher.proxy_protocol.mode"},
			{Setting: "access_log.request_header", Value: `"[redacted]"`, Place: "usher.hcl:1: usher.access_log.request_header"},
			{Setting: "access_log.expression", Value: `"[redacted]"`, Place: "usher.hcl:1: usher.access_log.expression"},
		}
		if diff := cmp.Diff(want, l.Settings); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		if diff := cmp.Diff([]status.Service{{Name: "web", Hosts: []string{"web.example.com"}}}, l.Services); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		r.plane.SetConfigFile(settings.File{})
		synctest.Wait()
		gateways, _ = r.plane.Status(nil)
		want = []status.Setting{{Setting: "proxy_protocol.mode", Value: `"auto"`, Place: "the default"}}
		if got := gateways[0].Listeners[0].Settings; !slices.Equal(got, want) {
			t.Errorf("without settings: %+v", got)
		}
	})
}
