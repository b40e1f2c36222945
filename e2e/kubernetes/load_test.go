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
	load  *lab.Load
	steps []loadedStep
}

// loadedStep is a step that began and ended at these times of the load.
type loadedStep struct {
	name       string
	begin, end time.Duration
}

// step does something, and goes on until the load has been answered for a while.
func (s *loadedStory) step(t *testing.T, name string, f func()) {
	t.Helper()
	begin := time.Since(s.load.Started)
	f()
	s.load.WaitMore(t)
	s.steps = append(s.steps, loadedStep{name, begin, time.Since(s.load.Started)})
}

// lost ends the load, and counts for each step the requests that began during it
// and were not answered 200.
func (s *loadedStory) lost(t *testing.T) map[string]int {
	t.Helper()
	s.load.Stop()
	lost := map[string]int{}
	for _, step := range s.steps {
		for _, failure := range s.load.Failures {
			if step.begin <= failure.After && failure.After < step.end {
				lost[step.name]++
				t.Logf("%s: %v", step.name, failure)
			}
		}
	}
	for _, step := range s.steps {
		t.Logf("%s: %.1fs, %d requests lost", step.name, (step.end - step.begin).Seconds(), lost[step.name])
	}
	return lost
}

// TestGatewayIsPutUnderUsherAndBackUnderLoad counts lost requests. What changes
// without a roll-out of the gateway loses none: the annotation of the Service,
// there and back, and Usher's own roll-out. A roll-out of the gateway's pods loses
// some, as without Usher: the chart's dataplane ends Envoy at once.
func TestGatewayIsPutUnderUsherAndBackUnderLoad(t *testing.T) {
	r := installConsul(t, chartNow, cluster.Options{Consul: lab.ConsulNew, Envoy: lab.EnvoyNew, CloudDelay: 2 * time.Second})
	r.installUsher(t)
	lab.WaitStatus(t, r.request("/"), 200)
	s := &loadedStory{load: lab.StartLoadAt(t, r.request("/"), loadRate)}

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
	lost := s.lost(t)
	for _, name := range []string{on, off, restarted} {
		if lost[name] > 0 {
			t.Errorf("%s: %d requests were lost, want none", name, lost[name])
		}
	}
}
