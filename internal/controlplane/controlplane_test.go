package controlplane

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/latest"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/logbuffer"
	"github.com/usherproxy/usher/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeSource gives what the test puts, and notes what is watched.
type fakeSource struct {
	put  func(*gateway.Snapshot) // of the newest Watch
	name func([]string)          // of WatchNames
	fail chan error

	mu     sync.Mutex
	events []string
}

func (s *fakeSource) Watch(ctx context.Context, id gateway.ID, put func(*gateway.Snapshot)) error {
	s.note("watch " + id.String())
	s.put = put
	select {
	case <-ctx.Done():
		s.note("stop " + id.String())
		return nil
	case err := <-s.fail:
		return err
	}
}

func (s *fakeSource) WatchNames(ctx context.Context, put func([]string)) error {
	s.name = put
	<-ctx.Done()
	return nil
}

func (s *fakeSource) note(event string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, event)
}

// wantEvents compares all that has been watched, and that has ended.
func (s *fakeSource) wantEvents(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.events, want) {
		t.Errorf("got the events %q, want %q", s.events, want)
	}
}

// testPlane is a running plane in a synctest bubble.
type testPlane struct {
	t        *testing.T
	plane    *Plane
	source   *fakeSource
	problems *Problems
	metrics  *prometheus.Registry
	log      logbuffer.Buffer
}

// inBubble runs f with a plane, and demands that everything ends with it. change changes the plane's options.
func inBubble(t *testing.T, f func(t *testing.T, r *testPlane), change ...func(*Options)) {
	synctest.Test(t, func(t *testing.T) {
		r := &testPlane{t: t, source: &fakeSource{fail: make(chan error)}, metrics: prometheus.NewRegistry()}
		log := slog.New(slog.NewTextHandler(&r.log, nil))
		r.problems = NewProblems(log, r.metrics)
		o := Options{Source: r.source, Logger: log, Metrics: NewMetrics(r.metrics), Problems: r.problems}
		for _, f := range change {
			f(&o)
		}
		r.plane = New(o)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.plane.Run(ctx) }()
		synctest.Wait()
		f(t, r)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// testEnvoy is a stream of the plane.
type testEnvoy struct {
	sets  []*xds.Set // all that were put; read them after synctest.Wait
	ended chan error
	leave context.CancelFunc
}

func (r *testPlane) connect(n xds.Node) *testEnvoy {
	ctx, cancel := context.WithCancel(r.t.Context())
	e := &testEnvoy{ended: make(chan error, 1), leave: cancel}
	go func() {
		e.ended <- r.plane.Watch(ctx, n, func(s *xds.Set) { e.sets = append(e.sets, s) })
	}()
	synctest.Wait()
	return e
}

func (r *testPlane) put(s *gateway.Snapshot) {
	r.source.put(s)
	synctest.Wait()
}

// listener gives the newest bytes of the lab's listener on an address.
func (e *testEnvoy) listener(t *testing.T, name string) *xds.Resource {
	t.Helper()
	if len(e.sets) == 0 {
		t.Fatal("the Envoy got nothing")
	}
	return e.sets[len(e.sets)-1].Collection(xds.Listener).Get(name)
}

const anyAddress = "http:0.0.0.0:8080"

// edge is the node of an Envoy that says nothing but its names.
var edge = xds.Node{ID: "edge", Cluster: "edge"}

// snapshot is a gateway "edge" with one HTTP service in plain mode.
func snapshot(instances ...*gateway.Instance) *gateway.Snapshot {
	web := gateway.ServiceName{Name: "web"}
	return &gateway.Snapshot{
		ID:         gateway.ID{Name: "edge"},
		Datacenter: "dc1",
		Plain:      true,
		Entry: &gateway.Entry{Name: "edge", Listeners: []gateway.Listener{{
			Port: 8080, Protocol: "http", Services: []gateway.ListenerService{{Name: "web"}},
		}}},
		Services: []gateway.Service{{Service: web, Port: 8080, Protocol: "http"}},
		Chains: map[gateway.ServiceName]*gateway.Chain{web: {
			ServiceName: "web", Datacenter: "dc1", Protocol: "http", Default: true, StartNode: "r",
			Nodes:   map[string]*gateway.ChainNode{"r": {Type: gateway.NodeResolver, Name: "web", Resolver: &gateway.Resolver{Default: true, Target: "t"}}},
			Targets: map[string]*gateway.Target{"t": {ID: "t", Service: "web", Datacenter: "dc1", Name: "web.default.dc1.internal.x", SNI: "web.default.dc1.internal.x"}},
		}},
		Endpoints: ordered.From(map[string]*gateway.Endpoints{"t": {Endpoints: []gateway.Endpoint{{NodeDatacenter: "dc1", Address: "127.0.0.1", Port: 9090}}}}),
		Instances: instances,
	}
}

func TestUnregisteredEnvoyIsAProblem(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		r.connect(xds.Node{ID: "typo", Cluster: "edge"})
		r.connect(edge)
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		time.Sleep(missingAfter - time.Millisecond)
		synctest.Wait()
		if strings.Contains(r.log.String(), "typo") {
			t.Errorf("there was no time to register it:\n%s", &r.log)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		want := `level=ERROR msg=problem gateway=edge where="Envoy \"typo\" (release unknown, from a unix socket)" what="it gets no resources: gateway \"edge\" has no instance with the service ID \"typo\"`
		if !strings.Contains(r.log.String(), want) {
			t.Errorf("the log does not have %s:\n%s", want, &r.log)
		}
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}, &gateway.Instance{Node: "a", ServiceID: "typo"}))
		if !strings.Contains(r.log.String(), `msg="problem over"`) {
			t.Errorf("it was registered, and stays a problem:\n%s", &r.log)
		}
	})
}

// strictLayer sets strict PROXY protocol.
var strictLayer = layerWith(settings.Strict)

func TestEnvoyGetsItsGatewayAndThenOnlyChanges(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		if len(e.sets) != 0 {
			t.Fatal("something was put before there was a snapshot")
		}
		r.put(snapshot())
		if len(e.sets) != 0 {
			t.Fatal("an Envoy whose instance is not registered got something")
		}
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		if e.listener(t, anyAddress) == nil {
			t.Fatalf("no listener %s", anyAddress)
		}
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		if len(e.sets) != 1 {
			t.Errorf("an equal snapshot was put as a new set: %d sets", len(e.sets))
		}
		changed := snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"})
		changed.Endpoints = changed.Endpoints.With("t", &gateway.Endpoints{})
		r.put(changed)
		if len(e.sets) != 2 {
			t.Fatalf("%d sets after a change, want 2", len(e.sets))
		}
		if e.sets[0].Collection(xds.Listener).Get(anyAddress) != e.listener(t, anyAddress) {
			t.Error("an unchanged listener did not stay the same value")
		}
		e.leave()
		if err := <-e.ended; err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
}

func TestInstancesShareAllButTheirListeners(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		a, b := r.connect(xds.Node{ID: "edge", Cluster: "edge", Metadata: map[string]string{"node_name": "a"}}),
			r.connect(xds.Node{ID: "edge", Cluster: "edge", Peer: netip.MustParseAddr("192.0.2.2")})
		r.put(snapshot(
			&gateway.Instance{Node: "a", NodeAddress: "192.0.2.1", ServiceID: "edge", Registration: strictLayer},
			&gateway.Instance{Node: "b", NodeAddress: "192.0.2.2", ServiceID: "edge", Address: "192.0.2.2"},
		))
		strict, off := a.listener(t, anyAddress), b.listener(t, "http:192.0.2.2:8080")
		if strict == nil || off == nil {
			t.Fatal("an instance did not get the listener of its own address")
		}
		for _, typ := range []xds.Type{xds.Cluster, xds.Endpoint, xds.Route} {
			for name, res := range a.sets[0].Collection(typ).All() {
				if b.sets[0].Collection(typ).Get(name) != res {
					t.Errorf("%s %s is not shared", typ, name)
				}
			}
		}
	})
}

func TestAmbiguousInstanceIsRefusedUnlessItDoesNotMatter(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}, &gateway.Instance{Node: "b", ServiceID: "edge"}))
		if e.listener(t, anyAddress) == nil {
			t.Fatal("two equal instances: no listener")
		}
		differ := snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}, &gateway.Instance{Node: "b", ServiceID: "edge", Registration: strictLayer})
		r.put(differ)
		if len(e.sets) != 1 {
			t.Errorf("an ambiguous Envoy got another set")
		}
		for peer, want := range map[netip.Addr]string{
			{}:                               `Envoy "edge" (release unknown, from a unix socket) can be an instance`,
			netip.MustParseAddr("192.0.2.9"): `Envoy "edge" (release unknown, from 192.0.2.9) can be an instance`,
		} {
			late := r.connect(xds.Node{ID: edge.ID, Cluster: edge.Cluster, Peer: peer})
			err := <-late.ended
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--node-name") {
				t.Errorf("got %v, want FailedPrecondition that says %q and what to do", err, want)
			}
		}
	})
}

func TestAListenerThatCannotBeBuiltKeepsItsLastValid(t *testing.T) {
	in := &gateway.Instance{Node: "a", ServiceID: "edge"}
	unknown := snapshot(in)
	unknown.ProxyDefaults = settings.Layer{NeverValid: true}
	t.Run("cold start", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *testPlane) {
			e := r.connect(edge)
			r.put(unknown)
			c := e.sets[0].Collection(xds.Listener)
			if heldBack := c.HeldBack(); c.Len() != 0 || !slices.Equal(heldBack, []string{anyAddress}) {
				t.Errorf("%d listeners, held back %v; want none and %s", c.Len(), heldBack, anyAddress)
			}
		})
	})
	t.Run("after a good one", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *testPlane) {
			e := r.connect(edge)
			strict := snapshot(in)
			strict.ProxyDefaults = strictLayer
			r.put(strict)
			good := e.listener(t, anyAddress)
			r.put(unknown)
			if got := e.listener(t, anyAddress); got != good {
				t.Errorf("the listener became %v, want the last valid one", got)
			}
		})
	})
}

// Instances of a service that were never read are neither sent nor removed. Instances
// that were read stay.
func TestUnknownEndpointsAreHeldBack(t *testing.T) {
	const cluster = "web.default.dc1.internal.x"
	in := &gateway.Instance{Node: "a", ServiceID: "edge"}
	unread := snapshot(in)
	unread.Endpoints = unread.Endpoints.Without("t")
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		r.put(unread)
		c := e.sets[0].Collection(xds.Endpoint)
		if c.Len() != 0 || !slices.Equal(c.HeldBack(), []string{cluster}) || e.listener(t, anyAddress) == nil {
			t.Errorf("%d load assignments, held back %v, listener %v; want the listener, and the assignment held back", c.Len(), c.HeldBack(), e.listener(t, anyAddress))
		}
		r.put(snapshot(in))
		read := e.sets[len(e.sets)-1].Collection(xds.Endpoint).Get(cluster)
		r.put(unread)
		if c := e.sets[len(e.sets)-1].Collection(xds.Endpoint); read == nil || c.Get(cluster) != read || len(c.HeldBack()) > 0 {
			t.Errorf("the load assignment became %v, want the last valid one, %v", c.Get(cluster), read)
		}
		gone := snapshot(in)
		gone.Services, gone.Entry.Listeners = nil, nil
		r.put(gone)
		if c := e.sets[len(e.sets)-1].Collection(xds.Endpoint); c.Len()+len(c.HeldBack()) > 0 {
			t.Errorf("a gateway without listeners has load assignments: %v", c)
		}
	})
}

// If a service cannot be read, its port is held back after a cold start, and stays
// unchanged after a good snapshot. Other ports go on.
func TestPortWithAnUnreadServiceIsHeldBack(t *testing.T) {
	const other = "http:0.0.0.0:9090"
	in := &gateway.Instance{Node: "a", ServiceID: "edge"}
	api := gateway.ServiceName{Name: "api"}
	unread := snapshot(in)
	unread.Entry.Listeners[0].Services = append(unread.Entry.Listeners[0].Services, gateway.ListenerService{Name: "api"})
	unread.Entry.Listeners = append(unread.Entry.Listeners, gateway.Listener{Port: 9090, Protocol: "http", Services: []gateway.ListenerService{{Name: "web"}}})
	unread.Services = []gateway.Service{
		{Service: api, Port: 8080, Protocol: "http"}, unread.Services[0], {Service: unread.Services[0].Service, Port: 9090, Protocol: "http"},
	}
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		r.put(unread)
		c := e.sets[0].Collection(xds.Listener)
		if c.Get(other) == nil || !slices.Equal(c.HeldBack(), []string{anyAddress}) {
			t.Errorf("listeners %v, held back %v; want %s, and %s held back", c, c.HeldBack(), other, anyAddress)
		}
		r.put(snapshot(in))
		good, routes := e.listener(t, anyAddress), e.sets[len(e.sets)-1].Collection(xds.Route).Get("8080")
		r.put(unread)
		last := e.sets[len(e.sets)-1]
		if good == nil || routes == nil || e.listener(t, anyAddress) != good || last.Collection(xds.Route).Get("8080") != routes || e.listener(t, other) == nil {
			t.Errorf("listener %v with routes %v; want the last valid ones, and %s", e.listener(t, anyAddress), last.Collection(xds.Route).Get("8080"), other)
		}
	})
}

func TestResourcesOfAKeptListenerStay(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		in := &gateway.Instance{Node: "a", ServiceID: "edge"}
		r.put(snapshot(in))
		broken := snapshot(in)
		for name := range broken.Chains {
			broken.Chains[name] = &gateway.Chain{ServiceName: "web", Protocol: "http", StartNode: "none"}
		}
		r.put(broken)
		for typ := range xds.Type(xds.NumTypes) {
			for name, before := range e.sets[0].Collection(typ).All() {
				if e.sets[len(e.sets)-1].Collection(typ).Get(name) != before {
					t.Errorf("%s %s went away or changed", typ, name)
				}
			}
		}
		r.put(snapshot(in))
		gone := snapshot(in)
		gone.Services, gone.Entry.Listeners = nil, nil
		r.put(gone)
		if n := e.sets[len(e.sets)-1].Collection(xds.Cluster).Len(); n != 0 {
			t.Errorf("%d clusters after the listener was removed, want none", n)
		}
	})
}

func TestConfigFileReachesConnectedEnvoys(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		off := e.listener(t, anyAddress)
		r.plane.SetConfigFile(settings.File{Gateways: map[string]settings.Layer{"edge": strictLayer}})
		synctest.Wait()
		strict := e.listener(t, anyAddress).Version()
		if strict == off.Version() {
			t.Error("the listener did not change")
		}
		r.plane.SetConfigFile(settings.File{All: strictLayer})
		synctest.Wait()
		if e.listener(t, anyAddress).Version() != strict {
			t.Error("the settings for every gateway have no effect")
		}
		r.plane.SetConfigFile(settings.File{})
		synctest.Wait()
		if e.listener(t, anyAddress).Version() != off.Version() {
			t.Error("the listener did not change back")
		}
	})
}

func TestConfigFileCountsFromTheFirstSet(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		// The order in which a worker receives what is there is random.
		for range 50 {
			var sets []*xds.Set
			w := newGatewayWorker(r.plane, gateway.ID{Name: "edge"})
			w.newInputs.Put(inputs{layers: fileLayers{gateway: strictLayer}})
			w.newStreams.Put([]*stream{{node: edge, put: func(s *xds.Set) { sets = append(sets, s) }}})
			news := latest.New[snapshotUpdate]()
			news.Put(snapshotUpdate{snapshot: snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"})})
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				w.loop(ctx, news)
			}()
			synctest.Wait()
			cancel()
			<-ended
			if len(sets) != 1 {
				t.Fatalf("%d sets were put, want one: the listener went out without the settings of the config file first", len(sets))
			}
		}
	})
}

func TestAGatewayIsWatchedForALittleAfterItsLastEnvoy(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		e.leave()
		time.Sleep(20 * time.Second)
		e = r.connect(edge)
		time.Sleep(time.Hour)
		e.leave()
		time.Sleep(31 * time.Second)
		r.connect(edge)
		r.source.wantEvents(t, "watch edge", "stop edge", "watch edge")
	})
}

// problemCount is the metric of a gateway's problems, or of the files' for "".
func (r *testPlane) problemCount(gateway string) (sum float64) {
	for _, s := range problem.Severities {
		sum += testutil.ToFloat64(r.problems.count.WithLabelValues(gateway, s.String()))
	}
	return sum
}

// wantLog wants each line once in the log, and no other about problems.
func (r *testPlane) wantLog(lines ...string) {
	r.t.Helper()
	text := r.log.String()
	for _, line := range lines {
		if n := strings.Count(text, line+"\n"); n != 1 {
			r.t.Errorf("%d times %q in the log, want once:\n%s", n, line, text)
		}
	}
	if n := strings.Count(text, `msg=problem`) + strings.Count(text, `msg="problem over"`); n != len(lines) {
		r.t.Errorf("%d lines about problems in the log, want %d:\n%s", n, len(lines), text)
	}
}

func TestProblemAndItsEndAreLoggedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		r.connect(edge)
		bad := snapshot()
		bad.Problems = []problem.Problem{{Where: "here", What: "wrong"}}
		r.put(bad)
		again := *bad
		r.put(&again)
		if n := r.problemCount("edge"); n != 1 {
			t.Errorf("usher_config_problems is %v, want 1", n)
		}
		r.put(snapshot())
		if n := r.problemCount("edge"); n != 0 {
			t.Errorf("usher_config_problems is %v, want 0", n)
		}
		r.wantLog(`level=WARN msg=problem gateway=edge where=here what=wrong severity=degraded`, `msg="problem over" gateway=edge where=here what=wrong`)
	})
}

func TestProblemOfTwoGatewaysAndAFileIsLoggedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		wrong := []problem.Problem{{Where: "here", What: "wrong"}}
		bad := snapshot()
		bad.Problems = wrong
		r.connect(edge)
		r.put(bad)
		edgePut := r.source.put
		r.connect(xds.Node{ID: "other", Cluster: "other"})
		r.put(bad)
		r.problems.Report("a file", wrong)
		for g, want := range map[string]float64{"edge": 0, "other": 0, "": 1} {
			if n := r.problemCount(g); float64(n) != want {
				t.Errorf("usher_config_problems of %q is %v, want %v", g, n, want)
			}
		}
		r.put(snapshot())
		r.problems.Report("a file", nil)
		r.wantLog(`level=WARN msg=problem gateway=edge where=here what=wrong severity=degraded`)
		edgePut(snapshot())
		synctest.Wait()
		r.wantLog(`level=WARN msg=problem gateway=edge where=here what=wrong severity=degraded`, `msg="problem over" gateway=edge where=here what=wrong`)
	})
}

func TestProblemsOfTheConfigFileAreLoggedWithoutAnEnvoy(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		r.plane.SetConfigFile(settings.File{Problems: []problem.Problem{{Where: "usher.hcl:1", What: "wrong"}}})
		if n := r.problemCount(""); n != 1 {
			t.Errorf("usher_config_problems is %v, want 1", n)
		}
		r.wantLog(`level=WARN msg=problem where=usher.hcl:1 what=wrong severity=degraded`)
	})
}

func TestProblemIsNotOverWhenTheLastEnvoyDisconnects(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		broken := snapshot(&gateway.Instance{Node: "a", ServiceID: "edge", Address: "a name"})
		r.put(broken)
		if n := r.problemCount("edge"); n != 1 {
			t.Errorf("usher_config_problems is %v, want 1", n)
		}
		e.leave()
		synctest.Wait()
		r.connect(edge)
		if n := strings.Count(r.log.String(), "msg=problem"); n != 1 || strings.Contains(r.log.String(), "problem over") {
			t.Errorf("%d lines about problems in the log, want 1:\n%s", n, r.log.String())
		}
	})
}

func TestNodeWithoutNamesIsRefused(t *testing.T) {
	for _, n := range []xds.Node{{ID: "edge"}, {Cluster: "edge"}} {
		if _, err := GatewayOf(n); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%+v: %v, want InvalidArgument", n, err)
		}
	}
	id, err := GatewayOf(xds.Node{ID: "a", Cluster: "edge", Metadata: map[string]string{"namespace": "default", "partition": "east"}})
	if want := (gateway.ID{Name: "edge", Partition: "east"}); err != nil || id != want {
		t.Errorf("got %+v, %v; want %+v", id, err, want)
	}
}

func TestPlaneHasASetUntilItsGatewayIsRemoved(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		want := func(has bool, when string) {
			t.Helper()
			synctest.Wait()
			if got := r.plane.HasSet(); got != has {
				t.Errorf("%s: %v, want %v", when, got, has)
			}
		}
		want(false, "without an Envoy")
		e := r.connect(edge)
		want(false, "before the first snapshot")
		r.put(snapshot())
		want(false, "before the Envoy is registered")
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		want(true, "with a set")
		e.leave()
		want(true, "when the last Envoy has gone")
		time.Sleep(time.Minute)
		want(false, "when the gateway is forgotten")
	})
}

// An Envoy may come from another Usher, with a key that is new here.
func TestASetKnowsTheEarlierClustersOfItsGateway(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		a := r.connect(xds.Node{ID: "a", Cluster: "edge"})
		instances := []*gateway.Instance{{Node: "a", ServiceID: "a"}, {Node: "b", ServiceID: "b"}}
		r.put(snapshot(instances...))
		moved := snapshot(instances...)
		moved.Chains[gateway.ServiceName{Name: "web"}].Targets["t"].Name = "web.default.dc2.internal.x"
		moved.Chains[gateway.ServiceName{Name: "web"}].Targets["t"].SNI = "web.default.dc2.internal.x"
		r.put(moved)
		b := r.connect(xds.Node{ID: "b", Cluster: "edge"})
		old, now := a.sets[0].Collection(xds.Cluster), a.sets[len(a.sets)-1].Collection(xds.Cluster)
		if old.Version() == now.Version() {
			t.Fatal("the clusters are still the same")
		}
		for name, e := range map[string]*testEnvoy{"an Envoy from before": a, "a new Envoy": b} {
			if got := e.sets[len(e.sets)-1].Earlier().Get(old.Version()); got != old {
				t.Errorf("the set of %s knows %v, want the clusters before", name, got)
			}
		}
	})
}
