//go:build e2e

package e2e

import (
	"net/http"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
)

// TestApacheBehindTheBalancer checks the lab's balancer: an Apache that
// understands PROXY protocol logs the client directly behind it.
func TestApacheBehindTheBalancer(t *testing.T) {
	t.Parallel()
	l := lab.NewNetwork(t)
	apache := lab.StartApache(t, l.Service, 8080, lab.RemoteIPProxyProtocol)
	lab.StartHAProxy(t, lab.HAProxyOptions{
		Host: l.Balancer, Targets: []*lab.Host{l.Service}, Ports: []int{8080}, Header: lab.SendV2,
	})
	path := lab.NewPath()
	lab.Request{From: l.Client, To: l.Balancer.Addr(8080), Path: path}.MustDo(t).WantHello(t)
	if got := apache.WaitClient(t, path); got != lab.ClientIP {
		t.Errorf("Apache's log has %s for the client, want %s", got, lab.ClientIP)
	}
}

// TestApacheBehindTheGateway has the same Apache in the mesh, where the gateway
// reads the PROXY header and Apache reads the gateway's X-Forwarded-For.
func TestApacheBehindTheGateway(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	l.Consul.WriteEntry(t, `
Kind     = "service-defaults"
Name     = "apache"
Protocol = "http"
`)
	l.Consul.WriteEntry(t, `
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [{
  Port     = 8080
  Protocol = "http"
  Services = [{ Name = "apache" }]
}]
`)
	apache := lab.StartApache(t, l.Service, 8081, lab.RemoteIPForwardedFor)
	lab.RegisterService(t, lab.ServiceOptions{
		Name: "apache", Port: 8081, Consul: l.Consul, Host: l.Service, Envoy: lab.EnvoyNew, SidecarPort: 21001,
	})
	l.SetMode(t, "strict")
	l.HAProxy.SetHeader(t, lab.SendV2)
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
	lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})

	request := l.Request(lab.NewPath())
	request.Host = "apache.ingress.consul"
	lab.WaitStatus(t, request, http.StatusOK)
	request.MustDo(t).WantHello(t)
	if got := apache.WaitClient(t, request.Path); got != lab.ClientIP {
		t.Errorf("Apache's log has %s for the client, want %s", got, lab.ClientIP)
	}
}
