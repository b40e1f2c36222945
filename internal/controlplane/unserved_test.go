package controlplane

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/usherproxy/usher/internal/evidence"
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

// Outside Kubernetes, the settings of a registration and of the config file say which listeners accept headers.
func TestInstancesThatExpectHeadersAreCountedAgainAfterAChange(t *testing.T) {
	inBubble(t, func(_ *testing.T, r *testPlane) {
		strict := func(id string) *gateway.Instance {
			return &gateway.Instance{Node: "a", ServiceID: id, Registration: strictLayer}
		}
		plain := &gateway.Instance{Node: "a", ServiceID: "plain"}
		r.put(snapshot(plain))
		r.wantGateway(0, 0)
		r.put(snapshot(plain, strict("one")))
		r.wantGateway(0, 1)
		r.put(snapshot(plain, strict("one"), strict("two")))
		r.wantGateway(0, 2)
		time.Sleep(unservedAfter)
		r.wantWarnings(1)
		r.plane.SetConfigFile(settings.File{All: strictLayer})
		synctest.Wait()
		r.wantGateway(0, 3)
		if n := testutil.ToFloat64(r.plane.options.Metrics.instances); n != 3 {
			t.Errorf("usher_gateway_instances is %v, want 3", n)
		}
		r.plane.SetConfigFile(settings.File{})
		r.put(snapshot(plain))
		r.wantGateway(0, 0)
	}, func(o *Options) { o.Gateways = []gateway.ID{{Name: "edge"}} })
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

// TestEndedWorkerLeavesNoSeries ends a gateway that has a series of each metric with the label gateway.
func TestEndedWorkerLeavesNoSeries(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		connections := r.withConnections()
		connections.set(settings.Permissive, evidence.Summary{WithHeader: seen(3)})
		e := r.connect(edge)
		r.put(instancesWith(settings.Permissive, settings.Strict))
		time.Sleep(connectionsInterval)
		accepts := r.problems.Rejected(edge, xds.Listener, xds.Rejection{Message: "no"})
		r.problems.HeldBack(&edge, []string{anyAddress}, false)
		synctest.Wait()
		want := []string{
			"usher_config_problems", "usher_gateway_envoys", "usher_gateway_instances", "usher_gateway_proxy_protocol_instances",
			"usher_held_back_listeners", "usher_listener_headers_only", "usher_listener_info", "usher_xds_nacks_total", "usher_xds_rejected",
		}
		if got := r.metricsOf("edge"); !slices.Equal(got, want) {
			t.Errorf("the gateway has %v, want %v", got, want)
		}
		if problems, err := testutil.GatherAndLint(r.metrics); err != nil || len(problems) > 0 {
			t.Errorf("promlint: %v, %v", problems, err)
		}

		r.problems.HeldBack(&edge, nil, true)
		accepts()
		e.leave()
		time.Sleep(r.plane.options.Linger)
		synctest.Wait()
		if got := r.metricsOf("edge"); len(got) > 0 {
			t.Errorf("%v outlive the gateway", got)
		}
	})
}

// metricsOf returns the names of the metrics that have a series of a gateway, sorted.
func (r *testPlane) metricsOf(gateway string) (names []string) {
	r.t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		isOf := func(m *dto.Metric) bool {
			return slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == "gateway" && l.GetValue() == gateway })
		}
		if slices.ContainsFunc(f.GetMetric(), isOf) {
			names = append(names, f.GetName())
		}
	}
	return names
}
