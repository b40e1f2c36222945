package controlplane

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/xds"
)

// fakeBalancers gives what the test puts, by the Service's name, and notes what
// is watched.
type fakeBalancers struct {
	mu      sync.Mutex
	watched map[string]func(*gateway.Balancer)
}

func (f *fakeBalancers) Watch(ctx context.Context, _ gateway.ID, service gateway.KubernetesService, put func(*gateway.Balancer)) {
	f.mu.Lock()
	f.watched[service.Name] = put
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.watched, service.Name)
}

func (f *fakeBalancers) put(service string, b *gateway.Balancer) {
	f.mu.Lock()
	put := f.watched[service]
	f.mu.Unlock()
	put(b)
	synctest.Wait()
}

func (f *fakeBalancers) wantWatched(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	var got []string
	for name := range f.watched {
		got = append(got, name)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("watched are %q, want %q", got, want)
	}
}

// inKubernetes is inBubble with balancers, and with gateways that are watched without an Envoy.
func inKubernetes(t *testing.T, f func(t *testing.T, r *testPlane, b *fakeBalancers), gateways ...gateway.ID) {
	b := &fakeBalancers{watched: map[string]func(*gateway.Balancer){}}
	inBubble(t, func(t *testing.T, r *testPlane) { f(t, r, b) }, func(o *Options) { o.Balancers, o.Gateways = b, gateways })
}

func behindService(name string) *gateway.Instance {
	return &gateway.Instance{Node: "a", ServiceID: "edge", Kubernetes: gateway.KubernetesService{Namespace: "consul", Name: name}}
}

func withMode(mode settings.Mode) *gateway.Balancer {
	return &gateway.Balancer{Ports: map[int]gateway.PortState{8080: {Mode: mode}}, OtherPorts: gateway.PortState{Mode: settings.Off}}
}

func TestAListenerFollowsItsBalancer(t *testing.T) {
	inKubernetes(t, func(t *testing.T, r *testPlane, b *fakeBalancers) {
		e := r.connect(edge)
		r.put(snapshot(behindService("edge")))
		b.wantWatched(t, "edge")
		c := e.sets[len(e.sets)-1].Collection(xds.Listener)
		if !slices.Equal(c.HeldBack(), []string{anyAddress}) {
			t.Errorf("held back %q before anything was known, want the listener", c.HeldBack())
		}
		b.put("edge", withMode(settings.Off))
		off := e.listener(t, anyAddress).Version()
		b.put("edge", withMode(settings.Strict))
		strict := e.listener(t, anyAddress).Version()
		if off == strict {
			t.Error("the listener did not change with its balancer")
		}
		b.put("edge", &gateway.Balancer{Problems: []problem.Problem{{Where: "there", What: "unknown"}}})
		if got := e.listener(t, anyAddress); got == nil || got.Version() != strict {
			t.Error("the listener did not stay while nothing was known")
		}
		r.wantLog(`msg=problem gateway=edge where=there what=unknown severity=degraded`)
		b.put("edge", withMode(settings.Strict))
		r.wantLog(`msg=problem gateway=edge where=there what=unknown severity=degraded`, `msg="problem over" gateway=edge where=there what=unknown`)
		e.leave()
	})
}

// Services that no listener follows are not watched.
func TestOnlyBalancersThatAreFollowedAreWatched(t *testing.T) {
	inKubernetes(t, func(t *testing.T, r *testPlane, b *fakeBalancers) {
		e := r.connect(edge)
		off := snapshot(behindService("edge"))
		off.ProxyDefaults = settings.Layer{Settings: settings.Settings{Listener: settings.Listener{ProxyProtocol: settings.ProxyProtocol{Mode: settings.Off}}}}
		r.put(off)
		b.wantWatched(t)
		other := behindService("other")
		other.ServiceID = "edge-2"
		r.put(snapshot(behindService("edge"), other, &gateway.Instance{Node: "b", ServiceID: "edge-3"}))
		b.wantWatched(t, "edge", "other")
		r.put(snapshot(other))
		b.wantWatched(t, "other")
		r.plane.SetConfigFile(settings.File{All: strictLayer})
		b.wantWatched(t)
		e.leave()
	})
}

func TestOutsideKubernetesAutoIsOff(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		r.put(snapshot(behindService("edge")))
		if e.listener(t, anyAddress) == nil {
			t.Error("there is no listener")
		}
		e.leave()
	})
}
