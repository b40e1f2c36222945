//go:build kubernetes

package kubernetes

import (
	"net/http"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
)

// Values that the user adds to the lab's.
const (
	ppv2Values   = "testdata/lab/consul-values-ppv2.yaml" // PROXY protocol at the load balancer
	strictValues = "testdata/strict.yaml"                 // a setting of Usher
)

// TestGatewayMovesToUsherAndBack is the whole lab, by values of the Consul chart
// alone. Consul's own gateway answers 400 as soon as the load balancer sends PROXY
// headers. With Usher and the mode strict, the log and the service have the
// client's address. With the mode auto, the listener follows the annotation of the
// Service. One helm upgrade without the override moves it back to Consul's own.
// The chart of today does what the quickstart says.
func TestGatewayMovesToUsherAndBack(t *testing.T) {
	t.Parallel()
	for _, with := range []struct {
		chart, envoy string
		values       []string
	}{
		{chartNow, lab.EnvoyNew, nil},
		{chartNext, lab.EnvoyOld, []string{withMetrics}},
		{chartOld, lab.EnvoyOld, nil},
	} {
		t.Run(with.chart+", Envoy "+with.envoy, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			r := installConsul(t, with.chart, cluster.Options{Consul: lab.ConsulNew, Envoy: with.envoy}, with.values...)
			r.wantBalancerAddress(t)
			sinceStart(t, "from nothing to the first lab", begin)
			r.testWithoutUsher(t)
			if with.chart == chartNow {
				r.followQuickstart(t)
				return
			}
			r.testStrict(t, r.installUsher(t))
			r.testAuto(t)
			r.testBack(t)
		})
	}
}

// testWithoutUsher wants 400 from Consul's own gateway while the load balancer
// sends headers, and all as before when it does not any more.
func (r *consulRelease) testWithoutUsher(t *testing.T) {
	t.Helper()
	gateway := r.gateway(t)
	r.upgrade(t, ppv2Values)
	r.balancer.WaitHeader(t, lab.SendV2)
	lab.WaitStatus(t, r.request("/"), http.StatusBadRequest)
	r.upgrade(t)
	r.balancer.WaitHeader(t, lab.SendNone)
	r.wantBalancerAddress(t)
	r.wantSamePod(t, gateway)
}

// testStrict moves the gateway to Usher with the mode strict.
func (r *consulRelease) testStrict(t *testing.T, ushers []*cluster.Pod) {
	t.Helper()
	consuls := r.metrics(t, r.gateway(t))
	r.move(t, ppv2Values, strictValues)
	gateway := r.gateway(t)
	r.balancer.WaitHeader(t, lab.SendV2)
	r.wantClientAddress(t)
	r.WaitMode(t, gateway.Host, "strict")
	r.waitReported(t, ushers, "header")
	r.wantMetrics(t, gateway, consuls)
}

// testAuto moves the gateway to Usher with the mode auto, and takes the
// annotation of its Service away and back.
func (r *consulRelease) testAuto(t *testing.T) {
	t.Helper()
	r.move(t, ppv2Values)
	gateway := r.gateway(t)
	r.wantClientAddress(t)
	r.waitAuto(t, gateway, "strict")

	// New streams with new tokens, as after the kubelet's rotation.
	gateway.RotateTokens()
	r.waitConnected(t, gateway, r.restartUsher(t))
	r.move(t)
	r.balancer.WaitHeader(t, lab.SendNone)
	r.waitAuto(t, gateway, "off")
	r.wantBalancerAddress(t)

	r.move(t, ppv2Values)
	r.balancer.WaitHeader(t, lab.SendV2)
	r.waitAuto(t, gateway, "strict")
	r.wantClientAddress(t)
	r.wantSamePod(t, gateway)
}

// testBack moves the gateway back to Consul's own xDS.
func (r *consulRelease) testBack(t *testing.T) {
	t.Helper()
	r.upgrade(t)
	r.balancer.WaitHeader(t, lab.SendNone)
	r.wantBalancerAddress(t)
}

// wantSamePod wants that the annotation of the Service has replaced no pod.
func (r *consulRelease) wantSamePod(t *testing.T, gateway *cluster.Pod) {
	t.Helper()
	if now := r.gateway(t); now != gateway {
		t.Errorf("the annotation of the Service replaced the gateway's pod %s by %s", gateway.Name(), now.Name())
	}
}
