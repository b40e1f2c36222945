package controlplane

import (
	"testing"
	"testing/synctest"

	dto "github.com/prometheus/client_model/go"

	"github.com/usherproxy/usher/internal/gateway"
)

func TestAnotherEnvoyCostsNoCompile(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		r.connect(edge)
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		second := r.connect(edge)
		synctest.Wait()
		if second.listener(t, anyAddress) == nil {
			t.Fatal("the second Envoy got no listener")
		}
		var m dto.Metric
		if err := r.plane.options.Metrics.compileDuration.Write(&m); err != nil {
			t.Fatal(err)
		}
		if n := m.GetHistogram().GetSampleCount(); n != 1 {
			t.Errorf("compiled %d times for two equal Envoys and one snapshot, want once", n)
		}
	})
}
