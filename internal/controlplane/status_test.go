package controlplane

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/status"
	"github.com/usherproxy/usher/xds"
)

// client returns a client that has accepted its listeners.
func client(id, node string) *xds.Client {
	c := &xds.Client{Node: xds.Node{ID: id, Cluster: "edge", Metadata: map[string]string{"node_name": node}}}
	c.Types[xds.Listener].Sync = xds.Synced
	return c
}

// wantGateways compares the gateways of the status, without what TestStatusHasSettingsAndServices compares.
func (r *testPlane) wantGateways(when string, clients []*xds.Client, want ...status.Gateway) {
	r.t.Helper()
	got, _ := r.plane.Status(clients)
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(status.Listener{}, "Settings", "Services")); diff != "" {
		r.t.Errorf("%s: want -, got +\n%s", when, diff)
	}
}

func edgeStatus(envoys, instances int, listeners ...status.Listener) status.Gateway {
	return status.Gateway{Name: "edge", Known: true, Entry: true, Instances: instances, Envoys: envoys, Listeners: listeners}
}

func onPort8080(place string, m status.Mode, of ...status.Instance) status.Listener {
	return status.Listener{Port: 8080, Protocol: "http", Mode: m, Place: place, Instances: of}
}

const defaultPlace = "the default"

func TestStatusOfAGateway(t *testing.T) {
	inBubble(t, func(_ *testing.T, r *testPlane) {
		r.wantGateways("before any Envoy", nil, []status.Gateway{}...)
		none := []*xds.Client{client("edge", "a")}
		r.connect(edge)
		r.wantGateways("without a snapshot", none, status.Gateway{Name: "edge", Envoys: 1, Listeners: []status.Listener{}})
		r.put(&gateway.Snapshot{ID: gateway.ID{Name: "edge"}, Plain: true})
		r.wantGateways("without an entry", none, status.Gateway{Name: "edge", Known: true, Envoys: 1, Listeners: []status.Listener{}})
		saved := time.Date(2026, 1, 31, 8, 30, 0, 0, time.UTC)
		r.put(&gateway.Snapshot{ID: gateway.ID{Name: "edge"}, Plain: true, Restored: saved})
		r.wantGateways("restored", none, status.Gateway{Name: "edge", Known: true, Envoys: 1, Restored: saved, Listeners: []status.Listener{}})

		a, b := &gateway.Instance{Node: "a", ServiceID: "edge"}, &gateway.Instance{Node: "b", ServiceID: "edge-2"}
		s := snapshot(a, b)
		s.ProxyDefaults = layerWith(settings.Strict)
		s.ProxyDefaults.Where = "proxy-defaults"
		r.put(s)
		strict := status.Mode{Asked: "strict", InForce: "strict", Built: status.Current}
		const place = "proxy-defaults: usher.proxy_protocol.mode"
		r.wantGateways("with one Envoy of two", none, edgeStatus(1, 2, onPort8080(place, strict)))
		unsent := strict
		unsent.InForce = ""
		both := []*xds.Client{client("edge", "a"), client("edge-2", "b")}
		r.wantGateways("before the second has its set", both, edgeStatus(2, 2,
			onPort8080(place, strict, status.Instance{Node: "a", ServiceID: "edge"}),
			onPort8080(place, unsent, status.Instance{Node: "b", ServiceID: "edge-2"})))
		r.connect(xds.Node{ID: "edge-2", Cluster: "edge"})
		r.wantGateways("with both", both, edgeStatus(2, 2, onPort8080(place, strict)))
	})
}

func TestStatusOfAListenerThatCannotBeBuilt(t *testing.T) {
	in := &gateway.Instance{Node: "a", ServiceID: "edge"}
	unknown := snapshot(in)
	unknown.ProxyDefaults = settings.Layer{NeverValid: true}
	clients := []*xds.Client{client("edge", "a")}
	inBubble(t, func(_ *testing.T, r *testPlane) {
		r.connect(edge)
		r.put(unknown)
		waits := client("edge", "a")
		waits.Types[xds.Listener].Sync = xds.Pending
		r.wantGateways("from the start", []*xds.Client{waits}, edgeStatus(1, 1, onPort8080("", status.Mode{
			Reason: "it cannot be built, and there is no valid version of it from before; the problems say why", Built: status.HeldBack,
		})))
		r.put(snapshot(in))
		r.wantGateways("corrected", clients, edgeStatus(1, 1, onPort8080(defaultPlace, status.Mode{
			Asked: "auto", InForce: "off", Reason: "its instance has no Kubernetes Service that Usher watches, so auto is off", Built: status.Current,
		})))
		r.put(unknown)
		r.wantGateways("later", clients, edgeStatus(1, 1, onPort8080("", status.Mode{
			InForce: "off", Reason: "it cannot be built, and its last valid version stays; the problems say why", Built: status.Kept,
		})))
	})
}

func TestStatusOfAListenerThatFollowsItsBalancer(t *testing.T) {
	inKubernetes(t, func(_ *testing.T, r *testPlane, b *fakeBalancers) {
		e := r.connect(edge)
		clients := []*xds.Client{client("edge", "a")}
		r.put(snapshot(behindService("edge")))
		end := time.Now().Add(time.Minute)
		heldBack := "it cannot be built, and there is no valid version of it from before; the problems say why"
		r.wantGateways("unread", clients, edgeStatus(1, 1, onPort8080(defaultPlace, status.Mode{Asked: "auto", Reason: heldBack, Built: status.HeldBack})))
		for _, c := range []struct {
			state  gateway.PortState
			reason string
		}{
			{gateway.PortState{Mode: settings.Off}, "Kubernetes Service consul/edge asks for no PROXY headers"},
			{gateway.PortState{Mode: settings.Permissive, ProxyVersion: settings.V2, GraceEnd: end}, "Kubernetes Service consul/edge is being switched"},
			{gateway.PortState{Mode: settings.Strict, ProxyVersion: settings.V2}, "Kubernetes Service consul/edge asks for PROXY v2"},
			{gateway.PortState{Mode: settings.Strict}, "Kubernetes Service consul/edge asks for PROXY headers"}, // of which version is not known
			{gateway.PortState{Mode: settings.Permissive, ProxyVersion: settings.V2, Reason: "connections come without one"}, "Kubernetes Service consul/edge: connections come without one"},
		} {
			b.put("edge", &gateway.Balancer{OtherPorts: c.state})
			synctest.Wait()
			r.wantGateways(c.reason, clients, edgeStatus(1, 1, onPort8080(defaultPlace, status.Mode{
				Asked: "auto", InForce: string(c.state.Mode), Reason: c.reason, GraceEnd: c.state.GraceEnd, Built: status.Current,
			})))
		}
		e.leave()
	})
}

func TestAListenerThatAnEnvoyHasNotAcceptedIsUnconfirmed(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		r.connect(edge)
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		const other = "db:0.0.0.0:80"
		current := listenerCollection(t, anyAddress, other)
		rejects := func(names ...string) xds.ClientType {
			return xds.ClientType{Sync: xds.Refused, Current: current, Rejection: &xds.Rejection{Resources: names}}
		}
		unsettled := func(sync xds.Sync, name string) xds.ClientType {
			return xds.ClientType{Sync: sync, Current: current, Unsettled: &map[string]xds.Sync{name: sync}}
		}
		waits := rejects(other)
		waits.Unsettled = &map[string]xds.Sync{anyAddress: xds.Pending}
		for _, c := range []struct {
			has  xds.ClientType
			want bool
		}{
			{xds.ClientType{}, true},
			{xds.ClientType{Sync: xds.Pending}, true},
			{xds.ClientType{Sync: xds.Stale}, true},
			{xds.ClientType{Sync: xds.Synced}, false},
			{rejects("db:0.0.0.0:9090", anyAddress), true},
			{rejects("db:0.0.0.0:9090", other), false},
			{waits, true},
			{unsettled(xds.Stale, anyAddress), true},
			{unsettled(xds.Pending, anyAddress), true},
			{unsettled(xds.Stale, other), false},
		} {
			envoy := client("edge", "a")
			envoy.Types[xds.Listener] = c.has
			gateways, _ := r.plane.Status([]*xds.Client{client("edge", "a"), envoy})
			if got := gateways[0].Listeners[0].Unconfirmed; got != c.want {
				t.Errorf("an Envoy with %+v: %v, want %v", c.has, got, c.want)
			}
		}
	})
}

// listenerCollection returns listeners with names.
func listenerCollection(t *testing.T, names ...string) *xds.Collection {
	t.Helper()
	all := map[string]*xds.Resource{}
	for _, name := range names {
		r, err := xds.NewResource(xds.Listener, name, &listenerv3.Listener{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		all[name] = r
	}
	return xds.NewCollection(all, nil)
}

func TestStatusOfAnEnvoy(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		r.connect(edge)
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		now := time.Now()
		accepted := xds.NewCollection(nil, nil)
		c := &xds.Client{
			Node:     xds.Node{ID: "edge", Cluster: "edge", Major: 1, Minor: 36, Patch: 2, Peer: netip.MustParseAddr("10.0.0.7"), Forwarded: true},
			Protocol: "delta", Connected: now,
		}
		c.Types[xds.Cluster] = xds.ClientType{Sync: xds.Synced, Since: now, Accepted: accepted}
		c.Types[xds.Endpoint] = xds.ClientType{Sync: xds.Stale, Since: now, Accepted: accepted}
		c.Types[xds.Route] = xds.ClientType{Sync: xds.Pending, Since: now}
		c.Types[xds.Listener] = xds.ClientType{Sync: xds.Refused, Since: now, Rejection: &xds.Rejection{
			Message: "address in use", Resources: []string{"http:0.0.0.0:8080"}, Missing: []string{"http:0.0.0.0:8080"},
		}}
		stranger := &xds.Client{Node: xds.Node{ID: "typo", Cluster: "edge"}, Protocol: "sotw", Connected: now}
		_, got := r.plane.Status([]*xds.Client{stranger, c})
		want := []status.Envoy{{
			Gateway: "edge", ServiceID: "edge", Node: "a", Address: "10.0.0.7", Release: "1.36.2", Protocol: "delta", Dataplane: true, Connected: now,
			Types: []status.Type{
				{Type: "cluster", Sync: status.Synced, Since: now, Version: accepted.Version()},
				{Type: "endpoint", Sync: status.Stale, Since: now, Version: accepted.Version()},
				{Type: "listener", Sync: status.Refused, Since: now, Error: "address in use", Refused: []string{"http:0.0.0.0:8080"}, Missing: []string{"http:0.0.0.0:8080"}},
				{Type: "route", Sync: status.Pending, Since: now},
			},
		}, {Gateway: "edge", ServiceID: "typo", Release: "unknown", Protocol: "sotw", Connected: now, Types: []status.Type{}}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("want -, got +\n%s", diff)
		}
	})
}

// BenchmarkStatus asks for the status of a gateway with 500 Envoys and ten listeners.
func BenchmarkStatus(b *testing.B) {
	const envoys = 500
	s := snapshot()
	for port := range 9 {
		s.Entry.Listeners = append(s.Entry.Listeners, gateway.Listener{Port: 9000 + port, Protocol: "tcp"})
	}
	v, clients := &view{snapshot: s, instances: instancesByID{}}, []*xds.Client{}
	for i := range envoys {
		in := &gateway.Instance{Node: "a", ServiceID: fmt.Sprintf("edge-%d", i), Registration: strictLayer}
		s.Instances = append(s.Instances, in)
		v.instances[in.ServiceID] = append(v.instances[in.ServiceID], in)
		clients = append(clients, client(in.ServiceID, "a"))
	}
	p := New(Options{})
	w := &gatewayWorker{}
	w.view.Store(v)
	p.workers[s.ID] = w
	b.ReportAllocs()
	for b.Loop() {
		p.Status(clients)
	}
}
