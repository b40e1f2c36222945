package loadbalancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// observeRecorded applies an event at some minute, with this record, and returns what
// is recorded then.
func (r *testReconciler) observeRecorded(minute float64, e serviceEvent, text string) string {
	r.observeWith(minute, e, decodeState(text))
	return encodeState(r.state)
}

func versioned(s *corev1.Service, version int) serviceEvent {
	s.ResourceVersion = fmt.Sprint(version)
	return serviceIs(s)
}

// An Usher that starts at 66 finds in the record what is not in the Service. The API server
// has forgotten its history.
func TestRestartedUsherAgreesByTheRecord(t *testing.T) {
	on := func(set float64, version int) serviceEvent { return versioned(service("true", set), version) }
	removed := func(version int) serviceEvent { return versioned(service("", 0), version) }
	type step struct {
		minute float64
		serviceEvent
	}
	for name, c := range map[string]struct {
		before      []step
		then        serviceEvent
		at66, after settings.Mode
	}{
		"removed":                      {[]step{{30, on(0, 1)}, {60, removed(2)}}, removed(2), settings.Permissive, settings.Off},
		"removed, and something else":  {[]step{{30, on(0, 1)}, {60, removed(2)}, {64, removed(3)}}, removed(3), settings.Permissive, settings.Off},
		"something else is changed":    {[]step{{30, on(0, 1)}, {60, on(60, 2)}}, on(60, 2), settings.Strict, settings.Strict},
		"switched on, something else":  {[]step{{30, removed(1)}, {60, on(60, 2)}, {65, on(65, 3)}}, on(65, 3), settings.Permissive, settings.Strict},
		"the Service is deleted":       {[]step{{57, on(57, 1)}, {60, serviceEvent{}}}, serviceEvent{}, settings.Permissive, settings.Permissive},
		"an invalid value":             {[]step{{30, on(0, 1)}, {60, versioned(service("v2", 60), 2)}}, versioned(service("v2", 60), 2), settings.Strict, settings.Strict},
		"invalid, in a grace period":   {[]step{{55, on(55, 1)}, {60, versioned(service("v2", 60), 2)}}, versioned(service("v2", 60), 2), settings.Permissive, settings.Permissive},
		"preserved client IPs":         {[]step{{57, versioned(preservesClients(), 1)}, {60, serviceEvent{}}}, serviceEvent{}, settings.Strict, settings.Strict},
		"changed while Usher was down": {[]step{{30, on(0, 1)}}, removed(2), settings.Permissive, settings.Permissive},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := newTestReconciler(t), newTestReconciler(t)
			text := ""
			for _, s := range c.before {
				text = first.observeRecorded(s.minute, s.serviceEvent, text)
			}
			text = second.observeRecorded(66, c.then, text)
			first.observeRecorded(66, c.then, text)
			for _, r := range []*testReconciler{first, second} {
				r.wantMode(c.at66)
				r.advanceTo(69.9)
				r.wantMode(c.at66)
				r.advanceTo(70)
				r.wantMode(c.after)
			}
			if diff := cmp.Diff(first.last, second.last); diff != "" {
				t.Errorf("first -, restarted +:\n%s", diff)
			}
		})
	}
}

// preservesClients is a Service with a header whose connections come from the clients.
func preservesClients() *corev1.Service {
	s := service("true", 0)
	s.Annotations[awsAttributes] = awsPreserveClientIP + "=true"
	return s
}

func TestUshersAgreeByTheRecord(t *testing.T) {
	first, second := newTestReconciler(t), newTestReconciler(t)
	on, off := versioned(service("true", 0), 1), versioned(service("", 0), 2)
	text := first.observeRecorded(30, on, "")
	text = second.observeRecorded(31, on, text)
	text = first.observeRecorded(60, off, text)
	if late := second.observeRecorded(61, on, text); late != text {
		t.Errorf("a late Usher has recorded %s instead of %s", late, text)
	}
	second.wantMode(settings.Permissive)
	if same := second.observeRecorded(64, off, text); same != text {
		t.Errorf("recorded is %s and then %s", text, same)
	}
	text = first.observeRecorded(65, serviceEvent{}, text)
	if same := second.observeRecorded(67, serviceEvent{}, text); same != text {
		t.Errorf("for a deleted Service, %s is recorded and then %s", text, same)
	}
}

func TestRecordThatCannotBeReadIsIgnored(t *testing.T) {
	for _, text := range []string{"", "x", "{}", `{"resourceVersion": "9", "otherPorts": {"state": "perhaps"}}`, `{"resourceVersion": "9", "ports": {"a": {}}}`} {
		r := newTestReconciler(t)
		r.observeRecorded(60, versioned(service("true", 0), 1), text)
		r.wantMode(settings.Strict)
	}
}

// recordOf is a record of a later revision, with this state of listener 8080 and of the other listeners.
func recordOf(ports, others string) string {
	return `{"resourceVersion": "9", "ports": ` + ports + `, "otherPorts": ` + others + `}`
}

const noHeaders = `{"state": "off"}`

// implausible are records that no Usher can have written.
var implausible = []string{
	"null", "[]", `{"resourceVersion": null, "ports": null, "otherPorts": null}`, "1e999", `{"resourceVersion": 9}`,
	recordOf(`{}`, `{}`), recordOf(`{"8080": null}`, noHeaders), recordOf(`{"8080": `+noHeaders+`}`, `null`),
	recordOf(`{"8080": {"state": "perhaps"}}`, noHeaders), recordOf(`{"8080": {"state": "unknown"}}`, noHeaders),
	recordOf(`{"8080": {"state": "off", "changed": "9999-12-31T23:59:59-01:00"}}`, noHeaders),
	recordOf(`{}`, `{"state": "off", "modified": "9999-12-31T23:59:59-23:59"}`),
	recordOf(`{"8080": {"state": "on", "frozenSince": "9999-12-31T23:59:59Z"}}`, noHeaders),
	recordOf(`{"8080": {"state": "off", "changed": "2999-01-01T00:00:00Z"}}`, noHeaders),
	recordOf(`{"8080": {"state": "off", "changed": "-0001-01-01T00:00:00Z"}}`, noHeaders),
	recordOf(`{"-1": {"state": "off"}}`, noHeaders), recordOf(`{"99999999999999999999": {"state": "off"}}`, noHeaders),
	recordOf(`{"65536": {"state": "off"}}`, noHeaders),
	recordOf(`{"8080": {"state": "on", "finding": {"number": 0}}}`, noHeaders),
	recordOf(`{"8080": {"state": "on", "finding": {"number": 1, "result": "perhaps"}}}`, noHeaders),
	recordOf(`{"8080": {"state": "on", "finding": {"number": 1, "followsFrom": "2999-01-01T00:00:00Z"}}}`, noHeaders),
	recordOf(`{"8080": {"state": "on", "finding": {"number": 1, "reversals": -1}}}`, noHeaders),
	recordOf(`{"8080": {"state": "on", "finding": {"number": 1, "without": -1}}}`, noHeaders),
	recordOf(`{"8080": {"state": "on", "finding": {"number": 1, "result": "unexpected"}}}`, noHeaders),
	recordOf(`{"8080": {"state": "off", "finding": {"number": 1, "result": "contradicted"}}}`, noHeaders),
	recordOf(`{"8080": {"state": "on", "finding": {"number": 1, "addresses": ["x"]}}}`, noHeaders),
	recordOf(`{"8080": {"state": "on", "finding": {"number": 1, "addresses": ["::1", "::2", "::3", "::4"]}}}`, noHeaders),
	recordOf(`{}`, `{"state": "off", "finding": {"number": 9000000}}`),
}

func TestImplausibleRecordIsIgnored(t *testing.T) {
	for _, text := range implausible {
		r := newTestReconciler(t)
		written := r.observeRecorded(60, versioned(service("true", 0), 1), text)
		r.wantMode(settings.Strict)
		if s := decodeState(written); s.ResourceVersion != "1" {
			t.Errorf("after %s, %s is recorded", text, written)
		}
	}
	r := newTestReconciler(t)
	r.observeRecorded(60, versioned(service("true", 0), 1), recordOf(`{"8080": `+noHeaders+`}`, noHeaders))
	r.wantMode(settings.Off) // it is plausible
}

// A time in the first or last year can be in another year in UTC, which JSON does not
// allow.
func TestEveryTimeCanBeRecorded(t *testing.T) {
	for _, text := range []string{"0000-01-01T00:00:00+23:59", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"} {
		var when time.Time
		if err := when.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		when = utc(when)
		p := listenerState{portIntent: portIntent{State: proxyOn}, Changed: when, Modified: when, FrozenSince: when}
		s := decodeState(encodeState(serviceState{ResourceVersion: "1", Ports: map[int]listenerState{80: p}, OtherPorts: p}))
		if s.ResourceVersion != "1" || s.Ports[80].State != proxyOn || s.OtherPorts.State != proxyOn {
			t.Errorf("with %s it was recorded as %+v", text, s)
		}
	}
}

// FuzzRecord checks that no recorded text makes Usher panic, and that the result can
// be recorded and is the same when it is read.
func FuzzRecord(f *testing.F) {
	for _, text := range implausible {
		f.Add(text)
	}
	f.Add(encodeState(serviceState{}.afterRevision(readIntent(service("true", 0)), start)))
	mixed := listenerState{portIntent: portIntent{State: proxyMixed, RemovalProblem: problem.Problem{Where: "a", What: "b"}}}
	f.Add(encodeState(serviceState{ResourceVersion: "1", Ports: map[int]listenerState{80: mixed}}.freeze(start)))
	f.Add(recordOf(`{"8080": {"state": "on", "finding": {"result": "contradicted", "number": 3, "at": "2026-01-01T12:00:00Z", "with": 1, "without": 2, "addresses": ["10.0.3.7"]}}}`, noHeaders))
	f.Add(recordOf(`{"8080": {"state": "off", "finding": {"result": "unexpected", "number": 1, "with": 5, "addresses": ["10.0.3.7"]}}}`, noHeaders))
	f.Fuzz(func(t *testing.T, text string) {
		s := decodeState(text)
		if again := encodeState(s); encodeState(decodeState(again)) != again {
			t.Errorf("%s is read and recorded as %s", again, encodeState(decodeState(again)))
		}
		for _, e := range []serviceEvent{versioned(service("true", 0), 1), versioned(service("", 0), 2), {}, {err: errors.New("down")}} {
			r := newTestReconciler(t)
			if recorded := r.observeRecorded(60, e, text); recorded == "" {
				t.Errorf("after %+v nothing can be recorded", e)
			}
			for port, state := range r.last.Ports {
				if port < 1 || port > 65535 {
					t.Errorf("port %d is %+v", port, state)
				}
			}
		}
	})
}

// watchStrict starts an Usher with a record, for a Service that sends headers.
func watchStrict(t *testing.T) (*apiServer, <-chan *gateway.Balancer) {
	t.Helper()
	a := newAPIServer(t)
	a.record = &corev1.ConfigMap{}
	a.set(service("true", 0))
	published := a.watchEdge(t, "record")
	await(t, published, settings.Strict, "")
	return a, published
}

func TestWatchRecordsWhatItReads(t *testing.T) {
	a, published := watchStrict(t)
	before := time.Now()
	a.set(service("", 0))
	await(t, published, settings.Permissive, "")
	s := a.waitRecorded(t, "2")
	if p := s.Ports[8080]; p.State != proxyOff || p.Changed.Before(before) || p.Changed.After(time.Now()) {
		t.Errorf("after %s, %+v is recorded", before, s)
	}
	await(t, a.watchEdge(t, "record"), settings.Permissive, "")
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.record.Generation != 2 {
		t.Errorf("of two events, %d were recorded", a.record.Generation)
	}
}

func TestListenersDoNotWaitForTheStore(t *testing.T) {
	a, published := watchStrict(t)
	a.waitRecorded(t, "1")
	stall := make(chan struct{})
	defer close(stall)
	a.change(func() { a.stall = stall })
	a.set(service("", 0))
	begin := time.Now()
	await(t, published, settings.Permissive, "")
	if waited := time.Since(begin); waited > recordTimeout/2 {
		t.Errorf("it was published after %v", waited)
	}
}

// The history that the API server still has may begin too late.
func TestRecordTakesPrecedenceOverHistory(t *testing.T) {
	now := time.Since(start).Minutes()
	a := newAPIServer(t)
	a.record = &corev1.ConfigMap{Data: map[string]string{"consul.edge": encodeState(serviceState{}.afterRevision(readIntent(versioned(service("true", 0), 1).service), start))}}
	a.set(nil) // forgotten
	a.set(service("true", now-1))
	a.set(service("true", now))
	await(t, a.watchEdge(t, "record"), settings.Strict, "")
}

// Another Usher has recorded, just before, that it was all over long ago.
func TestSlowerUsherAdoptsTheRecord(t *testing.T) {
	a, published := watchStrict(t)
	a.change(func() {
		a.beforePut = func(m *corev1.ConfigMap) {
			m.Data = map[string]string{"consul.edge": `{"resourceVersion": "2", "ports": {"8080": {"state": "off", "changed": "2026-01-01T00:00:00Z"}}, "otherPorts": {"state": "off"}}`}
			m.Generation++
		}
	})
	a.set(service("", 0))
	await(t, published, settings.Off, "")
}

// Without the record Usher can only guess. It adopts the record once it can
// read it.
func TestRecordIsAdoptedOnceItCanBeRead(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.set(nil) // forgotten
	a.set(service("", 0))
	published := a.watchEdge(t, "record")
	await(t, published, settings.Off, "it does not exist; create an empty one")
	off := portIntent{State: proxyOff}
	removed := serviceState{
		ResourceVersion: "2", Ports: map[int]listenerState{8080: {portIntent: off, Changed: time.Now()}}, OtherPorts: listenerState{portIntent: off},
	}
	a.change(func() { a.record = &corev1.ConfigMap{Data: map[string]string{"consul.edge": encodeState(removed)}} })
	await(t, published, settings.Permissive, "")
}

func TestFailedUpdateIsRetried(t *testing.T) {
	r := newTestReconciler(t)
	r.observeRecorded(60, versioned(service("true", 0), 1), "")
	r.recordProblems = []problem.Problem{{Where: "a", What: "b"}}
	if wake := r.advanceTo(61); wake != retryDelay || !cmp.Equal(r.last.Problems, r.recordProblems) {
		t.Errorf("wakes up after %v with problems %v, want %v", wake, r.last.Problems, retryDelay)
	}
}

func TestMissingConfigMapIsAProblem(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.set(service("true", 0))
	var last time.Time
	a.onMissing = func() { // it is created when Usher asks because of its timer, not of an event
		if last.IsZero() || time.Since(last) < retryDelay/2 {
			last = time.Now()
			return
		}
		a.record = &corev1.ConfigMap{}
	}
	published := a.watchEdge(t, "record")
	await(t, published, settings.Strict, "Kubernetes ConfigMap consul/record: it does not exist")
	await(t, published, settings.Strict, "")
}

// reported is what an Usher's Envoys report of 8080 at the Watcher's own time.
func reported(s evidence.Summary) evidence.Ports { return evidence.Ports{8080: s} }

// tally counts connections that ended just now.
func tally(count int) evidence.Tally {
	now := time.Now()
	return evidence.Tally{Count: count, First: now.Add(-time.Hour), Last: now, Began: now, Addresses: []netip.Addr{netip.MustParseAddr(balancerA)}}
}

// reports is an EvidenceSource that a test feeds.
type reports chan evidence.Ports

func (r reports) Watch(ctx context.Context, _ gateway.ID, _ gateway.KubernetesService, put func(evidence.Ports)) {
	for {
		select {
		case <-ctx.Done():
			return
		case ports := <-r:
			put(ports)
		}
	}
}

// watchReports starts an Usher with a record, whose Envoys' reports the test sends.
func (a *apiServer) watchReports(t *testing.T) (reports, <-chan *gateway.Balancer, func()) {
	t.Helper()
	o, r := a.options(t, "record"), make(reports)
	o.Evidence = r
	published, stop := run(t, o, edge)
	return r, published, stop
}

// Two Ushers run; one finds that connections have no header, and is killed. The other one, and one that starts later, know
// it, and all are strict again at the same time.
func TestUshersShareFindings(t *testing.T) {
	a, _ := watchStrict(t)
	first, publishedFirst, stopFirst := a.watchReports(t)
	await(t, publishedFirst, settings.Strict, "")
	a.change(func() { // another Usher has read a later revision
		a.record.Data["consul.edge"] = strings.Replace(a.record.Data["consul.edge"], `"resourceVersion":"1"`, `"resourceVersion":"9"`, 1)
	})
	first <- reported(evidence.Summary{WithoutHeader: tally(1240)})
	const found = "connections come without a PROXY header: 1240 of 1240 in the 10 minutes before"
	await(t, publishedFirst, settings.Permissive, found)
	a.waitFinding(t, func(f *finding) bool { return f.found(foundNone) })
	if s := a.waitRecorded(t, "9"); !s.Ports[8080].Finding.found(foundNone) {
		t.Errorf("recorded is %+v", s)
	}
	stopFirst()
	_, publishedSecond, stopSecond := a.watchReports(t)
	await(t, publishedSecond, settings.Permissive, found)
	stopSecond()
}

func TestFindingIsRecordedAfterTheRecordWasEmptied(t *testing.T) {
	a, _ := watchStrict(t)
	r, published, _ := a.watchReports(t)
	await(t, published, settings.Strict, "")
	a.change(func() { a.record.Data = nil })
	r <- reported(evidence.Summary{WithoutHeader: tally(3)})
	await(t, published, settings.Permissive, "connections come without a PROXY header")
	a.waitFinding(t, func(f *finding) bool { return f.found(foundNone) })
}

func TestFindingsAreSharedOnlyWhileTheAPIServerAnswers(t *testing.T) {
	r := newTestReconciler(t)
	r.Evidence, r.Record.Name = silent{}, "record"
	on := serviceIs(service("true", 0))
	if r.observeAt(60, on); !r.mustShare(at(60)) {
		t.Error("findings are not shared at the beginning")
	}
	if r.observeAt(61, serviceEvent{service: on.service, err: errors.New("down")}); r.mustShare(at(61)) {
		t.Error("findings are shared, though the API server does not answer")
	}
	if r.observeAt(62, serviceIs(service("", 0))); !r.mustShare(at(62)) {
		t.Error("a listener that is off does not learn that another Usher has seen headers")
	}
}

// An administrator who switches the reports off wants the listeners to follow their Service again.
func TestFindingsDoNotCountWithoutReports(t *testing.T) {
	a := newAPIServer(t)
	on := serviceState{}.afterRevision(readIntent(versioned(service("true", 0), 1).service), start)
	l := on.Ports[8080]
	l.Finding = l.Finding.withResult(foundNone, observation{}, at(1))
	on.Ports[8080] = l
	a.record = &corev1.ConfigMap{Data: map[string]string{"consul.edge": encodeState(on)}}
	a.set(service("true", 0))
	_, published, _ := a.watchReports(t)
	await(t, published, settings.Permissive, "connections come without a PROXY header")
	await(t, a.watchEdge(t, "record"), settings.Strict, "")
}

// waitFinding waits until a finding is recorded.
func (a *apiServer) waitFinding(t *testing.T, want func(*finding) bool) {
	t.Helper()
	for {
		a.mu.Lock()
		state, changed := decodeState(a.record.Data["consul.edge"]), a.changed
		a.mu.Unlock()
		if want(state.Ports[8080].Finding) {
			return
		}
		select {
		case <-changed:
		case <-time.After(30 * time.Second):
			t.Fatalf("the finding was not recorded, but %+v", state)
		}
	}
}

// A finding must not be lost because an Usher that does not know findings writes the record.
func TestFindingSurvivesAnOlderUsher(t *testing.T) {
	on := versioned(service("true", 0), 1)
	r := newTestReconciler(t)
	older := r.observeRecorded(30, on, "") // an older Usher records no findings
	r.state.Ports[8080] = listenerState{
		portIntent: r.state.Ports[8080].portIntent, Changed: r.state.Ports[8080].Changed, Modified: r.state.Ports[8080].Modified,
		Finding: (*finding)(nil).withResult(foundNone, observation{}, at(30)),
	}
	withFinding := encodeState(r.state)
	restarted := newTestReconciler(t)
	if again := restarted.observeRecorded(40, on, withFinding); again != withFinding {
		t.Errorf("a restarted Usher has recorded\n%s instead of\n%s", again, withFinding)
	}
	restarted.wantMode(settings.Permissive)
	label := versioned(service("true", 0), 2)
	if after := r.observeRecorded(50, label, older); !decodeState(after).Ports[8080].Finding.found(foundNone) {
		t.Errorf("after an older Usher has written, %s is recorded", after)
	}
	later := strings.Replace(older, `"resourceVersion":"1"`, `"resourceVersion":"3"`, 1)
	if after := r.observeRecorded(51, label, later); !decodeState(after).Ports[8080].Finding.found(foundNone) {
		t.Errorf("after an older Usher has written a later revision, %s is recorded", after)
	}
	var old struct { // what an older Usher reads
		Ports map[int]struct{ State proxyState }
	}
	if err := json.Unmarshal([]byte(withFinding), &old); err != nil || old.Ports[8080].State != proxyOn {
		t.Errorf("an older Usher reads %+v, %v", old, err)
	}
}

// Whichever of two Ushers reads the other's finding, both have the same afterwards.
func TestUshersAgreeOnFindings(t *testing.T) {
	first := (*finding)(nil).withResult(foundRefusals, observation{}, at(1))
	later := (*finding)(nil).withResult(foundRefusals, observation{}, at(2))
	none := (*finding)(nil).withResult(foundNone, observation{}, at(3))
	strict := (*finding)(nil).withHeaders(at(0), at(5))
	all := []*finding{
		nil, first, later, none, strict, (*finding)(nil).withHeaders(at(0), at(6)), strict.withObjection(),
		none.withHeaders(at(4), at(6)), none.withHeaders(at(4), at(7)), none.withHeaders(at(4), at(7)).withObjection(),
	}
	headers := (*finding)(nil).withUnexpectedHeaders(observation{}, at(1))
	unexpected := []*finding{
		nil, headers, (*finding)(nil).withUnexpectedHeaders(observation{}, at(2)), headers.withEnd(at(3), at(6)), headers.withEnd(at(3), at(7)),
		headers.withEnd(at(3), at(6)).withObjection(), headers.withEnd(at(3), at(6)).withUnexpectedHeaders(observation{}, at(8)),
	}
	stateWith := func(state proxyState, f *finding) serviceState {
		l := listenerState{portIntent: portIntent{State: state}, Changed: at(0), Finding: f}
		return serviceState{ResourceVersion: "1", Ports: map[int]listenerState{8080: l}}
	}
	for state, all := range map[proxyState][]*finding{proxyOn: all, proxyOff: unexpected} {
		for i, a := range all {
			for j, b := range all {
				one, other := stateWith(state, a), stateWith(state, b)
				if x, y := one.newer(other).Ports[8080].Finding, other.newer(one).Ports[8080].Finding; x != y {
					t.Errorf("of %d %+v and %d %+v, one Usher has %+v, and the other one %+v", i, a, j, b, x, y)
				}
			}
		}
	}
	stateOf := func(f *finding) serviceState { return stateWith(proxyOn, f) }
	for _, c := range []struct{ wins, loses *finding }{
		{first, nil},
		{none, first},
		{first, later},
		{none, strict},
		{strict.withObjection(), strict},
		{none.withHeaders(at(4), at(6)), none},
		{headers, nil},
		{headers.withEnd(at(3), at(6)), headers},
		{headers.withEnd(at(3), at(7)), headers.withEnd(at(3), at(6))},
	} {
		if !c.wins.supersedes(c.loses) {
			t.Errorf("%+v does not supersede %+v", c.wins, c.loses)
		}
	}
	other := stateOf(none)
	other.Ports[8080] = listenerState{portIntent: portIntent{State: proxyOn}, Changed: at(1), Finding: none}
	if got := stateOf(nil).newer(other).Ports[8080].Finding; got != nil {
		t.Errorf("the finding %+v is of another change of the Service", got)
	}
}
