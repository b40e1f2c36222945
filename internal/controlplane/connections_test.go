package controlplane

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// fakeConnections has what the test says of port 8080.
type fakeConnections struct {
	mu     sync.Mutex
	byMode map[settings.Mode]evidence.Summary
}

func (f *fakeConnections) set(m settings.Mode, s evidence.Summary) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.byMode[m] = s
}

func (f *fakeConnections) Gateway(gateway.ID) evidence.PortModes {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := evidence.PortModes{}
	for m, s := range f.byMode {
		all[evidence.PortMode{Port: 8080, Mode: m}] = s
	}
	return all
}

// withConnections gives a plane connections that a test can set.
func (r *testPlane) withConnections() *fakeConnections {
	f := &fakeConnections{byMode: map[settings.Mode]evidence.Summary{}}
	r.plane.options.Connections = f
	return f
}

// instancesWith returns the snapshot of a gateway with an instance for each mode.
func instancesWith(modes ...settings.Mode) *gateway.Snapshot {
	s := snapshotWithPort("edge", 8080)
	s.Instances = nil
	for i, mode := range modes {
		id := "edge"
		if i > 0 {
			id += strconv.Itoa(i)
		}
		s.Instances = append(s.Instances, &gateway.Instance{Node: "a", ServiceID: id, Registration: layerWith(mode)})
	}
	return s
}

func layerWith(m settings.Mode) settings.Layer {
	return settings.Layer{Settings: settings.Settings{Listener: settings.Listener{ProxyProtocol: settings.ProxyProtocol{Mode: m}}}}
}

// TestConnectionsAgainstTheModeAreAProblem gives a gateway connections that do not
// agree with the mode of its listener, and then such that do.
func TestConnectionsAgainstTheModeAreAProblem(t *testing.T) {
	for name, c := range map[string]struct {
		mode         settings.Mode
		wrong, right evidence.Summary
		problem      string
	}{
		"headers for a listener that is off": {
			mode:    settings.Off,
			wrong:   evidence.Summary{Malformed: seen(5), WithoutHeader: seen(4)},
			right:   evidence.Summary{Malformed: seen(5), WithoutHeader: seen(6)},
			problem: "most connections begin with what looks like a PROXY header, from 10.0.3.7",
		},
		"a port scan": {
			mode:  settings.Off,
			wrong: evidence.Summary{Malformed: seen(2)},
		},
		"no header for a strict listener": {
			mode:    settings.Strict,
			wrong:   evidence.Summary{Refused: seen(3)},
			right:   evidence.Summary{Refused: seen(3), WithHeader: seen(1)},
			problem: "it has closed each connection, because none begins with a PROXY header, from 10.0.3.7",
		},
		"two connections that a strict listener refuses": {
			mode:  settings.Strict,
			wrong: evidence.Summary{Refused: seen(2)},
		},
		"headers from outside trusted_cidrs for a strict listener": {
			mode:    settings.Strict,
			wrong:   evidence.Summary{UntrustedHeaders: seen(11)},
			right:   evidence.Summary{UntrustedHeaders: seen(11), WithHeader: seen(1)},
			problem: "PROXY headers come only from outside trusted_cidrs, from 10.0.3.7: Envoy closes these connections",
		},
		"headers from outside trusted_cidrs for a permissive listener": {
			mode:    settings.Permissive,
			wrong:   evidence.Summary{UntrustedHeaders: seen(11), WithoutHeader: seen(300)},
			right:   evidence.Summary{UntrustedHeaders: seen(11), WithHeader: seen(1)},
			problem: "Envoy ignores these headers, so the load balancer's address counts as the client's",
		},
		"ten headers from outside trusted_cidrs": {
			mode:  settings.Strict,
			wrong: evidence.Summary{UntrustedHeaders: seen(10)},
		},
		"a permissive listener": {
			mode:  settings.Permissive,
			wrong: evidence.Summary{WithoutHeader: seen(300), WithHeader: seen(3)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *testPlane) {
				connections := r.withConnections()
				e := r.connect(edge)
				connections.set(c.mode, c.wrong)
				r.put(instancesWith(c.mode))
				time.Sleep(connectionsInterval)
				synctest.Wait()
				if c.problem == "" {
					if r.problemCount("edge") != 0 {
						t.Errorf("there is a problem:\n%s", r.log.String())
					}
				} else if r.problemCount("edge") != 1 || !strings.Contains(r.log.String(), c.problem) {
					t.Errorf("%v problems, and the log is\n%s", r.problemCount("edge"), r.log.String())
				}
				wrong := c.wrong
				wrong.Malformed.Count, wrong.Refused.Count = 10*wrong.Malformed.Count, 10*wrong.Refused.Count
				if c.problem != "" {
					connections.set(c.mode, wrong)
					time.Sleep(connectionsInterval)
					synctest.Wait()
					if n := strings.Count(r.log.String(), c.problem); n != 1 {
						t.Errorf("the problem is logged %d times", n)
					}
				}
				connections.set(c.mode, c.right)
				time.Sleep(connectionsInterval)
				synctest.Wait()
				if r.problemCount("edge") != 0 {
					t.Errorf("the problem stays:\n%s", r.log.String())
				}
				e.leave()
				synctest.Wait()
			})
		})
	}
}

// TestWhetherAListenerCanBeStrictIsLoggedOnce: for ten minutes all connections
// have headers, and then one has none.
func TestWhetherAListenerCanBeStrictIsLoggedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		connections := r.withConnections()
		e := r.connect(edge)
		headers := seen(1)
		headers.First = time.Now()
		connections.set(settings.Permissive, evidence.Summary{WithHeader: headers})
		r.put(instancesWith(settings.Permissive))
		ready := func() float64 {
			return testutil.ToFloat64(r.plane.options.Metrics.headersOnly.WithLabelValues("edge", "8080"))
		}
		const yes, no = "so proxy_protocol.mode can be strict", "proxy_protocol.mode cannot be strict"
		time.Sleep(evidence.Window - connectionsInterval)
		synctest.Wait()
		if strings.Contains(r.log.String(), yes) || ready() != 0 {
			t.Errorf("too early, with %v:\n%s", ready(), r.log.String())
		}
		time.Sleep(3 * connectionsInterval)
		synctest.Wait()
		if strings.Count(r.log.String(), yes) != 1 || ready() != 1 {
			t.Errorf("after ten minutes, with %v:\n%s", ready(), r.log.String())
		}
		connections.set(settings.Permissive, evidence.Summary{WithHeader: headers, WithoutHeader: seen(1)})
		time.Sleep(3 * connectionsInterval)
		synctest.Wait()
		if strings.Count(r.log.String(), no) != 1 || ready() != 0 {
			t.Errorf("after one without, with %v:\n%s", ready(), r.log.String())
		}
		e.leave()
		synctest.Wait()
	})
}

// TestAListenerWithUntrustedConnectionsCannotBeStrict: strict closes connections from outside trusted_cidrs.
func TestAListenerWithUntrustedConnectionsCannotBeStrict(t *testing.T) {
	headers := evidence.Summary{WithHeader: seen(5)}
	later := headers.WithHeader.First.Add(evidence.Window)
	if found := conclude(settings.Permissive, headers, 5, later); found.conclusion != headersOnly {
		t.Errorf("with headers only, got %v", found)
	}
	headers.Untrusted = seen(1)
	if found := conclude(settings.Permissive, headers, 5, later); found.conclusion != nothing {
		t.Errorf("with an untrusted connection, got %v", found)
	}
}

// TestInstancesWithDifferentModes gives a gateway two instances, one for each mode, whose
// connections take turns. Each problem begins once, and none of them is over while
// both modes are there.
func TestInstancesWithDifferentModes(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		connections := r.withConnections()
		e := r.connect(edge)
		r.put(instancesWith(settings.Off, settings.Strict, settings.Permissive))
		for range 10 {
			connections.set(settings.Off, evidence.Summary{Malformed: seen(5)})
			connections.set(settings.Strict, evidence.Summary{Refused: seen(3)})
			connections.set(settings.Permissive, evidence.Summary{WithHeader: seen(3)})
			time.Sleep(connectionsInterval)
			synctest.Wait()
		}
		for text, want := range map[string]int{
			"its mode is off": 1, "its mode is strict": 0, "problem over": 0,
			"so proxy_protocol.mode can be strict": 1, "proxy_protocol.mode cannot be strict": 0,
		} {
			if n := strings.Count(r.log.String(), text); n != want {
				t.Errorf("the log has %q %d times, want %d:\n%s", text, n, want, r.log.String())
			}
		}
		if n := testutil.ToFloat64(r.plane.options.Metrics.headersOnly.WithLabelValues("edge", "8080")); n != 1 {
			t.Errorf("usher_listener_headers_only is %v", n)
		}
		e.leave()
		synctest.Wait()
	})
}

// TestConnectionsToAModeThatIsGoneCountForNothing changes the mode of a listener, or
// removes it, while the connections to the old one still count in the Window.
func TestConnectionsToAModeThatIsGoneCountForNothing(t *testing.T) {
	following := instancesWith(settings.Auto)
	following.Instances[0].Kubernetes = gateway.KubernetesService{Namespace: "ns", Name: "edge"}
	withoutListener := instancesWith(settings.Off)
	withoutListener.Entry = &gateway.Entry{Name: "edge"}
	withoutEntry := instancesWith(settings.Off)
	withoutEntry.Entry = nil
	unknown := instancesWith(settings.Off)
	unknown.Instances[0].Registration = settings.Layer{NeverValid: true}
	for name, c := range map[string]struct {
		after    *gateway.Snapshot
		problems float64
	}{
		"another mode":         {instancesWith(settings.Permissive), 0},
		"one instance has it":  {instancesWith(settings.Permissive, settings.Off), 1},
		"no listener":          {withoutListener, 0},
		"no entry":             {withoutEntry, 0},
		"a mode not known":     {unknown, 0},
		"it follows a Service": {following, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *testPlane) {
				connections := r.withConnections()
				r.plane.options.Balancers = offBalancer{}
				connections.set(settings.Off, evidence.Summary{Malformed: seen(5)})
				connections.set(settings.Permissive, evidence.Summary{WithHeader: seen(3)})
				e := r.connect(edge)
				r.put(instancesWith(settings.Off, settings.Permissive))
				time.Sleep(connectionsInterval)
				synctest.Wait()
				if r.count("its mode is off") != 1 {
					t.Errorf("there is no problem:\n%s", r.log.String())
				}
				r.put(c.after)
				time.Sleep(connectionsInterval)
				synctest.Wait()
				if n := r.count("its mode is off"); n != 2-int(c.problems) {
					t.Errorf("the log has the problem %d times:\n%s", n, r.log.String())
				}
				if n := r.count("panic"); n != 0 {
					t.Errorf("there was a panic:\n%s", r.log.String())
				}
				if n := r.count("proxy_protocol.mode cannot be strict"); n != 0 {
					t.Errorf("a mode that is gone is compared with connections:\n%s", r.log.String())
				}
				e.leave()
				synctest.Wait()
			})
		})
	}
}

// TestAStrictListenerCannotBecomeStrict: its headers say nothing new.
func TestAStrictListenerCannotBecomeStrict(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		connections := r.withConnections()
		e := r.connect(edge)
		connections.set(settings.Strict, evidence.Summary{WithHeader: seen(300)})
		r.put(instancesWith(settings.Strict))
		time.Sleep(connectionsInterval)
		synctest.Wait()
		if n := r.count("can be strict"); n != 0 {
			t.Errorf("the log says that it can:\n%s", r.log.String())
		}
		if n := testutil.CollectAndCount(r.plane.options.Metrics.headersOnly); n != 0 {
			t.Errorf("usher_listener_headers_only has %d series", n)
		}
		e.leave()
		synctest.Wait()
	})
}

// TestHeadersOfAListenerBeforeItWasStrictCount: those that a strict listener accepts end later
// than those that it refuses.
func TestHeadersOfAListenerBeforeItWasStrictCount(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		connections := r.withConnections()
		e := r.connect(edge)
		connections.set(settings.Permissive, evidence.Summary{WithHeader: seen(3)})
		connections.set(settings.Strict, evidence.Summary{Refused: seen(5)})
		r.put(instancesWith(settings.Strict))
		time.Sleep(connectionsInterval)
		synctest.Wait()
		if n := r.count("its mode is strict"); n != 0 {
			t.Errorf("there is a problem:\n%s", r.log.String())
		}
		connections.set(settings.Permissive, evidence.Summary{})
		time.Sleep(connectionsInterval)
		synctest.Wait()
		if n := r.count("its mode is strict"); n != 1 {
			t.Errorf("there is no problem:\n%s", r.log.String())
		}
		e.leave()
		synctest.Wait()
	})
}

// count returns how often a text is in the log.
func (r *testPlane) count(text string) int { return strings.Count(r.log.String(), text) }

// offBalancer is a load balancer that sends no headers.
type offBalancer struct{}

func (offBalancer) Watch(ctx context.Context, _ gateway.ID, _ gateway.KubernetesService, put func(*gateway.Balancer)) {
	put(&gateway.Balancer{OtherPorts: gateway.PortState{Mode: settings.Off}})
	<-ctx.Done()
}

// seen is a tally of so many connections from one address, which began an hour ago.
func seen(count int) evidence.Tally {
	return evidence.Tally{
		Count: count, First: time.Now().Add(-time.Hour), Last: time.Now(), Addresses: []netip.Addr{netip.MustParseAddr("10.0.3.7")},
	}
}

func TestReportKeyReachesEnvoys(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		key := evidence.NewKey([]byte("a secret of all replicas"))
		r.plane.SetReportKey(key)
		e := r.connect(edge)
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		reporting := e.listener(t, anyAddress).Version()
		r.plane.SetReportKey(evidence.Key{})
		synctest.Wait()
		if e.listener(t, anyAddress).Version() == reporting {
			t.Error("the listener is the same with and without a key")
		}
		r.plane.SetReportKey(key)
		synctest.Wait()
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		later := r.connect(edge)
		synctest.Wait()
		if e.listener(t, anyAddress).Version() != reporting || later.listener(t, anyAddress).Version() != reporting {
			t.Error("a key that comes later makes another listener")
		}
	})
}
