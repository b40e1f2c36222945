package controlplane

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/retry"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/status"
	"github.com/usherproxy/usher/listeners"
	"github.com/usherproxy/usher/xds"
)

// panickingSource is a source that puts the snapshots of the test, and panics when the test
// wants it.
type panickingSource struct {
	mu      sync.Mutex
	puts    map[string]func(*gateway.Snapshot)
	panics  map[string]chan struct{}
	watches map[string]int
}

func (f *panickingSource) WatchNames(ctx context.Context, _ func([]string)) error {
	<-ctx.Done()
	return nil
}

func (f *panickingSource) Watch(ctx context.Context, id gateway.ID, put func(*gateway.Snapshot)) error {
	f.mu.Lock()
	f.puts[id.Name] = put
	f.watches[id.Name]++
	crash := make(chan struct{})
	f.panics[id.Name] = crash
	f.mu.Unlock()
	select {
	case <-ctx.Done():
		return nil
	case <-crash:
		panic("a bug in the source")
	}
}

func (f *panickingSource) give(name string, s *gateway.Snapshot) {
	f.mu.Lock()
	put := f.puts[name]
	f.mu.Unlock()
	put(s)
	synctest.Wait()
}

func (f *panickingSource) crash(name string) {
	f.mu.Lock()
	crash := f.panics[name]
	f.mu.Unlock()
	close(crash)
	synctest.Wait()
}

// withPanickingSource is inBubble with two gateways, edge and other, whose Envoys have
// their listeners.
func withPanickingSource(t *testing.T, f func(t *testing.T, r *testPlane, s *panickingSource, e, other *testEnvoy)) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		s := &panickingSource{puts: map[string]func(*gateway.Snapshot){}, panics: map[string]chan struct{}{}, watches: map[string]int{}}
		r.plane.options.Source = s
		e, other := r.connect(edge), r.connect(xds.Node{ID: "other", Cluster: "other"})
		s.give("edge", snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		s.give("other", snapshot(&gateway.Instance{Node: "a", ServiceID: "other"}))
		f(t, r, s, e, other)
		e.leave()
		other.leave()
		for _, ended := range []*testEnvoy{e, other} {
			if err := <-ended.ended; err != nil {
				t.Errorf("a stream ended: %v", err)
			}
		}
	})
}

// snapshotWithPort returns a snapshot of a gateway with another instance of its service.
func snapshotWithPort(name string, port int) *gateway.Snapshot {
	s := snapshot(&gateway.Instance{Node: "a", ServiceID: name})
	s.ID.Name = name
	s.Endpoints = s.Endpoints.With("t", &gateway.Endpoints{Endpoints: []gateway.Endpoint{{NodeDatacenter: "dc1", Address: "127.0.0.1", Port: port}}})
	return s
}

// counting returns a function that returns how many panics of a part were counted
// since then.
func counting(part string) func() float64 {
	before := testutil.ToFloat64(guard.Panics.WithLabelValues(part))
	return func() float64 { return testutil.ToFloat64(guard.Panics.WithLabelValues(part)) - before }
}

// wantPanicked checks that a panic of edge is in its problems and in the metric. It also
// checks that edge's Envoy keeps its sets, and that the other gateway has no problem.
func (r *testPlane) wantPanicked(part string, panics float64, e *testEnvoy, sets int) {
	r.t.Helper()
	if panics != 1 {
		r.t.Errorf("usher_panics_total of %s grew by %v, want 1", part, panics)
	}
	if edge, other := r.problemCount("edge"), r.problemCount("other"); edge != 1 || other != 0 {
		r.t.Errorf("usher_config_problems is %v, and %v of the other gateway, want 1 and 0", edge, other)
	}
	if !strings.Contains(r.log.String(), `gateway=edge where="gateway \"edge\"" what="bug in Usher: panic in `+part+" at ") {
		r.t.Errorf("the log does not have the problem:\n%s", &r.log)
	}
	if len(e.sets) != sets || e.listener(r.t, anyAddress) == nil {
		r.t.Errorf("the Envoy got %d sets, want the %d from before", len(e.sets), sets)
	}
}

func TestASourceThatPanicsIsWatchedAgain(t *testing.T) {
	withPanickingSource(t, func(t *testing.T, r *testPlane, s *panickingSource, e, other *testEnvoy) {
		panics := counting("watch")
		s.crash("edge")
		r.wantPanicked("watch", panics(), e, 1)
		s.give("other", snapshotWithPort("other", 9091))
		if len(other.sets) != 2 {
			t.Error("the other gateway did not go on")
		}
		time.Sleep(retry.LongestPause)
		synctest.Wait()
		if s.watches["edge"] != 2 || s.watches["other"] != 1 {
			t.Fatalf("watched %v times after the pause, want edge twice", s.watches)
		}
		s.give("edge", snapshotWithPort("edge", 9091))
		if len(e.sets) != 2 || r.problemCount("edge") != 0 {
			t.Errorf("%d sets and %v problems after it is over, want 2 and none", len(e.sets), r.problemCount("edge"))
		}
	})
}

func TestASourceThatPanicsAtOnceIsAProblem(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		s := &panickingSource{puts: map[string]func(*gateway.Snapshot){}, panics: map[string]chan struct{}{}, watches: map[string]int{}}
		r.plane.options.Source = s
		e := r.connect(edge)
		s.crash("edge")
		if r.problemCount("edge") != 1 || len(e.sets) != 0 {
			t.Errorf("%v problems and %d sets, want 1 and none", r.problemCount("edge"), len(e.sets))
		}
		e.leave()
		synctest.Wait()
	})
}

// panickingCompiler panics when the test wants it.
type panickingCompiler struct {
	listeners.Compiler
	panics *atomic.Bool
}

func (c *panickingCompiler) Compile(s *gateway.Snapshot, in *gateway.Instance, e gateway.Envoy) *listeners.Resources {
	res := c.Compiler.Compile(s, in, e)
	if c.panics.Load() && s.ID.Name == "edge" && e.Minor == 0 {
		panic("a bug in the compiler")
	}
	return res
}

func TestACompileThatPanicsLeavesEnvoysWhatTheyHave(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		var broken atomic.Bool
		r.plane.newCompiler = func(evidence.Key) compiler { return &panickingCompiler{panics: &broken} }
		e := r.connect(edge)
		newer := r.connect(xds.Node{ID: "edge", Cluster: "edge", Major: 1, Minor: 40})
		r.put(snapshotWithPort("edge", 9090))
		panics := counting("compile")
		broken.Store(true)
		r.put(snapshotWithPort("edge", 9091))
		late := r.connect(edge) // another Envoy of the same kind causes no second panic
		r.wantPanicked("compile", panics(), e, 1)
		if len(newer.sets) != 2 {
			t.Errorf("an Envoy of another release got %d sets, want 2", len(newer.sets))
		}
		if len(late.sets) != 1 || late.sets[0] != e.sets[0] {
			t.Errorf("an Envoy that connects meanwhile got %d sets, want the last valid one", len(late.sets))
		}
		broken.Store(false)
		r.put(snapshotWithPort("edge", 9092))
		if len(e.sets) != 2 || r.problemCount("edge") != 0 {
			t.Errorf("%d sets and %v problems after it is over, want 2 and none", len(e.sets), r.problemCount("edge"))
		}
		for _, end := range []*testEnvoy{e, newer, late} {
			end.leave()
		}
		synctest.Wait()
	})
}

// faultyCompiler panics, or compiles listeners that Envoy would reject, when the test wants it.
type faultyCompiler struct {
	listeners.Compiler
	panics, invalid *atomic.Bool
}

func (c *faultyCompiler) Compile(s *gateway.Snapshot, in *gateway.Instance, e gateway.Envoy) *listeners.Resources {
	if c.panics.Load() {
		panic("a bug in the compiler")
	}
	res := c.Compiler.Compile(s, in, e)
	if c.invalid.Load() {
		for name := range res.Listeners.All() {
			res.Listeners = res.Listeners.With(name, &listenerv3.Listener{Name: name, ListenerFilters: []*listenerv3.ListenerFilter{{}}})
		}
	}
	return res
}

func TestAListenerThatAFaultyCompilerKeepsIsNotInForce(t *testing.T) {
	for _, fault := range []string{"panics", "invalid"} {
		inBubble(t, func(t *testing.T, r *testPlane) {
			var panics, invalid atomic.Bool
			r.plane.newCompiler = func(evidence.Key) compiler { return &faultyCompiler{panics: &panics, invalid: &invalid} }
			set := map[string]*atomic.Bool{"panics": &panics, "invalid": &invalid}[fault].Store
			mode := func() status.Mode {
				gateways, _ := r.plane.Status([]*xds.Client{client("edge", "a")})
				m := gateways[0].Listeners[0].Mode
				m.Reason = ""
				return m
			}
			strict := snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"})
			strict.ProxyDefaults = layerWith(settings.Strict)
			e := r.connect(edge)
			set(true)
			r.put(strict)
			if got, want := mode(), (status.Mode{Asked: "strict", Built: status.HeldBack}); got != want {
				t.Errorf("%s from the start: %+v, want %+v", fault, got, want)
			}
			set(false)
			r.put(snapshot(strict.Instances...))
			set(true)
			r.put(strict)
			if got, want := mode(), (status.Mode{Asked: "strict", InForce: "off", Built: status.Kept}); got != want {
				t.Errorf("%s later: %+v, want %+v", fault, got, want)
			}
			if strings.Contains(r.log.String(), "proxy_protocol.mode of a listener changed") {
				t.Errorf("%s: the log says that the mode has changed", fault)
			}
			set(false)
			r.put(at(strict, 9091))
			if got, want := mode(), (status.Mode{Asked: "strict", InForce: "strict", Built: status.Current}); got != want {
				t.Errorf("%s, and corrected: %+v, want %+v", fault, got, want)
			}
			e.leave()
			synctest.Wait()
		})
	}
}

func TestWorkThatPanicsLeavesEnvoysWhatTheyHave(t *testing.T) {
	withPanickingSource(t, func(t *testing.T, r *testPlane, s *panickingSource, e, other *testEnvoy) {
		panics := counting("worker")
		s.give("edge", snapshot(nil)) // no source sends this
		r.wantPanicked("worker", panics(), e, 1)
		s.give("other", snapshotWithPort("other", 9091))
		if len(other.sets) != 2 {
			t.Error("the other gateway did not go on")
		}
		s.give("edge", snapshotWithPort("edge", 9091))
		if len(e.sets) != 2 || r.problemCount("edge") != 0 {
			t.Errorf("%d sets and %v problems after it is over, want 2 and none", len(e.sets), r.problemCount("edge"))
		}
	})
}

func TestABalancerThatPanicsStaysWhatItIs(t *testing.T) {
	panics := counting("balancer")
	wantBalancerWatchedAgain(t, func() { panic("a bug in the watch of a Service") }, "bug in Usher: panic in balancer at ")
	if n := panics(); n != 1 {
		t.Errorf("usher_panics_total grew by %v, want 1", n)
	}
}
