package cutover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/internal/envoyadmin"
)

func TestOneEnvoyTakesThePlaceOfAnother(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	s.options.Stop = &Command{Line: "true"}
	s.old.stats["listener.10.0.0.1_8080.downstream_cx_active"] = 3
	closes := 0
	s.old.onGet = func(e *fakeEnvoy, path string) {
		if len(e.posts) == 2 && path == "/stats" {
			if closes++; closes > 1 {
				e.stats["listener.10.0.0.1_8080.downstream_cx_active"] = 0
			}
		}
		e.down = closes > 1 && path == "/server_info" // it has ended
	}
	if err := s.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.old.posted(); !slices.Equal(got, []string{"/drain_listeners", "/healthcheck/fail"}) {
		t.Errorf("the old Envoy got %q", got)
	}
	if got := s.new.posted(); len(got) > 0 {
		t.Errorf("the new Envoy got %q", got)
	}
	s.wantLines(
		"old", "kernel ok", "statistics ok", "target ok", "endpoints ok", "ports ok", "differences ok: none but PROXY filters and what follows from them",
		"modes ok: 10.0.0.1:8080: off -> permissive", "start run", "new ok", "drain the old Envoy closes its listeners",
		"drain wait: the old Envoy has open connections: 3 on 10.0.0.1_8080", "stop run: true", "done the old Envoy had no connection any more, and has ended")
}

// wantLines wants lines that begin so, in this order.
func (s *story) wantLines(beginnings ...string) {
	s.t.Helper()
	rest := beginnings
	for line := range strings.Lines(s.out.String()) {
		if len(rest) > 0 && strings.HasPrefix(strings.Join(strings.Fields(line), " "), rest[0]) {
			rest = rest[1:]
		}
	}
	if len(rest) > 0 {
		s.t.Errorf("there is no line %q, or not in this place:\n%s", rest[0], s.out.String())
	}
}

// refusals are situations in which requests would be lost, the check that finds it, and a part of what it says.
var refusals = []struct {
	name, check, says string
	make              func(s *story)
}{
	{"a kernel that moves nothing", "kernel", "net.ipv4.tcp_migrate_req is 0", func(s *story) { s.sysctl = "0\n" }},
	{"an old kernel", "kernel", "came with Linux 5.14", func(s *story) { s.sysctl = "-" }},
	{"a setting that cannot be read", "kernel", "cannot be read", func(s *story) { s.sysctl, s.options.Sysctl = "-", s.t.TempDir() }},
	{"an Envoy that counts no connections", "statistics", "does not count its connections", func(s *story) {
		delete(s.old.stats, "listener.10.0.0.1_8080.downstream_cx_active")
	}},
	{"an Envoy that counts no listeners", "statistics", "does not count its connections", func(s *story) {
		delete(s.old.stats, "listener_manager.total_listeners_active")
	}},
	{"an xDS server that is not ready", "target", "REASON", func(s *story) { s.target.unready = errors.New("REASON") }},
	{"an xDS server that refuses", "target", "REASON", func(s *story) { s.target.err = errors.New("REASON") }},
	{"a listener that is held back", "ports", "would not listen on 10.0.0.1:9000, only on: 10.0.0.1:8080", func(s *story) {
		s.old.config.listeners = append(s.old.config.listeners, listenerJSON(9000, ""))
	}},
	{"no listener", "ports", "serves no listener", func(s *story) { s.old.config.listeners = nil }},
	{"ports that are not shared", "ports", "SO_REUSEPORT is off for 10.0.0.1:8080", func(s *story) {
		alone := config{listeners: []string{listenerJSON(8080, `, "enable_reuse_port": false`)}, cluster: s.old.config.cluster}
		s.old.config, s.new.config, s.target.resources = alone, alone, alone.resources(s.t)
	}},
	{"an xDS server without endpoints", "endpoints", "would get no healthy endpoint of web, and requests to it would fail", func(s *story) {
		s.target.resources[resource.EndpointType]["web-eds"] = map[string]any{"cluster_name": "web-eds"}
	}},
	{"an xDS server without the cluster's endpoints", "endpoints", "would get no healthy endpoint of web", func(s *story) {
		delete(s.target.resources, resource.EndpointType)
	}},
	{"an xDS server whose endpoints are unhealthy", "endpoints", "would get no healthy endpoint of web", func(s *story) {
		s.new.config.health = `, "health_status": "UNHEALTHY"`
		s.target.resources = s.new.config.resources(s.t)
	}},
	{"another cluster", "differences", "cluster web: connect_timeout", func(s *story) { s.old.config.cluster = strings.Replace(s.old.config.cluster, "5s", "1s", 1) }},
	{"another listener", "differences", "listener http:10.0.0.1:8080: transparent", func(s *story) {
		s.old.config.listeners = []string{listenerJSON(8080, `, "transparent": true`)}
	}},
	{"strict before the balancer sends headers", "modes", "off -> strict: what the old Envoy serves now has no header", func(s *story) { s.serve(off, strict) }},
	{"off while the balancer sends headers", "modes", "strict -> off: the load balancer sends headers", func(s *story) { s.serve(strict, off) }},
	{"off while headers come", "modes", "permissive -> off: connections with a PROXY header came just now (1)", func(s *story) {
		s.serve(permissive, off)
		s.comes("proxy_proto.a.versions.v2.found")
	}},
	{"strict while some come without", "modes", "permissive -> strict: connections without a PROXY header came just now (1)", func(s *story) {
		s.serve(permissive, strict)
		s.comes("proxy_proto.a.not_found_allowed")
	}},
	{"off after headers came, and nothing comes", "modes", "permissive -> off: no connection came just now, so it is not known what the load balancer sends", func(s *story) {
		s.serve(permissive, off)
	}},
	{"strict while nothing comes", "modes", "permissive -> strict: no connection came just now", func(s *story) { s.serve(permissive, strict) }},
	{"an Envoy that counts no headers", "modes", "does not count PROXY headers", func(s *story) {
		s.serve(permissive, off)
		delete(s.old.stats, "proxy_proto.a.versions.v2.found")
		delete(s.old.stats, "proxy_proto.a.not_found_allowed")
	}},
}

// comes makes connections come to the old Envoy, which it counts: one between two looks, after the first.
func (s *story) comes(counter string) {
	looks := 0
	s.old.onGet = func(e *fakeEnvoy, path string) {
		if path == "/stats" {
			if looks++; looks > 2 {
				e.stats[counter] = 11
			}
		}
	}
}

func TestWhatWouldLoseRequestsIsRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range refusals {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newStory(t)
			tc.make(s)
			err := s.run(t.Context())
			if err == nil || err.Error() != "requests could be lost, see above: "+tc.check+"; nothing has changed" {
				t.Errorf("error %v, want one about %s alone", err, tc.check)
			}
			if s.wantLines(tc.check + " REFUSED"); !strings.Contains(s.out.String(), tc.says) {
				t.Errorf("want %q:\n%s", tc.says, s.out.String())
			}
			if len(s.old.posted()) > 0 || s.options.Start.cmd != nil {
				t.Errorf("something was done: the old Envoy got %q, started %v", s.old.posted(), s.options.Start.cmd)
			}
		})
	}
}

func TestARefusalCanBeAccepted(t *testing.T) {
	t.Parallel()
	for _, tc := range refusals {
		if !slices.Contains(Acceptable, tc.check) || tc.name == "no listener" {
			continue
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newStory(t)
			tc.make(s)
			s.options.Accept = []string{tc.check}
			if err := s.run(t.Context()); err != nil {
				t.Error(err)
			}
			s.wantLines(tc.check+" accepted", "done")
		})
	}
}

func TestChangesThatLoseNothingAreNotRefused(t *testing.T) {
	t.Parallel()
	for _, change := range [][2]mode{{off, off}, {off, permissive}, {strict, permissive}, {strict, strict}, {permissive, permissive}} {
		s := newStory(t)
		s.serve(change[0], change[1])
		s.options.DryRun = true
		if err := s.run(t.Context()); err != nil {
			t.Errorf("%s -> %s: %v\n%s", change[0], change[1], err, s.out.String())
		}
	}
}

func TestEndpointsMatterWhereTheOldEnvoyHasHealthyOnes(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(s *story){
		"the old Envoy has none either": func(s *story) {
			s.old.stats["cluster.web.membership_healthy"] = 0
			delete(s.target.resources, resource.EndpointType)
		},
		"a degraded one": func(s *story) {
			s.new.config.health = `, "health_status": "DEGRADED"`
			s.target.resources = s.new.config.resources(s.t)
		},
	} {
		s := newStory(t)
		s.options.DryRun = true
		change(s)
		if err := s.run(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTheHeadersOfOtherListenersDoNotMatter has a listener that stays permissive, and gets what does not suit the new mode of
// the other two, which have one watch.
func TestTheHeadersOfOtherListenersDoNotMatter(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, prefix, comes string
		to                  mode
	}{
		{"off", "a", "proxy_proto.b.versions.v2.found", off},
		{"strict", "a", "proxy_proto.b.not_found_allowed", strict},
		{"Envoy before 1.31", "", "proxy_proto.b.versions.v2.found", off},
	} {
		s := newStory(t)
		suits := map[mode]string{off: "not_found_allowed", strict: "versions.v2.found"}[tc.to]
		s.old.config.listeners, s.new.config.listeners = nil, nil
		for port, prefix := range map[int]string{8080: tc.prefix, 8081: tc.prefix, 9000: "b"} {
			to := map[bool]mode{true: permissive, false: tc.to}[port == 9000]
			listens := func(m mode) string {
				return listenerJSON(port, strings.Replace(withMode(m), `"stat_prefix": "a"`, fmt.Sprintf(`"stat_prefix": %q`, prefix), 1))
			}
			s.old.config.listeners = append(s.old.config.listeners, listens(permissive))
			s.new.config.listeners = append(s.new.config.listeners, listens(to))
		}
		s.target.resources = s.new.config.resources(t)
		looks := 0
		s.old.onGet = func(e *fakeEnvoy, path string) {
			if path == "/stats" {
				if looks++; looks > 2 {
					e.stats[tc.comes], e.stats[strings.Replace("proxy_proto."+tc.prefix+"."+suits, "..", ".", 1)] = 11, 11
				}
			}
		}
		s.options.DryRun = true
		if err := s.run(t.Context()); err != nil || looks != 3 {
			t.Errorf("%s: error %v, %d looks, want one at the beginning and two of one watch:\n%s", tc.name, err, looks, s.out.String())
		}
	}
}

func TestConnectionsThatSuitTheNewModeLoseNothing(t *testing.T) {
	t.Parallel()
	for to, counter := range map[mode]string{strict: "proxy_proto.a.versions.v2.found", off: "proxy_proto.a.not_found_allowed"} {
		s := newStory(t)
		s.serve(permissive, to)
		s.comes(counter)
		s.options.DryRun = true
		if err := s.run(t.Context()); err != nil {
			t.Errorf("permissive -> %s: %v", to, err)
		}
	}
}

func TestADryRunPrintsThePlanAndDoesNothing(t *testing.T) {
	t.Parallel()
	for _, s := range []*story{newStory(t), newStory(t)} {
		s.options.DryRun, s.options.Stop = true, &Command{Line: "end it"}
		want := []string{"modes ok", "plan run: touch", "plan wait up to 1m0s until", "plan drain", "plan wait up to 1m0s until it has no connection", "plan run: end it"}
		if err := s.run(t.Context()); err != nil || len(s.old.posted()) > 0 || s.options.Start.cmd != nil {
			t.Errorf("error %v, the old Envoy got %q", err, s.old.posted())
		}
		s.wantLines(want...)
	}
	s := newStory(t)
	s.options.DryRun, s.options.Start = true, nil
	if err := s.run(t.Context()); err != nil {
		t.Error(err)
	}
	s.wantLines("plan wait until you start the new Envoy with -grpc-addr", "plan say how to end it: systemctl disable --now with its unit, or curl -X POST ")
}

// hopeless are situations in which waiting for the new Envoy is no use.
var hopeless = []struct {
	name, says string
	make       func(s *story)
}{
	{"a port of another user", "refuses the listener http:10.0.0.1:8080: cannot bind", func(s *story) {
		s.new.errors = map[string]string{"http:10.0.0.1:8080": "cannot bind '10.0.0.1:8080': Address already in use"}
	}},
	{"a command that fails", `"exit 3" has failed: exit status 3`, func(s *story) { s.options.Start.Line = "exit 3" }},
	{"a command that dies", `"kill -9 $$" has failed: killed`, func(s *story) { s.options.Start.Line = "kill -9 $$" }},
	{"an Envoy that drains", "drains, and cannot serve again", func(s *story) {
		s.new.down, s.new.state, s.new.onGet = false, "DRAINING", func(*fakeEnvoy, string) {}
	}},
	{"an Envoy that has closed its listeners", "drains, and cannot serve again; end it, and run this again; only the old Envoy accepts connections", func(s *story) {
		s.new.down, s.new.onGet = false, func(*fakeEnvoy, string) {} // it lists them, and is LIVE
		s.new.stats["listener_manager.listener_stopped"] = 1
	}},
	{"an Envoy that closes its listeners while it is waited for", "drains, and cannot serve again; end it, and run this again; only the old Envoy accepts connections", func(s *story) {
		s.new.down, s.new.state = false, "INITIALIZING"
		s.new.onGet = func(e *fakeEnvoy, path string) {
			if path == "/listeners" {
				e.stats["listener_manager.listener_stopped"] = 1
			}
		}
	}},
	{"two Envoys that have closed their listeners", "drains, and cannot serve again; end it, and run this again; no Envoy accepts connections", func(s *story) {
		s.new.down, s.new.onGet = false, func(*fakeEnvoy, string) {}
		s.new.stats["listener_manager.listener_stopped"], s.old.stats["listener_manager.listener_stopped"] = 1, 1
	}},
	{"an old Envoy that has ended, and a new one that has closed its listeners", "drains, and cannot serve again; end it, and run this again; no Envoy accepts connections", func(s *story) {
		s.old.down, s.new.down, s.new.onGet = true, false, func(*fakeEnvoy, string) {}
		s.new.stats["listener_manager.listener_stopped"] = 1
	}},
	{"an xDS server that has gone", "REASON", func(s *story) {
		starts := s.new.onGet
		s.new.onGet = func(e *fakeEnvoy, path string) {
			if starts(e, path); !e.down {
				s.target.err = errors.New("REASON")
			}
		}
	}},
}

// waits are what the new Envoy may still lack, and what is said about it.
var waits = []struct {
	name, says string
	make       func(s *story)
}{
	{"it starts", "the new Envoy does not answer: ", func(s *story) { s.new.onGet = func(e *fakeEnvoy, _ string) { e.down = true } }},
	{"it does not listen yet", "the new Envoy starts, and does not answer at http://127.0.0.1:1 (--new) yet; read the log", func(s *story) { s.options.New = envoyadmin.New("127.0.0.1:1") }},
	{"it initializes", "the new Envoy is PRE_INITIALIZING", func(s *story) { s.new.state = "PRE_INITIALIZING" }},
	{"a listener warms", "waits for parts of its configuration", func(s *story) { s.new.stats["listener_manager.total_listeners_warming"] = 1 }},
	{"a cluster warms", "waits for parts of its configuration", func(s *story) { s.new.stats["cluster_manager.warming_clusters"] = 1 }},
	{"a port is missing", "does not listen on 10.0.0.1:8080", func(s *story) { s.new.config.listeners = nil }},
	{"endpoints are missing", "has no healthy endpoint of web; it gets connections already, and requests on them can fail until you end it", func(s *story) { s.new.stats["cluster.web.membership_healthy"] = 0 }},
	{"another xDS server", "is off on 10.0.0.1:8080, and not permissive; is it configured by Usher? Start it with -grpc-addr", func(s *story) { s.new.config = plain(off) }},
	{"an older configuration", "does not have what Usher sends: cluster web: connect_timeout", func(s *story) {
		s.new.config.cluster = strings.Replace(s.new.config.cluster, "5s", "1s", 1)
	}},
}

func TestTheOldEnvoyServesUntilTheNewOneDoes(t *testing.T) {
	t.Parallel()
	for _, tc := range waits {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newStory(t)
			s.hurry()
			tc.make(s)
			err := s.run(t.Context())
			if err == nil || !strings.HasPrefix(err.Error(), "after 250ms, the new Envoy ") || !strings.Contains(err.Error(), tc.says) ||
				!strings.Contains(err.Error(), "; the old Envoy serves, and the new one beside it") {
				t.Errorf("error %v, want %q", err, tc.says)
			}
			if len(s.old.posted()) > 0 {
				t.Errorf("the old Envoy got %q", s.old.posted())
			}
		})
	}
}

func TestANewEnvoyThatCannotServeIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	for _, tc := range hopeless {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newStory(t)
			tc.make(s)
			if err := s.run(t.Context()); err == nil || !strings.Contains(err.Error(), tc.says) || len(s.old.posted()) > 0 {
				t.Errorf("error %v, want %q; the old Envoy got %q", err, tc.says, s.old.posted())
			}
		})
	}
}

func TestConnectionsThatStayOpenAreNamed(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	s.hurry()
	s.old.stats["listener.10.0.0.1_8080.downstream_pre_cx_active"] = 1
	s.old.stats["listener.10.0.0.1_9000.downstream_cx_active"] = 2
	const want = "after 250ms, the old Envoy has open connections: 1 on 10.0.0.1_8080, 2 on 10.0.0.1_9000; to wait no longer, end the old Envoy, which closes them: " +
		"systemctl disable --now with its unit, or curl -X POST http://OLD/quitquitquit; the new Envoy serves all new connections, and the old one what it has; " +
		"run the same command to go on"
	if err := s.run(t.Context()); err == nil || s.hidden(err.Error()) != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestTheDrainIsNotOverBeforeEachListenerHasStopped(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	s.hurry()
	s.old.stats["listener_manager.total_listeners_active"] = 2 // and only one stops
	if err := s.run(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "after 250ms, the old Envoy still closes its listeners; ") ||
		!strings.HasSuffix(err.Error(), "; the new Envoy accepts connections, and the old one does until it has closed its listeners; run the same command to go on") {
		t.Errorf("error %v", err)
	}
}

func TestTheOldEnvoyHasToBeIdleAtTwoLooks(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	looks := 0
	s.old.onGet = func(e *fakeEnvoy, path string) {
		if path != "/stats" || len(e.posts) < 2 {
			return
		}
		looks++
		e.stats["listener.10.0.0.1_8080.downstream_cx_active"] = map[bool]int{true: 1}[looks == 2] // the first look missed it
	}
	if err := s.run(t.Context()); err != nil || looks != 4 {
		t.Errorf("error %v, %d looks at the drain, want 4:\n%s", err, looks, s.out.String())
	}
}

func TestAnInterruptionWhileTheOldEnvoyClosesItsListeners(t *testing.T) {
	t.Parallel()
	for _, last := range []string{"/drain_listeners", "/healthcheck/fail"} {
		s := newStory(t)
		ctx, interrupt := context.WithCancel(t.Context())
		s.old.onPost = func(_ *fakeEnvoy, path string) { // it closes none yet
			if path == last {
				interrupt()
			}
		}
		const want = "interrupted; the new Envoy accepts connections, and the old one does until it has closed its listeners; run the same command to go on"
		if err := s.run(ctx); err == nil || err.Error() != want {
			t.Errorf("at %s: error %v, want %s", last, err, want)
		}
	}
}

func TestAnInterruptedCutoverGoesOn(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	ctx, interrupt := context.WithCancel(t.Context())
	s.old.stats["listener.10.0.0.1_8080.downstream_cx_active"] = 3
	looks := 0
	s.old.onGet = func(e *fakeEnvoy, path string) {
		if path == "/stats" && len(e.posts) == 2 {
			if looks++; looks == 2 {
				interrupt()
			}
		}
	}
	if err := s.run(ctx); err == nil || err.Error() != "interrupted; the new Envoy serves all new connections, and the old one what it has; run the same command to go on" {
		t.Errorf("error %v", err)
	}
	s.old.set(func() { s.old.stats = healthy(); s.old.stats["listener_manager.listener_stopped"] = 1 })
	s.sysctl = "0\n" // no longer matters: nothing is in a queue
	s.out.Reset()
	if err := s.run(t.Context()); err != nil {
		t.Errorf("%v\n%s", err, s.out.String())
	}
	s.wantLines("old", "old it drains already", "start http", "new ok", "drain", "done")
	s.old.set(func() { s.old.down = true })
	s.out.Reset()
	if err := s.run(t.Context()); err != nil {
		t.Errorf("%v\n%s", err, s.out.String())
	}
	s.wantLines("old no Envoy answers at --old", "done if the old Envoy has ended, nothing is left to do")
	s.new.set(func() { s.new.state = "PRE_INITIALIZING" })
	if err := s.run(t.Context()); err == nil || err.Error() != "the new Envoy is PRE_INITIALIZING; no Envoy answers at --old" {
		t.Errorf("error %v", err)
	}
}

func TestAnInterruptionBeforeTheNewEnvoyServes(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	s.options.Start = nil
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	s.new.onGet = func(*fakeEnvoy, string) {
		if asked++; asked > 2 {
			cancel()
		}
	}
	if err := s.run(ctx); err == nil || !strings.HasPrefix(err.Error(), "interrupted; the old Envoy serves, and the new one beside it") {
		t.Errorf("error %v", err)
	}
	s.wantLines("start start the new Envoy now with -grpc-addr", "new wait")
}

func TestAnOldEnvoyThatEndsTooEarlyIsNoticed(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	s.old.onPost = func(e *fakeEnvoy, path string) { e.down = path == "/healthcheck/fail" }
	if err := s.run(t.Context()); err == nil || !strings.Contains(err.Error(), "the old Envoy has ended before its connections have: ") ||
		!strings.HasSuffix(err.Error(), "; only the new Envoy serves") {
		t.Errorf("error %v", err)
	}
}

func TestTheCommandThatEndsTheOldEnvoyHasToDoThat(t *testing.T) {
	t.Parallel()
	for line, says := range map[string]string{"true": "after 2s, the old Envoy still answers; something may start it again; ", "exit 4": `"exit 4" has failed: exit status 4`} {
		s := newStory(t)
		s.options.Timeout = 2 * time.Second // to see twice that there is no connection, and then for the command
		s.options.Stop = &Command{Line: line}
		err := s.run(t.Context())
		if err == nil || !strings.HasPrefix(err.Error(), says) || !strings.HasSuffix(err.Error(), "; the new Envoy serves, and the old one has no connection any more") {
			t.Errorf("%s: error %v, want %q", line, err, says)
		}
	}
}

// hanging are Envoys that take connections to their admin interface and do not answer.
var hanging = []struct {
	name, says string
	make       func(s *story)
}{
	{"the old Envoy", "the old Envoy does not answer: ", func(s *story) { s.old.hangs = "/server_info" }},
	{"its statistics", "http://OLD", func(s *story) { s.old.hangs = "/stats" }},
	{"the new Envoy", "the new Envoy does not answer: ", func(s *story) { s.hurry(); s.new.hangs = "/server_info" }},
	{"the statistics of the new Envoy", "http://NEW", func(s *story) { s.hurry(); s.new.hangs = "/stats" }},
	{"the new Envoy while it starts", "after 250ms, the new Envoy does not answer: ", func(s *story) { s.hurry(); s.new.hangs = "/config_dump" }},
	{"the old Envoy that has to drain", "http://OLD", func(s *story) { s.hurry(); s.old.hangs = "/drain_listeners" }},
	{"the old Envoy while it drains", "after 250ms, the old Envoy does not answer: ", func(s *story) {
		s.hurry()
		s.old.onPost = func(e *fakeEnvoy, _ string) { e.hangs = "/stats" }
	}},
	{"the old Envoy that has to end", "after 250ms, the old Envoy does not answer, and has not ended: ", func(s *story) {
		s.hurry()
		s.options.Stop = &Command{Line: "true"}
		s.old.onPost = func(e *fakeEnvoy, _ string) {
			e.hangs, e.stats["listener_manager.listener_stopped"] = "/server_info", 1
		}
	}},
}

func TestAnEnvoyThatHangsIsNotAwaitedForEver(t *testing.T) {
	t.Parallel()
	for _, tc := range hanging {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newStory(t)
			tc.make(s)
			s.options.patience = time.Second
			err := s.run(t.Context())
			if err == nil || !strings.Contains(s.hidden(err.Error()), tc.says) {
				t.Errorf("error %v, want %q", err, tc.says)
			}
			if s.options.Start.cmd != nil {
				t.Error("a second Envoy was started beside one that hangs")
			}
		})
	}
}

func TestNoEnvoyAtAll(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	s.old.down = true
	if err := s.run(t.Context()); err == nil || !strings.Contains(err.Error(), "no Envoy answers: --old: ") || !strings.Contains(err.Error(), "; --new: ") {
		t.Errorf("error %v", err)
	}
}
