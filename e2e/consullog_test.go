//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestConsulServersThatReadTheirLogTakeNothingBack kills all servers of a datacenter, and starts them again. Until a server
// has read its log, it answers with an older state, although it knows a leader. No Envoy gets that.
func TestConsulServersThatReadTheirLogTakeNothingBack(t *testing.T) {
	t.Parallel()
	l := &lab.Lab{Network: lab.NewNetwork(t)}
	hosts := []*lab.Host{l.Control, l.AddHost(t, "control-2", "198.18.0.41"), l.AddHost(t, "control-3", "198.18.0.42")}
	servers := lab.StartConsulCluster(t, lab.ConsulOptions{Version: lab.ConsulNew, ACLs: true}, hosts)
	l.Consul = servers[0]
	l.RegisterCatalog(t, l.Consul)
	registerMany(t, l, []int{20000})
	lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Token: lab.ManagementToken})
	envoy := connectShownPorts(t, l, lab.ManagementToken)
	envoy.wait(t, map[string]int{"svc-0000": 20000}, testprocess.ChangeDeadline)
	makeLogLong(t, l.Consul)
	registerNumbered(t, l, 0, 20001)
	envoy.wait(t, map[string]int{"svc-0000": 20001}, testprocess.ChangeDeadline)

	for _, a := range servers {
		a.Kill()
	}
	for _, a := range servers {
		a.Process = a.Again(t)
	}
	testprocess.Eventually(t, "consul takes a change", testprocess.StartDeadline, func() error { return tryToRegister(l, 0, 20002) })
	for envoy.ports["svc-0000"] != 20002 {
		r := envoy.envoy.Next()
		envoy.envoy.Ack(r)
		envoy.take(t, r)
		if port := envoy.ports["svc-0000"]; port < 20001 {
			t.Errorf("the endpoint has the port %d, and had 20001 before", port)
		}
	}
}

// makeLogLong writes much to Consul, so that a server which starts takes a while to read it.
func makeLogLong(t *testing.T, a *lab.Consul) {
	t.Helper()
	value := []byte(strings.Repeat("x", 2<<10))
	for i := range 300 {
		var ops api.TxnOps
		for j := range 64 {
			ops = append(ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVSet, Key: fmt.Sprint(i, "/", j), Value: value}})
		}
		if _, _, _, err := a.Client.Txn().Txn(ops, nil); err != nil {
			t.Fatal(err)
		}
	}
}
