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

// annotatedValues give the gateway's pods another annotation.
const annotatedValues = "testdata/annotated.yaml"

// replaceGateway does something that replaces the gateway's pod, and waits until the old pod is gone.
func (r *consulRelease) replaceGateway(t *testing.T, f func()) {
	t.Helper()
	old := r.gateway(t)
	f()
	if now := r.gateway(t); now.Name() == old.Name() {
		t.Errorf("the gateway's pod %s was not replaced", old.Name())
	}
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

// TestGatewayMovesToUsherAndBackUnderLoad counts lost requests. A roll-out that ends pods of Consul's own loses
// some, because the chart's dataplane ends Envoy at once: how many is in the test's log. Everything else loses none:
// roll-outs that end pods at Usher, the way back among them, the annotation of the Service, there and back, and
// Usher's own roll-out.
func TestGatewayMovesToUsherAndBackUnderLoad(t *testing.T) {
	r := installConsul(t, chartNow, cluster.Options{Consul: lab.ConsulNew, Envoy: lab.EnvoyNew, CloudDelay: 2 * time.Second})
	r.installUsher(t)
	lab.WaitStatus(t, r.request("/"), 200)
	s := &loadedStory{load: lab.StartLoadAt(t, r.request("/"), loadRate)}

	const chartsOwn, moved = "the chart's own roll-out", "the gateway moves to Usher"
	s.step(t, chartsOwn, func() { r.replaceGateway(t, func() { r.upgrade(t, annotatedValues) }) })
	s.step(t, moved, func() { r.replaceGateway(t, func() { r.move(t) }) })
	s.step(t, "PROXY protocol is switched on", func() {
		r.move(t, ppv2Values)
		r.balancer.WaitHeader(t, lab.SendV2)
		r.waitAuto(t, r.gateway(t), "strict")
	})
	s.step(t, "roll-out with PROXY protocol", func() {
		r.replaceGateway(t, func() { r.move(t, ppv2Values, annotatedValues) })
	})
	s.step(t, "PROXY protocol is switched off", func() {
		r.move(t, annotatedValues)
		r.balancer.WaitHeader(t, lab.SendNone)
		r.waitAuto(t, r.gateway(t), "off")
	})
	s.step(t, "roll-out", func() { r.replaceGateway(t, func() { r.move(t) }) })
	s.step(t, "Usher is rolled out", func() { r.restartUsher(t) })
	s.step(t, "the gateway goes back to Consul", func() { r.replaceGateway(t, func() { r.upgrade(t) }) })
	lost := s.lost(t)
	delete(lost, chartsOwn)
	delete(lost, moved)
	for name, n := range lost {
		t.Errorf("%s: %d requests were lost, want none", name, n)
	}
}
