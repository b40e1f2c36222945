//go:build kubernetes

package kubernetes

import (
	"testing"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestRollOutOfAServerThatDrains shows that the cluster and its load balancer lose
// no request themselves: a Deployment whose program ends gracefully is rolled
// out under load. What is lost in other stories is the gateway's.
func TestRollOutOfAServerThatDrains(t *testing.T) {
	c := cluster.Start(t, cluster.Options{Consul: lab.ConsulNew, Envoy: lab.EnvoyNew})
	manifest := testprocess.ReadFile(t, "testdata/echo.yaml")
	c.Apply(t, "default", manifest)
	old := c.WaitRolledOut(t, "default", "echo")
	balancer := c.Balancer(t, "default", "echo")
	request := lab.Request{From: c.Client, To: balancer.Host.Addr(8080), Path: "/"}
	lab.WaitStatus(t, request, 200)
	load := lab.StartLoadAt(t, request, 300)
	load.WaitMore(t)
	c.Apply(t, "default", manifest+"          env: [{name: VERSION, value: \"2\"}]\n")
	current := c.WaitRolledOut(t, "default", "echo")
	load.WaitMore(t)
	load.WantNoFailures(t)
	if len(current) != 2 || current[0].Name() == old[0].Name() {
		t.Errorf("the pods %s were replaced by %s", old[0].Name(), current[0].Name())
	}
}
