//go:build kubernetes

package kubernetes

import (
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
)

// loadRate is in requests a second.
const loadRate = 300

// loadedStory is a story under load, step by step.
type loadedStory struct {
	load *lab.Load
	lost map[string]int // requests without an answer 200 during each step
}

func (s *loadedStory) failures() int {
	s.load.Mu.Lock()
	defer s.load.Mu.Unlock()
	return len(s.load.Failures)
}

// step does something, and counts the requests that were lost until the load has
// gone on for a while.
func (s *loadedStory) step(t *testing.T, name string, f func()) {
	t.Helper()
	before, begin := s.failures(), time.Now()
	f()
	s.load.WaitMore(t)
	s.lost[name] = s.failures() - before
	t.Logf("%s: %.1fs, %d requests lost", name, time.Since(begin).Seconds(), s.lost[name])
	s.load.Mu.Lock()
	defer s.load.Mu.Unlock()
	for _, failure := range s.load.Failures[before:] {
		t.Log(failure)
	}
}

// TestGatewayIsPutUnderUsherAndBackUnderLoad counts lost requests. What changes
// without a roll-out of the gateway loses none: the annotation of the Service,
// there and back, and Usher's own roll-out. The roll-out of the gateway belongs
// to the chart, and the chart's own loses as many.
func TestGatewayIsPutUnderUsherAndBackUnderLoad(t *testing.T) {
	r := installConsul(t, chartNow, cluster.Options{Consul: lab.ConsulNew, Envoy: lab.EnvoyNew, CloudDelay: 2 * time.Second})
	r.installUsher(t)
	lab.WaitStatus(t, r.request("/"), 200)
	s := &loadedStory{load: lab.StartLoadAt(t, r.request("/"), loadRate), lost: map[string]int{}}

	const rollOut, adopted, on, off, restarted, back = "the chart's own roll-out", "the gateway is put under Usher",
		"PROXY protocol is switched on", "PROXY protocol is switched off", "Usher is rolled out", "the gateway goes back to Consul"
	s.step(t, rollOut, func() {
		r.upgrade(t, "testdata/annotated.yaml")
		r.gateway(t)
	})
	s.step(t, adopted, func() {
		r.adopt(t)
		r.gateway(t)
	})
	s.step(t, on, func() {
		r.adopt(t, ppv2Values)
		r.balancer.WaitHeader(t, lab.SendV2)
		r.WaitMode(t, r.gateway(t).Host, "strict")
	})
	s.step(t, off, func() {
		r.adopt(t)
		r.balancer.WaitHeader(t, lab.SendNone)
		r.WaitMode(t, r.gateway(t).Host, "off")
	})
	s.step(t, restarted, func() { r.restartUsher(t) })
	s.step(t, back, func() {
		r.upgrade(t)
		r.gateway(t)
	})
	s.load.Stop()
	for _, name := range []string{on, off, restarted} {
		if s.lost[name] > 0 {
			t.Errorf("%s: %d requests were lost, want none", name, s.lost[name])
		}
	}
}
