package status_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/status"
)

var now = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return now.Add(-d) }

// state has one of everything.
func state() *status.State {
	const version = "ab7d70632c851194bd5e6745cf02f95e0cdafa22394287e5d27ce3125d08b8af"
	synced := func(name string, n int) status.Type {
		return status.Type{Type: name, Sync: status.Synced, Since: ago(time.Hour), Version: version, Resources: n}
	}
	return &status.State{
		Time:   now,
		Usher:  status.Usher{Version: "v1.2.3", Started: ago(3 * time.Hour), Ready: true, Warnings: []string{"Service consul/edge, listener 8080: grace period"}},
		Source: status.Source{Type: status.Consul, Answers: true},
		Gateways: []status.Gateway{
			{Name: "edge", Known: true, Entry: true, Instances: 5, Envoys: 2, Listeners: []status.Listener{
				{Port: 8080, Protocol: "http", Place: "the default", Mode: status.Mode{
					Asked: "auto", InForce: "permissive", Reason: "Kubernetes Service consul/edge is being switched", GraceEnd: now.Add(4 * time.Minute), Built: status.Current,
				}},
				{
					Port: 8443, Protocol: "http", TLS: true, Place: "usher.hcl:4", Mode: status.Mode{Asked: "strict", InForce: "strict", Unconfirmed: true, Built: status.Current},
					Instances: []status.Instance{{Node: "a", ServiceID: "edge-1"}},
				},
				{
					Port: 8443, Protocol: "http", TLS: true, Place: "proxy-defaults", Mode: status.Mode{Asked: "off", InForce: "strict", Reason: "it cannot be built", Built: status.Kept},
					Instances: []status.Instance{{Node: "b", ServiceID: "edge-2"}, {Node: "b", ServiceID: "edge-3"}, {Node: "b", ServiceID: "edge-4"}, {Node: "b", ServiceID: "edge-5"}},
				},
				{Port: 9000, Protocol: "tcp", Mode: status.Mode{Reason: "it cannot be built", Built: status.HeldBack}},
			}},
			{Name: "empty", Known: true, Entry: true, Instances: 1},
			{Name: "lost", Known: true, Entry: true},
			{Name: "new"},
			{Name: "none", Known: true, Instances: 1},
		},
		Envoys: []status.Envoy{
			{Gateway: "edge", ServiceID: "edge-1", Node: "a", Address: "10.0.0.7", Release: "1.36.2", Protocol: "delta", Connected: ago(time.Hour), Types: []status.Type{
				synced("cluster", 12), {Type: "listener", Sync: status.Refused, Since: ago(90 * time.Second), Error: "address in use"}, {Type: "route", Sync: status.Stale, Since: ago(10 * time.Second)},
			}},
			{Gateway: "edge", ServiceID: "edge-2", Release: "unknown", Protocol: "sotw", Dataplane: true, Connected: ago(time.Minute), Types: []status.Type{synced("cluster", 12), synced("listener", 2)}},
			{Gateway: "lost", ServiceID: "lost", Address: "10.0.0.9", Release: "1.40.0", Protocol: "delta", Connected: now},
		},
		Problems: []status.Problem{
			{Gateway: "edge", Severity: problem.Outage, Where: "gateway edge: listener 9000", What: "it is held back"},
			{Severity: problem.Degraded, Where: "usher.hcl:2", What: "wrong"},
		},
	}
}

func wantText(t *testing.T, answers []status.Answer, wide bool, want string) {
	t.Helper()
	var got strings.Builder
	if err := status.Text(&got, answers, wide); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(got.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	if diff := cmp.Diff(strings.Split(strings.TrimPrefix(want, "\n"), "\n"), lines); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
}

func TestTableOfOneUsher(t *testing.T) {
	wantText(t, []status.Answer{{Address: "127.0.0.1:18001", State: state()}}, false, `
127.0.0.1:18001: usher v1.2.3, up 3h, ready; Consul answers; 3 Envoys
  Service consul/edge, listener 8080: grace period

GATEWAY  PORT  MODE    IN FORCE               GRACE    INSTANCES               WHY
edge     8080  auto    permissive             4m left  -                       Kubernetes Service consul/edge is being switched
edge     8443  strict  strict (not accepted)  -        edge-1                  -
edge     8443  off     strict (kept)          -        edge-2, edge-3, 2 more  it cannot be built
edge     9000  -       held back              -        -                       it cannot be built
empty    -     -       -                      -        -                       its config entry has no listeners
lost     -     -       -                      -        -                       no instance of it is registered
new      -     -       -                      -        -                       nothing is known about it yet
none     -     -       -                      -        -                       it has no ingress-gateway config entry

GATEWAY  INSTANCE  NODE  ADDRESS      ENVOY    CONNECTED  RESOURCES
edge     edge-1    a     10.0.0.7     1.36.2   60m        listener refused for 90s, route stale for 10s
edge     edge-2    -     unix socket  unknown  60s        synced
lost     lost      -     10.0.0.9     1.40.0   0s         it has asked for none

outage (gateway edge): gateway edge: listener 9000: it is held back
degraded: usher.hcl:2: wrong
`)
}

func TestWideTablesOfSeveralUshers(t *testing.T) {
	quiet := &status.State{
		Time: now, Usher: status.Usher{Version: "v1.2.3", Started: now, Reason: "usher is shutting down"},
		Source:   status.Source{Type: status.Consul, Error: "consul at 127.0.0.1:8500: connection refused", Since: ago(20 * time.Second)},
		Gateways: []status.Gateway{{Name: "edge", Known: true, Entry: true, Instances: 1, Restored: ago(2 * time.Hour)}},
		Problems: state().Problems[1:],
	}
	answers := []status.Answer{{Address: "one:1", State: state()}, {Address: "two:1", State: quiet}, {Address: "three:1", Error: "connection refused"}}
	wantText(t, answers, true, `
one:1: usher v1.2.3, up 3h, ready; Consul answers; 3 Envoys
  Service consul/edge, listener 8080: grace period
two:1: usher v1.2.3, up 0s, not ready: usher is shutting down; the source (consul) has not answered for 20s: consul at 127.0.0.1:8500: connection refused; 0 Envoys
  gateway edge is from the state directory, where it was saved 120m ago
three:1: connection refused

USHER  GATEWAY  PORT  PROTOCOL       MODE    IN FORCE               GRACE    INSTANCES                       SET IN          WHY
one:1  edge     8080  http           auto    permissive             4m left  -                               the default     Kubernetes Service consul/edge is being switched
one:1  edge     8443  http with TLS  strict  strict (not accepted)  -        edge-1                          usher.hcl:4     -
one:1  edge     8443  http with TLS  off     strict (kept)          -        edge-2, edge-3, edge-4, edge-5  proxy-defaults  it cannot be built
one:1  edge     9000  tcp            -       held back              -        -                               -               it cannot be built
one:1  empty    -     -              -       -                      -        -                               -               its config entry has no listeners
one:1  lost     -     -              -       -                      -        -                               -               no instance of it is registered
one:1  new      -     -              -       -                      -        -                               -               nothing is known about it yet
one:1  none     -     -              -       -                      -        -                               -               it has no ingress-gateway config entry
two:1  edge     -     -              -       -                      -        -                               -               its config entry has no listeners

USHER  GATEWAY  INSTANCE  NODE  ADDRESS      ENVOY    PROTOCOL                        CONNECTED  CLUSTER                    LISTENER                  ROUTE
one:1  edge     edge-1    a     10.0.0.7     1.36.2   delta                           60m        synced 60m, 12 (ab7d7063)  refused 90s               stale 10s
one:1  edge     edge-2    -     unix socket  unknown  sotw, through consul-dataplane  60s        synced 60m, 12 (ab7d7063)  synced 60m, 2 (ab7d7063)  -
one:1  lost     lost      -     10.0.0.9     1.40.0   delta                           0s         -                          -                         -

one:1: outage (gateway edge): gateway edge: listener 9000: it is held back
degraded: usher.hcl:2: wrong
`)
}

func TestTextSaysThatThereIsNoProblem(t *testing.T) {
	files := &status.State{Time: now, Usher: status.Usher{Version: "devel", Started: now, Ready: true}, Source: status.Source{Type: status.Files, Answers: true}, Envoys: make([]status.Envoy, 1)}
	var got strings.Builder
	if err := status.Text(&got, []status.Answer{{Address: "a:1", State: files}}, false); err != nil {
		t.Fatal(err)
	}
	if text := got.String(); !strings.HasPrefix(text, "a:1: usher devel, up 0s, ready; from files; 1 Envoy\n") || !strings.HasSuffix(text, "\n\nno problems\n") {
		t.Errorf("got %s", text)
	}
	files.Envoys = nil
	wantText(t, []status.Answer{{Address: "a:1", State: files}}, false, `a:1: usher devel, up 0s, ready; from files; 0 Envoys
No Envoy is connected: see that the address for xDS in the bootstrap of each gateway's Envoy is Usher's (usher doctor says more).

no problems
`)
	wantText(t, []status.Answer{{Address: "a:1", Error: "connection refused"}}, false, "a:1: connection refused\n")
}

func TestAStateFailsWithAProblemThatIsNoNotice(t *testing.T) {
	for severity, want := range map[problem.Severity]bool{problem.Outage: true, problem.Degraded: true, problem.Notice: false} {
		s := status.State{Problems: []status.Problem{{Severity: severity}}}
		if got := s.Failed(); got != want {
			t.Errorf("%s: %v, want %v", severity, got, want)
		}
	}
}

func TestJSONHasEverything(t *testing.T) {
	text, err := json.Marshal(state())
	if err != nil {
		t.Fatal(err)
	}
	var got status.State
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(state(), &got); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
	for _, want := range []string{`"asked":"auto"`, `"inForce":"permissive"`, `"severity":"outage"`, `"sync":"refused"`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is missing in %s", want, text)
		}
	}
}
