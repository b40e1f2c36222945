package loadbalancer

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// fakeMemory is a state directory with one file.
type fakeMemory struct {
	mu      sync.Mutex
	payload []byte
	at      time.Time
	err     error         // of Write
	changed chan struct{} // receives after each Write
	again   func()        // that OnReplaced was given
}

func (m *fakeMemory) OnReplaced(f func()) (stop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.again = f
	return func() {}
}

// lose loses what was written.
func (m *fakeMemory) lose() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.payload = nil
	m.again()
}

func newFakeMemory() *fakeMemory { return &fakeMemory{changed: make(chan struct{}, 1000)} }

func (m *fakeMemory) Read(string) ([]byte, time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.payload == nil {
		return nil, time.Time{}, fs.ErrNotExist
	}
	return m.payload, m.at, nil
}

func (m *fakeMemory) Write(_ string, payload []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.payload, m.at = payload, time.Now()
	m.changed <- struct{}{}
	return nil
}

func (m *fakeMemory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// waitWritten waits until a mode of listener 8080 is written.
func (m *fakeMemory) waitWritten(t *testing.T, mode settings.Mode) {
	t.Helper()
	for {
		m.mu.Lock()
		found := strings.Contains(string(m.payload), `"8080":"`+string(mode)+`"`)
		m.mu.Unlock()
		if found {
			return
		}
		select {
		case <-m.changed:
		case <-time.After(30 * time.Second):
			t.Fatalf("the mode %q was not written, but %s", mode, m.payload)
		}
	}
}

// remembering are options with the memory.
func (a *apiServer) remembering(t *testing.T, m *fakeMemory, grace time.Duration) Options {
	t.Helper()
	o := a.options(t, "")
	o.Memory, o.Grace = m, grace
	return o
}

// next returns what is published next.
func next(t *testing.T, published <-chan *gateway.Balancer) *gateway.Balancer {
	t.Helper()
	select {
	case b := <-published:
		return b
	case <-time.After(30 * time.Second):
		t.Fatal("nothing was published")
		return nil
	}
}

// While the API server refuses, or does not answer at all, a restarted Usher has the modes from before. A grace period that
// runs ends when it would have.
func TestARestartWhileTheAPIServerIsAwayKeepsModes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		set    float64 // the minute since start in which headers were switched on
		mode   settings.Mode
		silent bool
	}{
		"strict":                     {0, settings.Strict, false},
		"strict, no answer":          {0, settings.Strict, true},
		"in a grace period":          {time.Since(start).Minutes(), settings.Permissive, false},
		"in a grace period, silence": {time.Since(start).Minutes(), settings.Permissive, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, m := newAPIServer(t), newFakeMemory()
			a.set(service("true", c.set))
			published, stop := run(t, a.remembering(t, m, time.Hour), edge)
			await(t, published, c.mode, "")
			m.waitWritten(t, c.mode)
			m.lose()
			m.waitWritten(t, c.mode) // a memory that is lost is written again
			stop()

			answer := make(chan struct{})
			a.change(func() {
				a.fault = func(w http.ResponseWriter, _ bool) bool {
					select {
					case <-answer:
						return false
					default:
					}
					if c.silent {
						<-answer
						return false
					}
					status(w, http.StatusServiceUnavailable, "ServiceUnavailable")
					return true
				}
			})
			o := a.remembering(t, m, time.Hour)
			published, _ = run(t, o, edge)
			first := next(t, published)
			if first.ForPort(8080).Mode != c.mode || first.ForPort(9).Mode != settings.Off {
				t.Errorf("the restarted Usher begins with %+v", first)
			}
			if len(first.Problems) == 0 {
				await(t, published, c.mode, "Meanwhile, listeners with mode auto keep their mode")
			}
			if len(gracePeriods(o)) > 0 {
				t.Error("a grace period runs while its Service is unknown")
			}
			close(answer)
			await(t, published, c.mode, "")
			ends := gracePeriods(o)[edge]
			if want := readIntent(service("true", c.set)).ports[8080].since.Truncate(time.Second).Add(time.Hour); c.mode == settings.Permissive && !ends[8080].Equal(want) {
				t.Errorf("the grace period ends at %v, want %v", ends[8080], want)
			}
		})
	}
}

// A grace period whose end passes while Usher is down ends when the API server answers: until then, Envoys keep what they have.
func TestAGracePeriodDoesNotEndWhileUsherIsDownAndTheAPIServerAway(t *testing.T) {
	t.Parallel()
	away := serviceEvent{err: errors.New("the API server is away")}
	s := service("true", 60)
	s.ResourceVersion = "1"
	for _, c := range []struct {
		downAt, upAt float64
		want         settings.Mode
	}{{65, 300, settings.Permissive}, {75, 300, settings.Strict}, {65, 66, settings.Permissive}} {
		m := newFakeMemory()
		r := newTestReconciler(t)
		r.memory = newMemory(m, gateway.ID{Name: "edge"}, edge, r.Logger)
		for minute := 60.0; minute <= c.downAt; minute += 5 {
			r.observeAt(minute, serviceIs(s))
			select {
			case m.payload = <-r.memory.next.C():
				m.at = r.time
			default: // no news
			}
		}
		r = newTestReconciler(t)
		r.memory = newMemory(m, gateway.ID{Name: "edge"}, edge, r.Logger)
		r.time = at(c.upAt)
		if !r.restore() {
			t.Fatal("nothing is restored")
		}
		r.observeAt(c.upAt, away)
		r.wantMode(c.want)
		r.observeAt(c.upAt+30, away)
		r.wantMode(c.want)
		r.observeAt(c.upAt+31, serviceIs(s))
		r.wantMode(settings.Strict)
	}
}

// An API server that answers decides at once: nothing that is out of date is published before.
func TestARestartTakesWhatTheAPIServerSays(t *testing.T) {
	t.Parallel()
	a, m := newAPIServer(t), newFakeMemory()
	a.set(service("false", 0))
	published, stop := run(t, a.remembering(t, m, time.Minute), edge)
	await(t, published, settings.Off, "")
	m.waitWritten(t, settings.Off)
	stop()
	a.set(service("true", 1))
	published, _ = run(t, a.remembering(t, m, time.Minute), edge)
	if first := next(t, published); first.ForPort(8080).Mode == settings.Off {
		t.Errorf("the restarted Usher begins with %+v", first)
	}
}

func TestMemoryThatFailsIsAProblem(t *testing.T) {
	t.Parallel()
	a, m := newAPIServer(t), newFakeMemory()
	m.fail(errors.New("the disk is full"))
	a.set(service("true", 0))
	published, _ := run(t, a.remembering(t, m, time.Hour), edge)
	await(t, published, settings.Strict, "the disk is full")
	m.fail(nil)
	await(t, published, settings.Strict, "")
	m.waitWritten(t, settings.Strict)
}

func TestMemoryThatCannotBeUsedIsNone(t *testing.T) {
	t.Parallel()
	for _, payload := range []string{"", "{", "{}", "null", `{"state": {"resourceVersion": "1", "ports": {"8080": {"state": 9}}}}`} {
		m := newFakeMemory()
		m.payload = []byte(payload)
		o := newTestReconciler(t).Options
		if got := newMemory(m, gateway.ID{Name: "edge"}, edge, o.Logger).restore(start); !reflect.DeepEqual(got, serviceState{}) {
			t.Errorf("%q is restored as %+v", payload, got)
		}
	}
}

func TestMemoryWritesWhatWaitsAtTheEnd(t *testing.T) {
	t.Parallel()
	for range 20 { // select takes any of the cases that are ready
		m := newFakeMemory()
		memory := newMemory(m, gateway.ID{Name: "edge"}, edge, newTestReconciler(t).Logger)
		memory.next.Put([]byte("last"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		memory.run(ctx)
		if string(m.payload) != "last" {
			t.Fatalf("written is %q", m.payload)
		}
	}
}
