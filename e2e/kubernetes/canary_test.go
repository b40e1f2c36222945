//go:build kubernetes

package kubernetes

import (
	"net/http"
	"testing"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestOneGatewayOfTwoMovesToUsher begins with one gateway. With PROXY protocol
// at both load balancers, that one gives services the client's address, and the
// other answers 400 as Consul's own does, which Usher's metrics say. Its pod was not
// replaced.
func TestOneGatewayOfTwoMovesToUsher(t *testing.T) {
	t.Parallel()
	const twoGateways, second = "testdata/two-gateways.yaml", prefix + "-second-gateway"
	r := installConsul(t, chartNow, cluster.Options{Consul: lab.ConsulNew, Envoy: lab.EnvoyNew}, twoGateways, withMetrics)
	r.Apply(t, "default", testprocess.ReadFile(t, "testdata/second-gateway.yaml"))
	ushers := r.installUsher(t)
	other := r.WaitRolledOut(t, namespace, second)[0]
	balancer := r.Balancer(t, namespace, second)
	request := lab.Request{From: r.Client, To: balancer.Host.Addr(8080), Path: "/"}
	lab.WaitStatus(t, request, http.StatusOK)

	consuls := r.metrics(t, r.gateway(t))
	r.moveSome(t, []string{gatewayName}, ppv2Values)
	r.balancer.WaitHeader(t, lab.SendV2)
	r.wantClientAddress(t)
	r.wantMetrics(t, r.gateway(t), consuls)
	balancer.WaitHeader(t, lab.SendV2)
	lab.WaitStatus(t, request, http.StatusBadRequest)
	r.waitUnserved(t, ushers, "second-gateway")
	if now := r.WaitRolledOut(t, namespace, second)[0]; now != other {
		t.Errorf("the pod %s of the other gateway was replaced by %s", other.Name(), now.Name())
	}
}
