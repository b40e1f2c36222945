//go:build e2e

package e2e

import (
	"net/http"
	"testing"
)

// TestApacheBehindTheBalancer proves the balancer right: an Apache that
// understands PROXY protocol and stands directly behind it logs the client.
func TestApacheBehindTheBalancer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	apache := startApache(t, l.Service, 8080, proxyProtocol)
	startBalancer(t, balancerOptions{
		Host: l.Balancer, Targets: []*host{l.Service}, Ports: []int{8080}, Header: v2Header,
	})
	path := newPath()
	call{From: l.Client, To: l.Balancer.addr(8080), Path: path}.must(t).wantHello(t)
	if got := apache.client(t, path); got != clientIP {
		t.Errorf("Apache's log has %s for the client, want %s", got, clientIP)
	}
}

// TestApacheBehindTheGateway has the same Apache in the mesh, where the gateway
// reads the PROXY header and Apache reads the gateway's X-Forwarded-For.
func TestApacheBehindTheGateway(t *testing.T) {
	t.Parallel()
	l := startMeshLab(t, consulNew, envoyNew, false)
	l.Consul.writeEntry(t, `
Kind     = "service-defaults"
Name     = "apache"
Protocol = "http"
`)
	l.Consul.writeEntry(t, `
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [{
  Port     = 8080
  Protocol = "http"
  Services = [{ Name = "apache" }]
}]
`)
	apache := startApache(t, l.Service, 8081, forwardedFor)
	registerService(t, serviceOptions{
		Name: "apache", Port: 8081, Consul: l.Consul, Host: l.Service, Envoy: envoyNew, SidecarPort: 21001,
	})
	l.setMode(t, "strict")
	l.HAProxy.setHeader(t, v2Header)
	usher := startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul})
	startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoyNew, GRPCAddr: usher.GRPCAddr})

	request := l.call(newPath())
	request.Host = "apache.ingress.consul"
	waitStatus(t, request, http.StatusOK)
	request.must(t).wantHello(t)
	if got := apache.client(t, request.Path); got != clientIP {
		t.Errorf("Apache's log has %s for the client, want %s", got, clientIP)
	}
}
