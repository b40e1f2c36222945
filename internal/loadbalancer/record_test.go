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

// noting tells the follower what the API server said at some minute, with what
// is noted, and gives what is noted then.
func (r *rig) noting(minute float64, h heard, text string) string {
	r.now = at(minute)
	r.hear(h, r.memory, parseNote(text), r.now)
	r.wait(minute)
	return noteOf(r.memory)
}

func versioned(s *corev1.Service, version int) heard {
	s.ResourceVersion = fmt.Sprint(version)
	return is(s)
}

// Whoever is started at 66 finds in the record what cannot be seen in the
// Service any more, and the API server has forgotten its past.
func TestARestartedUsherAgreesByTheRecord(t *testing.T) {
	on := func(set float64, version int) heard { return versioned(service("true", set), version) }
	gone := func(version int) heard { return versioned(service("", 0), version) }
	type step struct {
		minute float64
		heard
	}
	for name, c := range map[string]struct {
		before      []step
		then        heard
		at66, after settings.Mode
	}{
		"removed":                      {[]step{{30, on(0, 1)}, {60, gone(2)}}, gone(2), settings.Permissive, settings.Off},
		"removed, and something else":  {[]step{{30, on(0, 1)}, {60, gone(2)}, {64, gone(3)}}, gone(3), settings.Permissive, settings.Off},
		"something else is changed":    {[]step{{30, on(0, 1)}, {60, on(60, 2)}}, on(60, 2), settings.Strict, settings.Strict},
		"switched on, something else":  {[]step{{30, gone(1)}, {60, on(60, 2)}, {65, on(65, 3)}}, on(65, 3), settings.Permissive, settings.Strict},
		"the Service is deleted":       {[]step{{57, on(57, 1)}, {60, heard{answered: true}}}, heard{answered: true}, settings.Permissive, settings.Permissive},
		"a value that is no value":     {[]step{{30, on(0, 1)}, {60, versioned(service("v2", 60), 2)}}, versioned(service("v2", 60), 2), settings.Strict, settings.Strict},
		"no value, in a grace":         {[]step{{55, on(55, 1)}, {60, versioned(service("v2", 60), 2)}}, versioned(service("v2", 60), 2), settings.Permissive, settings.Permissive},
		"who keeps clients' addresses": {[]step{{57, versioned(keepsClients(), 1)}, {60, heard{answered: true}}}, heard{answered: true}, settings.Strict, settings.Strict},
		"changed while nobody watched": {[]step{{30, on(0, 1)}}, gone(2), settings.Permissive, settings.Permissive},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := newRig(t, 0), newRig(t, 0)
			text := ""
			for _, s := range c.before {
				text = first.noting(s.minute, s.heard, text)
			}
			text = second.noting(66, c.then, text)
			first.noting(66, c.then, text)
			for _, r := range []*rig{first, second} {
				r.wantMode(c.at66)
				r.wait(69.9)
				r.wantMode(c.at66)
				r.wait(70)
				r.wantMode(c.after)
			}
			if diff := cmp.Diff(first.b, second.b); diff != "" {
				t.Errorf("first -, restarted +:\n%s", diff)
			}
		})
	}
}

// keepsClients is a Service with a header whose connections come from the
// clients.
func keepsClients() *corev1.Service {
	s := service("true", 0)
	s.Annotations[awsAttributes] = awsPreserve + "=true"
	return s
}

func TestTwoUshersAgreeByTheRecord(t *testing.T) {
	first, second := newRig(t, 0), newRig(t, 0)
	on, off := versioned(service("true", 0), 1), versioned(service("", 0), 2)
	text := first.noting(30, on, "")
	text = second.noting(31, on, text)
	text = first.noting(60, off, text)
	if late := second.noting(61, on, text); late != text {
		t.Errorf("one that is late has noted %s instead of %s", late, text)
	}
	second.wantMode(settings.Permissive)
	if same := second.noting(64, off, text); same != text {
		t.Errorf("noted is %s and then %s", text, same)
	}
	text = first.noting(65, heard{answered: true}, text)
	if same := second.noting(67, heard{answered: true}, text); same != text {
		t.Errorf("of a Service that is gone, noted is %s and then %s", text, same)
	}
}

func TestANoteThatNobodyUnderstandsIsNone(t *testing.T) {
	for _, text := range []string{"", "x", "{}", `{"version": "9", "others": {"told": "perhaps"}}`, `{"version": "9", "listeners": {"a": {}}}`} {
		r := newRig(t, 0)
		r.noting(60, versioned(service("true", 0), 1), text)
		r.wantMode(settings.Strict)
	}
}

// absurd are notes that no Usher can have written.
var absurd = []string{
	"null", "[]", `{"version": null, "listeners": null, "others": null}`, `{"version": "9", "listeners": {"8080": null}}`, "1e999", `{"version": 9}`,
	`{"version": "9", "listeners": {"8080": {"told": "off", "changed": "9999-12-31T23:59:59-01:00"}}}`,
	`{"version": "9", "others": {"told": "off", "newest": "9999-12-31T23:59:59-23:59"}}`,
	`{"version": "9", "listeners": {"8080": {"told": "on", "stayed": "9999-12-31T23:59:59Z"}}}`,
	`{"version": "9", "listeners": {"8080": {"told": "off", "changed": "2999-01-01T00:00:00Z"}}}`,
	`{"version": "9", "listeners": {"8080": {"told": "off", "changed": "-0001-01-01T00:00:00Z"}}}`,
	`{"version": "9", "listeners": {"-1": {"told": "off"}}}`, `{"version": "9", "listeners": {"99999999999999999999": {"told": "off"}}}`, `{"version": "9", "listeners": {"65536": {"told": "off"}}}`,
}

func TestANoteThatNoUsherHasWrittenIsNone(t *testing.T) {
	for _, text := range absurd {
		r := newRig(t, 0)
		text = r.noting(60, versioned(service("true", 0), 1), text)
		r.wantMode(settings.Strict)
		if m := parseNote(text); m.version != "1" && m.version != "9" {
			t.Errorf("what is noted after it is %s", text)
		}
	}
}

// A time in the first or last year can be in another year in UTC, which JSON does not
// allow.
func TestEveryTimeCanBeNoted(t *testing.T) {
	for _, text := range []string{"0000-01-01T00:00:00+23:59", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"} {
		var when time.Time
		if err := when.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		h := held{tell: tell{signal: on}, changed: when, newest: when, stayed: when}
		m := parseNote(noteOf(memory{version: "1", listeners: map[int]held{80: h}, others: h}))
		if m.version != "1" || m.listeners[80].signal != on || m.others.signal != on {
			t.Errorf("with %s it was noted as %+v", text, m)
		}
	}
}

// FuzzNote checks that no note makes Usher panic. It also checks that the result can be
// noted, and is the same when it is read.
func FuzzNote(f *testing.F) {
	for _, text := range absurd {
		f.Add(text)
	}
	f.Add(noteOf(memory{}.hear(read(service("true", 0)), start)))
	f.Add(noteOf(memory{version: "1", listeners: map[int]held{80: {tell: tell{signal: mixed, kept: problem.Problem{Where: "a", What: "b"}}}}}.freeze(start)))
	f.Fuzz(func(t *testing.T, text string) {
		m := parseNote(text)
		if again := noteOf(m); noteOf(parseNote(again)) != again {
			t.Errorf("%s is read and noted as %s", again, noteOf(parseNote(again)))
		}
		for _, h := range []heard{versioned(service("true", 0), 1), versioned(service("", 0), 2), {answered: true}, {err: errors.New("down")}} {
			r := newRig(t, 0)
			if noted := r.noting(60, h, text); noted == "" {
				t.Errorf("after %+v nothing can be noted", h)
			}
			for port, behind := range r.b.Ports {
				if port < 1 || port > 65535 {
					t.Errorf("port %d is %+v", port, behind)
				}
			}
		}
	})
}

// strictByRecord is an Usher that notes, of a Service that sends headers.
func strictByRecord(t *testing.T) (*apiServer, <-chan *gateway.Balancer) {
	t.Helper()
	a := newAPIServer(t)
	a.record = &corev1.ConfigMap{}
	a.set(service("true", 0))
	said := a.watching(t, "record")
	await(t, said, settings.Strict, "")
	return a, said
}

func TestWatchNotesWhatItHears(t *testing.T) {
	a, said := strictByRecord(t)
	before := time.Now()
	a.set(service("", 0))
	await(t, said, settings.Permissive, "")
	m := a.noted(t, "2")
	if h := m.listeners[8080]; h.signal != off || h.changed.Before(before) || h.changed.After(time.Now()) {
		t.Errorf("after %s is noted %+v", before, m)
	}
	await(t, a.watching(t, "record"), settings.Permissive, "")
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.record.Generation != 2 {
		t.Errorf("two things were heard, and %d noted", a.record.Generation)
	}
}

func TestListenersDoNotWaitForTheRecord(t *testing.T) {
	a, said := strictByRecord(t)
	a.noted(t, "1")
	stall := make(chan struct{})
	defer close(stall)
	a.change(func() { a.stall = stall })
	a.set(service("", 0))
	begin := time.Now()
	await(t, said, settings.Permissive, "")
	if waited := time.Since(begin); waited > recordTime/2 {
		t.Errorf("it was told after %v", waited)
	}
}

// What the API server still has of the past may begin too late.
func TestWhatIsNotedCountsForMoreThanWhatIsRecalled(t *testing.T) {
	now := time.Since(start).Minutes()
	a := newAPIServer(t)
	a.record = &corev1.ConfigMap{Data: map[string]string{"consul.edge": noteOf(memory{}.hear(read(versioned(service("true", 0), 1).service), start))}}
	a.set(nil) // forgotten
	a.set(service("true", now-1))
	a.set(service("true", now))
	await(t, a.watching(t, "record"), settings.Strict, "")
}

// Another Usher has noted, just before, that it was all over long ago.
func TestWhoIsSlowerTakesOverWhatIsNoted(t *testing.T) {
	a, said := strictByRecord(t)
	a.change(func() {
		a.meddle = func(m *corev1.ConfigMap) {
			m.Data = map[string]string{"consul.edge": `{"version": "2", "listeners": {"8080": {"told": "off", "changed": "2026-01-01T00:00:00Z"}}}`}
			m.Generation++
		}
	})
	a.set(service("", 0))
	await(t, said, settings.Off, "")
}

// What is only known from the Service is a guess, which another Usher's note
// corrects when it can be read.
func TestWhoCouldNotReadTheRecordAtFirstTakesItOver(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.set(nil) // forgotten
	a.set(service("", 0))
	said := a.watching(t, "record")
	await(t, said, settings.Off, "there is no such ConfigMap")
	removed := memory{version: "2", listeners: map[int]held{8080: {tell: tell{signal: off}, changed: time.Now()}}, others: held{tell: tell{signal: off}}}
	a.change(func() { a.record = &corev1.ConfigMap{Data: map[string]string{"consul.edge": noteOf(removed)}} })
	await(t, said, settings.Permissive, "")
}

func TestWhatCannotBeNotedIsTriedAgain(t *testing.T) {
	r := newRig(t, 0)
	r.noting(60, versioned(service("true", 0), 1), "")
	r.unrecorded = []problem.Problem{{Where: "a", What: "b"}}
	if wake := r.wait(61); wake != recordAgain || !cmp.Equal(r.b.Problems, r.unrecorded) {
		t.Errorf("wakes up after %v with problems %v, want %v", wake, r.b.Problems, recordAgain)
	}
}

func TestARecordThatIsNotThereIsAProblem(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.set(service("true", 0))
	var last time.Time
	a.missed = func() { // it is made when the time for it makes Usher ask, and no news
		if last.IsZero() || time.Since(last) < recordAgain/2 {
			last = time.Now()
			return
		}
		a.record = &corev1.ConfigMap{}
	}
	said := a.watching(t, "record")
	await(t, said, settings.Strict, "Kubernetes ConfigMap consul/record: there is no such ConfigMap")
	await(t, said, settings.Strict, "")
}
