package loadbalancer

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// observeStored applies an event at some minute, with this stored state, and returns what
// is stored then.
func (r *testReconciler) observeStored(minute float64, e serviceEvent, text string) string {
	r.observeWith(minute, e, decodeState(text))
	return encodeState(r.state)
}

func versioned(s *corev1.Service, version int) serviceEvent {
	s.ResourceVersion = fmt.Sprint(version)
	return serviceIs(s)
}

// An Usher that starts at 66 finds in the store what is not in the Service. The API server
// has forgotten its history.
func TestRestartedUsherAgreesByTheStore(t *testing.T) {
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
		"the Service is deleted":       {[]step{{57, on(57, 1)}, {60, serviceEvent{synced: true}}}, serviceEvent{synced: true}, settings.Permissive, settings.Permissive},
		"an invalid value":             {[]step{{30, on(0, 1)}, {60, versioned(service("v2", 60), 2)}}, versioned(service("v2", 60), 2), settings.Strict, settings.Strict},
		"invalid, in a grace period":   {[]step{{55, on(55, 1)}, {60, versioned(service("v2", 60), 2)}}, versioned(service("v2", 60), 2), settings.Permissive, settings.Permissive},
		"preserved client IPs":         {[]step{{57, versioned(preservesClients(), 1)}, {60, serviceEvent{synced: true}}}, serviceEvent{synced: true}, settings.Strict, settings.Strict},
		"changed while Usher was down": {[]step{{30, on(0, 1)}}, removed(2), settings.Permissive, settings.Permissive},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := newTestReconciler(t), newTestReconciler(t)
			text := ""
			for _, s := range c.before {
				text = first.observeStored(s.minute, s.serviceEvent, text)
			}
			text = second.observeStored(66, c.then, text)
			first.observeStored(66, c.then, text)
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

func TestUshersAgreeByTheStore(t *testing.T) {
	first, second := newTestReconciler(t), newTestReconciler(t)
	on, off := versioned(service("true", 0), 1), versioned(service("", 0), 2)
	text := first.observeStored(30, on, "")
	text = second.observeStored(31, on, text)
	text = first.observeStored(60, off, text)
	if late := second.observeStored(61, on, text); late != text {
		t.Errorf("a late Usher has stored %s instead of %s", late, text)
	}
	second.wantMode(settings.Permissive)
	if same := second.observeStored(64, off, text); same != text {
		t.Errorf("stored is %s and then %s", text, same)
	}
	text = first.observeStored(65, serviceEvent{synced: true}, text)
	if same := second.observeStored(67, serviceEvent{synced: true}, text); same != text {
		t.Errorf("for a deleted Service, %s is stored and then %s", text, same)
	}
}

func TestStoredStateThatCannotBeReadIsIgnored(t *testing.T) {
	for _, text := range []string{"", "x", "{}", `{"version": "9", "others": {"told": "perhaps"}}`, `{"version": "9", "listeners": {"a": {}}}`} {
		r := newTestReconciler(t)
		r.observeStored(60, versioned(service("true", 0), 1), text)
		r.wantMode(settings.Strict)
	}
}

// implausible are states that no Usher can have stored.
var implausible = []string{
	"null", "[]", `{"version": null, "listeners": null, "others": null}`, `{"version": "9", "listeners": {"8080": null}}`, "1e999", `{"version": 9}`,
	`{"version": "9", "listeners": {"8080": {"told": "off", "changed": "9999-12-31T23:59:59-01:00"}}}`,
	`{"version": "9", "others": {"told": "off", "newest": "9999-12-31T23:59:59-23:59"}}`,
	`{"version": "9", "listeners": {"8080": {"told": "on", "stayed": "9999-12-31T23:59:59Z"}}}`,
	`{"version": "9", "listeners": {"8080": {"told": "off", "changed": "2999-01-01T00:00:00Z"}}}`,
	`{"version": "9", "listeners": {"8080": {"told": "off", "changed": "-0001-01-01T00:00:00Z"}}}`,
	`{"version": "9", "listeners": {"-1": {"told": "off"}}}`, `{"version": "9", "listeners": {"99999999999999999999": {"told": "off"}}}`, `{"version": "9", "listeners": {"65536": {"told": "off"}}}`,
}

func TestImplausibleStoredStateIsIgnored(t *testing.T) {
	for _, text := range implausible {
		r := newTestReconciler(t)
		text = r.observeStored(60, versioned(service("true", 0), 1), text)
		r.wantMode(settings.Strict)
		if s := decodeState(text); s.ResourceVersion != "1" && s.ResourceVersion != "9" {
			t.Errorf("after it %s is stored", text)
		}
	}
}

// A time in the first or last year can be in another year in UTC, which JSON does not
// allow.
func TestEveryTimeCanBeStored(t *testing.T) {
	for _, text := range []string{"0000-01-01T00:00:00+23:59", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"} {
		var when time.Time
		if err := when.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		when = utc(when)
		p := portState{portIntent: portIntent{State: proxyOn}, Changed: when, Modified: when, FrozenSince: when}
		s := decodeState(encodeState(serviceState{ResourceVersion: "1", Ports: map[int]portState{80: p}, OtherPorts: p}))
		if s.ResourceVersion != "1" || s.Ports[80].State != proxyOn || s.OtherPorts.State != proxyOn {
			t.Errorf("with %s it was stored as %+v", text, s)
		}
	}
}

// FuzzStoredState checks that no stored text makes Usher panic, and that the result can
// be stored and is the same when it is read.
func FuzzStoredState(f *testing.F) {
	for _, text := range implausible {
		f.Add(text)
	}
	f.Add(encodeState(serviceState{}.observe(readIntent(service("true", 0)), start)))
	mixed := portState{portIntent: portIntent{State: proxyMixed, RemovalProblem: problem.Problem{Where: "a", What: "b"}}}
	f.Add(encodeState(serviceState{ResourceVersion: "1", Ports: map[int]portState{80: mixed}}.freeze(start)))
	f.Fuzz(func(t *testing.T, text string) {
		s := decodeState(text)
		if again := encodeState(s); encodeState(decodeState(again)) != again {
			t.Errorf("%s is read and stored as %s", again, encodeState(decodeState(again)))
		}
		for _, e := range []serviceEvent{versioned(service("true", 0), 1), versioned(service("", 0), 2), {synced: true}, {err: errors.New("down")}} {
			r := newTestReconciler(t)
			if stored := r.observeStored(60, e, text); stored == "" {
				t.Errorf("after %+v nothing can be stored", e)
			}
			for port, state := range r.last.Ports {
				if port < 1 || port > 65535 {
					t.Errorf("port %d is %+v", port, state)
				}
			}
		}
	})
}

// watchStrict starts an Usher with a store, for a Service that sends headers.
func watchStrict(t *testing.T) (*apiServer, <-chan *gateway.Balancer) {
	t.Helper()
	a := newAPIServer(t)
	a.record = &corev1.ConfigMap{}
	a.set(service("true", 0))
	published := a.watchEdge(t, "record")
	await(t, published, settings.Strict, "")
	return a, published
}

func TestWatchStoresWhatItObserves(t *testing.T) {
	a, published := watchStrict(t)
	before := time.Now()
	a.set(service("", 0))
	await(t, published, settings.Permissive, "")
	s := a.waitStored(t, "2")
	if p := s.Ports[8080]; p.State != proxyOff || p.Changed.Before(before) || p.Changed.After(time.Now()) {
		t.Errorf("after %s, %+v is stored", before, s)
	}
	await(t, a.watchEdge(t, "record"), settings.Permissive, "")
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.record.Generation != 2 {
		t.Errorf("of two events, %d were stored", a.record.Generation)
	}
}

func TestListenersDoNotWaitForTheStore(t *testing.T) {
	a, published := watchStrict(t)
	a.waitStored(t, "1")
	stall := make(chan struct{})
	defer close(stall)
	a.change(func() { a.stall = stall })
	a.set(service("", 0))
	begin := time.Now()
	await(t, published, settings.Permissive, "")
	if waited := time.Since(begin); waited > storeTimeout/2 {
		t.Errorf("it was published after %v", waited)
	}
}

// The history that the API server still has may begin too late.
func TestStoredStateTakesPrecedenceOverHistory(t *testing.T) {
	now := time.Since(start).Minutes()
	a := newAPIServer(t)
	a.record = &corev1.ConfigMap{Data: map[string]string{"consul.edge": encodeState(serviceState{}.observe(readIntent(versioned(service("true", 0), 1).service), start))}}
	a.set(nil) // forgotten
	a.set(service("true", now-1))
	a.set(service("true", now))
	await(t, a.watchEdge(t, "record"), settings.Strict, "")
}

// Another Usher has stored, just before, that it was all over long ago.
func TestSlowerUsherAdoptsTheStoredState(t *testing.T) {
	a, published := watchStrict(t)
	a.change(func() {
		a.beforePut = func(m *corev1.ConfigMap) {
			m.Data = map[string]string{"consul.edge": `{"version": "2", "listeners": {"8080": {"told": "off", "changed": "2026-01-01T00:00:00Z"}}}`}
			m.Generation++
		}
	})
	a.set(service("", 0))
	await(t, published, settings.Off, "")
}

// Without the stored state Usher can only guess. It adopts the stored state once it can
// read it.
func TestStoredStateIsAdoptedOnceItCanBeRead(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.set(nil) // forgotten
	a.set(service("", 0))
	published := a.watchEdge(t, "record")
	await(t, published, settings.Off, "it does not exist; create an empty one")
	off := portIntent{State: proxyOff}
	removed := serviceState{
		ResourceVersion: "2", Ports: map[int]portState{8080: {portIntent: off, Changed: time.Now()}}, OtherPorts: portState{portIntent: off},
	}
	a.change(func() { a.record = &corev1.ConfigMap{Data: map[string]string{"consul.edge": encodeState(removed)}} })
	await(t, published, settings.Permissive, "")
}

func TestFailedUpdateIsRetried(t *testing.T) {
	r := newTestReconciler(t)
	r.observeStored(60, versioned(service("true", 0), 1), "")
	r.notStored = []problem.Problem{{Where: "a", What: "b"}}
	if wake := r.advanceTo(61); wake != retryDelay || !cmp.Equal(r.last.Problems, r.notStored) {
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
