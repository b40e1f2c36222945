package controlplane

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/xds"
)

// wantGateway compares the metrics of the gateway "edge".
func (r *testPlane) wantGateway(envoys, proxyProtocolInstances float64) {
	r.t.Helper()
	m := r.plane.options.Metrics
	if got := testutil.ToFloat64(m.envoys.WithLabelValues("edge")); got != envoys {
		r.t.Errorf("usher_gateway_envoys is %v, want %v", got, envoys)
	}
	if got := testutil.ToFloat64(m.proxyProtocolInstances.WithLabelValues("edge")); got != proxyProtocolInstances {
		r.t.Errorf("usher_gateway_proxy_protocol_instances is %v, want %v", got, proxyProtocolInstances)
	}
}

// wantWarnings compares how often the log says that no Envoy of the gateway is connected.
func (r *testPlane) wantWarnings(want int) {
	r.t.Helper()
	synctest.Wait()
	if got := strings.Count(r.log.String(), "no Envoy of the gateway is connected here"); got != want {
		r.t.Errorf("%d warnings, want %d:\n%s", got, want, &r.log)
	}
}

func TestGatewayWithoutAnEnvoyIsWatched(t *testing.T) {
	inKubernetes(t, func(t *testing.T, r *testPlane, b *fakeBalancers) {
		r.put(snapshot(behindService("edge")))
		b.wantWatched(t, "edge")
		time.Sleep(time.Hour)
		r.source.wantEvents(t, "watch edge")
		e := r.connect(edge)
		b.put("edge", withMode(settings.Strict))
		if e.listener(t, anyAddress) == nil {
			t.Error("the first Envoy has no listener")
		}
		e.leave()
		time.Sleep(time.Hour)
		r.source.wantEvents(t, "watch edge")
	}, gateway.ID{Name: "edge"})
}

func TestGatewayThatExpectsHeadersAndHasNoEnvoyIsLogged(t *testing.T) {
	inKubernetes(t, func(t *testing.T, r *testPlane, b *fakeBalancers) {
		second := behindService("edge")
		second.ServiceID = "edge-2"
		r.put(snapshot(behindService("edge"), second))
		b.wantWatched(t, "edge")
		time.Sleep(time.Hour)
		r.wantWarnings(0) // the mode is not known

		b.put("edge", withMode(settings.Off))
		time.Sleep(time.Hour)
		r.wantGateway(0, 0)
		r.wantWarnings(0)

		b.put("edge", withMode(settings.Permissive))
		r.wantGateway(0, 2)
		time.Sleep(unservedAfter - time.Millisecond)
		r.wantWarnings(0)
		time.Sleep(time.Millisecond)
		r.wantWarnings(1)
		b.put("edge", withMode(settings.Strict))
		time.Sleep(time.Hour)
		r.wantWarnings(1) // nothing has changed about it

		e := r.connect(edge)
		r.connect(edge).leave() // a second stream of the same Envoy
		r.wantGateway(1, 2)
		e.leave()
		synctest.Wait()
		r.wantGateway(0, 2)
		time.Sleep(unservedAfter)
		r.wantWarnings(2)
	}, gateway.ID{Name: "edge"})
}

func TestInstancesOnSeveralNodesMayHaveOneServiceID(t *testing.T) {
	inBubble(t, func(_ *testing.T, r *testPlane) {
		for _, node := range []string{"a", "b"} {
			r.connect(xds.Node{ID: "edge", Cluster: "edge", Metadata: map[string]string{"node_name": node}})
		}
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}, &gateway.Instance{Node: "b", ServiceID: "edge"}))
		r.wantGateway(2, 0)
	})
}

func TestEndedWorkerLeavesNoSeries(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		r.put(snapshot(behindService("edge")))
		r.wantGateway(1, 0)
		e.leave()
		time.Sleep(r.plane.options.Linger)
		synctest.Wait()
		m := r.plane.options.Metrics
		if n := testutil.CollectAndCount(m.envoys) + testutil.CollectAndCount(m.proxyProtocolInstances); n != 0 {
			t.Errorf("%d series are left", n)
		}
	})
}
