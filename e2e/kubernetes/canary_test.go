//go:build kubernetes

package kubernetes

import (
	"net/http"
	"testing"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/pages"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestOneGatewayOfTwoMovesToUsher begins with one gateway, as the page says. With PROXY protocol
// at both load balancers, that one gives services the client's address, and the
// other answers 400 as Consul's own does, which Usher's metrics say. Its pod was not
// replaced. Then both move.
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
	first := r.newReader(t, nil, "canary-gateway", gatewayName)
	first.Type(t, saveValues)
	first.Follow(t, pages.Find(t, "docs/kubernetes.md", "usher helm-values -f consul-values.yaml --chart-version 1.9.11 --gateway canary-gateway"))
	first.Follow(t, pages.Section(t, "docs/quickstart-kubernetes.md", "Switch on PROXY protocol"))
	r.balancer.WaitHeader(t, lab.SendV2)
	r.wantClientAddress(t)
	r.wantMetrics(t, r.gateway(t), consuls)
	balancer.WaitHeader(t, lab.SendV2)
	lab.WaitStatus(t, request, http.StatusBadRequest)
	r.waitUnserved(t, ushers, "second-gateway")
	if now := r.WaitRolledOut(t, namespace, second)[0]; now != other {
		t.Errorf("the pod %s of the other gateway was replaced by %s", other.Name(), now.Name())
	}

	both := r.newReader(t, nil, "canary-gateway", "second-gateway")
	both.Type(t, "cp "+first.Type(t, "printf %s $HOME")+"/consul-values.yaml .")
	both.Follow(t, pages.Find(t, "docs/helm-values.md", "usher helm-values -f consul-values.yaml --chart-version 1.9.11 |"))
	r.gateway(t)
	r.WaitRolledOut(t, namespace, second)
	both.Follow(t, pages.Section(t, "docs/helm-values.md", "Check what runs"))
	lab.WaitStatus(t, request, http.StatusOK)
}
