//go:build e2e

package e2e

import (
	"path/filepath"
	"testing"
)

// meshLab is the lab up to the gateway: Consul with the lab's config entries,
// the service with its sidecar, and the balancer in front of the gateway's
// host. What serves the gateway is the story's choice.
type meshLab struct {
	*lab
	Consul  *consulAgent
	Echo    *echoService
	HAProxy *balancer
}

// startMeshLab starts the lab without a gateway; Consul and the sidecar's Envoy
// have the versions. With secure, Consul is.
func startMeshLab(t *testing.T, consulVersion, envoyVersion string, secure bool) *meshLab {
	t.Helper()
	l := &meshLab{lab: newLab(t)}
	l.Consul = startConsul(t, consulOptions{Version: consulVersion, Host: l.Control, Secure: secure})
	l.writeEntries(t)
	l.Echo = startEcho(t, l.Service, 8080)
	registerService(t, serviceOptions{
		Name: "static-server", Port: 8080, Consul: l.Consul, Host: l.Service, Envoy: envoyVersion,
	})
	l.HAProxy = startBalancer(t, balancerOptions{
		Host: l.Balancer, Targets: []*host{l.Gateway}, Ports: []int{8080}, Header: noHeader,
	})
	return l
}

// writeEntries writes the lab's config entries as they are at its beginning, in
// an order that Consul takes.
func (l *meshLab) writeEntries(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"proxy-defaults", "service-defaults", "ingress-gateway", "service-intentions"} {
		l.Consul.writeEntry(t, readFile(t, filepath.Join("testdata", "lab", kind+".hcl")))
	}
}

// call is the lab's request, from the client through the balancer.
func (l *meshLab) call(path string) call {
	return call{From: l.Client, To: l.Balancer.addr(8080), Path: path}
}
