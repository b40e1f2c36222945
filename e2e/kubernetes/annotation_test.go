//go:build kubernetes

package kubernetes

import (
	"testing"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
)

// Values that the user adds to the lab's.
const (
	ppv2Values   = "testdata/lab/consul-values-ppv2.yaml" // PROXY protocol at the load balancer
	strictValues = "testdata/strict.yaml"                 // a setting of Usher
)

// TestGatewayIsPutUnderUsherAndBack is the lab with Usher, by values of the Consul
// chart alone. With the mode strict, the load balancer's headers give the log and
// the service the client's address, and connections without a header are closed.
// With the mode auto, the listener follows the annotation of the Service. One
// helm upgrade without the override leads back to Consul's own.
func TestGatewayIsPutUnderUsherAndBack(t *testing.T) {
	for _, with := range []struct{ chart, envoy string }{
		{chartNow, lab.EnvoyNew},
		{chartNext, lab.EnvoyOld},
		{chartOld, lab.EnvoyOld},
	} {
		t.Run(with.chart+", Envoy "+with.envoy, func(t *testing.T) {
			r := installConsul(t, with.chart, cluster.Options{Consul: lab.ConsulNew, Envoy: with.envoy})
			r.installUsher(t)
			r.testStrict(t)
			r.testAuto(t)
			r.upgrade(t)
			r.balancer.WaitHeader(t, lab.SendNone)
			r.wantBalancerAddress(t)
		})
	}
}

// testStrict puts the gateway under Usher with the mode strict.
func (r *consulRelease) testStrict(t *testing.T) {
	t.Helper()
	r.adopt(t, ppv2Values, strictValues)
	gateway := r.gateway(t)
	r.balancer.WaitHeader(t, lab.SendV2)
	r.wantClientAddress(t)
	r.WaitMode(t, gateway.Host, "strict")
}

// testAuto puts the gateway under Usher with the mode auto, and takes the
// annotation of its Service away and back.
func (r *consulRelease) testAuto(t *testing.T) {
	t.Helper()
	r.adopt(t, ppv2Values)
	gateway := r.gateway(t)
	r.wantClientAddress(t)
	r.WaitMode(t, gateway.Host, "strict")

	// New streams with new tokens, as after the kubelet's rotation.
	gateway.RotateTokens()
	r.waitConnected(t, gateway, r.restartUsher(t))
	r.adopt(t)
	r.balancer.WaitHeader(t, lab.SendNone)
	r.WaitMode(t, gateway.Host, "off")
	r.wantBalancerAddress(t)

	r.adopt(t, ppv2Values)
	r.balancer.WaitHeader(t, lab.SendV2)
	r.WaitMode(t, gateway.Host, "strict")
	r.wantClientAddress(t)
	if now := r.gateway(t).Name(); now != gateway.Name() {
		t.Errorf("the annotation of the Service replaced the gateway's pod %s by %s", gateway.Name(), now)
	}
}
