//go:build e2e

package e2e

import (
	"path/filepath"
	"testing"

	"github.com/hashicorp/consul/api"
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
	return newLab(t).startMesh(t, consulVersion, envoyVersion, secure)
}

// startMesh is startMeshLab on a network that there is already.
func (l *lab) startMesh(t *testing.T, consulVersion, envoyVersion string, secure bool) *meshLab {
	t.Helper()
	m := &meshLab{lab: l}
	m.Consul = startConsul(t, consulOptions{Version: consulVersion, Host: l.Control, Secure: secure})
	m.writeEntries(t)
	m.Echo = startEcho(t, l.Service, 8080)
	registerService(t, serviceOptions{
		Name: "static-server", Port: 8080, Consul: m.Consul, Host: l.Service, Envoy: envoyVersion,
	})
	m.HAProxy = startBalancer(t, balancerOptions{
		Host: l.Balancer, Targets: []*host{l.Gateway}, Ports: []int{8080}, Header: noHeader,
	})
	return m
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

// registerCatalog writes the lab's entries, and registers its gateway and its
// service without anybody who runs them.
func (l *lab) registerCatalog(t *testing.T, consul *consulAgent) {
	t.Helper()
	(&meshLab{lab: l, Consul: consul}).writeEntries(t)
	for _, registration := range []*api.CatalogRegistration{
		{Node: "gateway", Address: gatewayIP, Service: &api.AgentService{
			Kind: api.ServiceKindIngressGateway, ID: "ingress-gateway", Service: "ingress-gateway", Address: gatewayIP, Port: 8443,
		}},
		{Node: "service", Address: serviceIP, Service: &api.AgentService{
			ID: "static-server", Service: "static-server", Address: serviceIP, Port: 8080,
		}},
		{Node: "service", Address: serviceIP, Service: &api.AgentService{
			Kind: api.ServiceKindConnectProxy, ID: "static-server-sidecar-proxy", Service: "static-server-sidecar-proxy",
			Address: serviceIP, Port: 21000,
			Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "static-server"},
		}},
	} {
		if _, err := consul.Client.Catalog().Register(registration, nil); err != nil {
			t.Fatal(err)
		}
	}
}
