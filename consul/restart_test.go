package consul

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// watcherWithTimeout returns a watcher with this answer timeout.
func (c *fakeConsul) watcherWithTimeout(t *testing.T, patience time.Duration, log *logRecorder) *Watcher {
	t.Helper()
	return NewWatcher(c.client(t, log), WatcherOptions{HealthTimeout: patience, AnswerTimeout: patience})
}

const meshGatewaysPath = `/v1/catalog/services?filter=ServiceKind == "mesh-gateway"`

// newFakeGatewayWithEverything returns a Consul with a gateway that needs every query type.
func newFakeGatewayWithEverything(t *testing.T) *fakeConsul {
	t.Helper()
	c := newFakeGatewayWithInstances(t, "web", "api")
	c.set("/v1/discovery-chain/web", reply{body: `{"Chain": {"Datacenter": "dc1", "StartNode": "s", "Nodes": {"s": {}}, "Targets": {
		"web": {"ID": "web", "Service": "web", "Datacenter": "dc1"},
		"far": {"ID": "far", "Service": "web", "Datacenter": "dc2", "MeshGateway": {"Mode": "local"}},
		"peer": {"ID": "peer", "Service": "web", "Peer": "east"}}}}`})
	c.set("/v1/health/connect/web?dc=dc2", sidecar(2, "passing"))
	c.set("/v1/health/connect/web?peer=east", sidecar(3, "passing"))
	c.set(peeringPath, reply{body: `{"Name": "east", "PeerCAPems": ["one"]}`})
	c.set(meshGatewaysPath, reply{body: `{"mesh-gateway": [], "other": []}`})
	c.set("/v1/health/service/mesh-gateway", sidecar(4, "passing"))
	c.set("/v1/health/service/other", sidecar(5, "passing"))
	return c
}

// A wrong answer to one query takes nothing away at a restart. Either the watcher
// hands on no snapshot, or the snapshot is complete but for what is not known.
func TestAFaultAtARestartTakesNothingAway(t *testing.T) {
	// These are valid answers, which Usher has to accept.
	truths := map[string][]string{
		"/v1/agent/self":                   {"403", "404"},
		"/v1/config/mesh":                  {"[]"},
		"/v1/config/proxy-defaults":        {"[]"},
		"/v1/health/service/gateway":       {"[]"},
		"/v1/health/connect/web":           {"[]"},
		"/v1/health/connect/api":           {"[]"},
		"/v1/health/service/other":         {"[]"},
		"/v1/health/connect/web?dc=dc2":    {"[]"},
		"/v1/health/connect/web?peer=east": {"[]"},
		"/v1/health/service/mesh-gateway":  {"[]"},
		meshGatewaysPath:                   {"{}"},
		peeringPath:                        {"404"},
		servicesPath:                       {"[]"}, // see TestRowsThatAreMissing
	}
	answers := maps.Clone(faults)
	answers["[]"], answers["{}"] = reply{body: "[]"}, reply{body: "{}"}
	answers["hidden"] = reply{body: "[]", hidden: true}
	c := newFakeGatewayWithEverything(t)
	all := start(t, c.watcher(t), "gateway").next(t, anyOne)
	wantEqual(t, []int{2, 4, 1, 1}, []int{len(all.Chains), all.Endpoints.Len(), len(all.MeshGateways), len(all.Peers)})
	for _, path := range slices.Sorted(maps.Keys(c.replies)) {
		for name, answer := range answers {
			if slices.Contains(truths[path], name) {
				continue
			}
			if name == "hidden" && strings.HasPrefix(path, "/v1/config/") && path != "/v1/config/ingress-gateway" {
				continue // every token may read those
			}
			t.Run(path+" "+name, func(t *testing.T) {
				t.Parallel()
				c := newFakeGatewayWithEverything(t)
				c.set(path, answer)
				log := &logRecorder{}
				again := start(t, c.watcherWithTimeout(t, 50*time.Millisecond, log), "gateway")
				until(t, func() bool {
					return len(again.snapshots) > 0 || log.has("WARN the gateway's configuration in consul is incomplete")
				})
				again.stop()
				close(again.snapshots)
				for s := range again.snapshots {
					wantNothingLost(t, all, s)
				}
			})
		}
	}
}

func wantNothingLost(t *testing.T, all, s *gateway.Snapshot) {
	t.Helper()
	wantEqual(t, all.Entry, s.Entry)
	wantEqual(t, all.Services, s.Services)
	wantEqual(t, all.Mesh, s.Mesh)
	wantEqual(t, all.Roots, s.Roots)
	wantEqual(t, all.Leaf, s.Leaf)
	wantEqual(t, len(all.Instances), len(s.Instances))
	wantPart(t, all.Chains, s.Chains)
	wantPart(t, maps.Collect(all.Endpoints.All()), maps.Collect(s.Endpoints.All()))
	wantPart(t, all.MeshGateways, s.MeshGateways)
	wantPart(t, all.Peers, s.Peers)
}

// wantPart checks that each value of part is as in all.
func wantPart[K comparable, V any](t *testing.T, all, part map[K]V) {
	t.Helper()
	for k, v := range part {
		wantEqual(t, all[k], v)
	}
}

// A service whose row is hidden by ACLs still has one if the entry names it. The row
// has no chain, so that its port is held back.
func TestAHiddenServiceAtARestartIsHeldBack(t *testing.T) {
	for name, shown := range map[string][]string{"one": {"web"}, "all": nil} {
		t.Run(name, func(t *testing.T) {
			c := newFakeGatewayWithInstances(t, "web", "api")
			hidden := servicesAnswer(shown...)
			hidden.hidden = true
			c.set(servicesPath, hidden)
			c.set("/v1/config/ingress-gateway", reply{body: `[{"Name": "gateway", "Listeners": [{"Port": 8080, "Protocol": "http",
				"Services": [{"Name": "web"}, {"Name": "api", "Hosts": ["api.example"]}]}]}]`})
			w := start(t, c.watcherWithShortTimeouts(t), "gateway")
			s := w.next(t, anyOne)
			wantServices(t, s, "api", "web")
			if len(s.Chains) != len(shown) || s.Chains[gateway.ServiceName{Name: "api"}] != nil {
				t.Errorf("chains %v, want those of %v", s.Chains, shown)
			}
			wantEqual(t, []string{"api.example"}, s.Services[0].Hosts)
			if s.Leaf == nil {
				t.Error("there is no certificate, which the listener that stays needs")
			}
			wantProblem(t, s, `service "api" on port 8080 of gateway "gateway"`, "give Usher's token service:read on it")

			c.set(servicesPath, servicesAnswer("web", "api"))
			s = w.next(t, func(s *gateway.Snapshot) bool { return len(s.Chains) == 2 })
			wantServices(t, s, "api", "web")
			wantEqual(t, nil, s.Problems)
		})
	}
}

// Usher cannot know which services a wildcard matches, so it serves the visible ones.
// It withholds the port only if none is visible.
func TestAHiddenServiceOfAWildcard(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web")
	c.set("/v1/config/ingress-gateway", entryOf("*"))
	wildcard := strings.ReplaceAll(servicesAnswer("web").body, `"Port"`, `"FromWildcard": true, "Port"`)
	c.set(servicesPath, reply{body: wildcard, hidden: true})
	w := start(t, c.watcherWithShortTimeouts(t), "gateway")
	s := w.next(t, anyOne)
	wantServices(t, s, "web")
	wantProblem(t, s, `services of gateway "gateway"`, "service:read on all services")
	w.stop()

	c.set(servicesPath, reply{body: "[]", hidden: true})
	w = start(t, c.watcherWithShortTimeouts(t), "gateway")
	s = w.next(t, anyOne)
	wantServices(t, s, "*")
	wantEqual(t, 0, len(s.Chains))
	wantProblem(t, s, `service "*" on port 8080 of gateway "gateway"`, "held back")
	c.set(servicesPath, reply{body: wildcard})
	wantServices(t, w.next(t, func(s *gateway.Snapshot) bool { return len(s.Chains) == 1 }), "web")
}

// An answer without a service that the entry names counts as incomplete. If it stays
// so, Usher accepts it. This holds at a restart and later.
func TestRowsThatAreMissing(t *testing.T) {
	const patience = time.Second
	for name, body := range map[string]string{"one": servicesAnswer("web").body, "all": "[]"} {
		for _, restart := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, at a restart: %v", name, restart), func(t *testing.T) {
				t.Parallel()
				c := newFakeGatewayWithInstances(t, "web", "api")
				log := &logRecorder{}
				watcher := NewWatcher(c.client(t, log), WatcherOptions{HealthTimeout: time.Millisecond, AnswerTimeout: patience})
				var w *testWatch
				if !restart {
					w = start(t, watcher, "gateway")
					complete := func(s *gateway.Snapshot) bool { return s.Endpoints.Len() == 2 }
					wantServices(t, w.next(t, complete), "api", "web")
				}
				begin := time.Now()
				c.set(servicesPath, reply{body: body})
				if restart {
					w = start(t, watcher, "gateway")
				}
				s := w.next(t, anyOne)
				if took := time.Since(begin); took < patience {
					t.Errorf("handed on after %v, with the services %v", took, s.Services)
				}
				if len(s.Services) == 2 || len(s.Problems) > 0 {
					t.Errorf("services %v, problems %v; want what Consul says", s.Services, s.Problems)
				}
				if !log.has("WARN the gateway's configuration in consul is incomplete") {
					t.Error("the log does not say what is missing")
				}
			})
		}
	}
}

// A gateway is never handed on without the services that its entry names if the
// answer is complete in time.
func TestRowsThatAreMissingForAMomentTakeNothingAway(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web", "api")
	w := start(t, c.watcher(t), "gateway")
	w.next(t, anyOne)
	c.set(servicesPath, reply{body: "[]"})
	c.waitHandled(t, servicesPath)
	c.set(servicesPath, servicesAnswer("web", "api"))
	c.waitHandled(t, servicesPath)
	c.set("/v1/connect/ca/roots", roots("next"))
	for s := range w.snapshots {
		wantServices(t, s, "api", "web")
		if s.Roots.TrustDomain == "next.consul" {
			break
		}
	}
}

// A snapshot never has only a part of the mesh gateways.
func TestMeshGatewaysOfWhichSomeCannotBeReadAreNotKnown(t *testing.T) {
	c := newFakeGatewayWithEverything(t)
	c.set("/v1/health/service/other", reply{status: http.StatusInternalServerError, body: "no"})
	w := start(t, c.watcherWithShortTimeouts(t), "gateway")
	s := w.next(t, func(s *gateway.Snapshot) bool { return len(s.Problems) > 0 })
	if s.MeshGateways["dc1"] != nil {
		t.Errorf("mesh gateways %v", s.MeshGateways["dc1"])
	}
	wantProblem(t, s, `mesh gateways of datacenter "dc1"`, "consul answered 500")
	c.set("/v1/health/service/other", sidecar(5, "passing"))
	s = w.next(t, func(s *gateway.Snapshot) bool { return s.MeshGateways["dc1"] != nil })
	wantEqual(t, 2, len(s.MeshGateways["dc1"].Endpoints))
}

// After the answer timeout, Usher accepts that Consul has no such peering.
func TestAPeeringThatThereIsNotHasNoRoots(t *testing.T) {
	c := newFakeGatewayWithEverything(t)
	c.set(peeringPath, reply{status: http.StatusNotFound, body: "Peering not found"})
	c.set("/v1/health/connect/web?peer=east", reply{status: http.StatusInternalServerError, body: "no such peer"})
	s := start(t, c.watcherWithShortTimeouts(t), "gateway").next(t, func(s *gateway.Snapshot) bool { return len(s.Peers) > 0 })
	wantEqual(t, map[string]*gateway.Roots{"east": {}}, s.Peers)
	wantServices(t, s, "api", "web")
	wantProblem(t, s, `cluster peer "east"`, "Peering not found")
}

func wantProblem(t *testing.T, s *gateway.Snapshot, where, what string) {
	t.Helper()
	for _, p := range s.Problems {
		if p.Where == where && strings.Contains(p.What, what) {
			return
		}
	}
	t.Errorf("problems %v, want one of %s that says %q", s.Problems, where, what)
}

// has reports whether the log has a line with this beginning.
func (j *logRecorder) has(begin string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.ContainsFunc(j.lines, func(line string) bool { return strings.HasPrefix(line, begin) })
}

// TestANewWatchBeginsAfterTheOneBefore checks it because the end of a watch removes what the new one would have, such as
// the series of the certificate.
func TestANewWatchBeginsAfterTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWatcher(newTestClient(t, Config{}), WatcherOptions{})
		order := make(chan string, 3)
		endFirst := w.begin(gateway.ID{Name: "edge"})
		for _, name := range []string{"second", "third"} {
			go func() {
				end := w.begin(gateway.ID{Name: "edge"})
				order <- name + " begins"
				end()
			}()
			synctest.Wait()
		}
		w.begin(gateway.ID{Name: "another"})() // does not wait
		if len(order) > 0 {
			t.Fatal(<-order)
		}
		endFirst()
		wantEqual(t, []string{"second begins", "third begins"}, []string{<-order, <-order})
		synctest.Wait()
		if len(w.running) > 0 {
			t.Errorf("left: %v", w.running)
		}
	})
}
