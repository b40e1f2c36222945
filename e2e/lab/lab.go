//go:build e2e

package lab

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Lab is the lab up to the gateway: Consul with the lab's config entries,
// the service with its sidecar, and the balancer in front of the gateway's
// host. What serves the gateway is the story's choice.
type Lab struct {
	*Network
	Consul  *Consul
	Echo    *EchoService
	HAProxy *HAProxy
}

// Start starts the lab without a gateway; Consul and the sidecar's Envoy
// have the versions. With secure, Consul is.
func Start(t *testing.T, consulVersion, envoyVersion string, secure bool) *Lab {
	t.Helper()
	return NewNetwork(t).Start(t, consulVersion, envoyVersion, secure)
}

// Start is startMeshLab on a network that there is already.
func (l *Network) Start(t *testing.T, consulVersion, envoyVersion string, secure bool) *Lab {
	t.Helper()
	m := &Lab{Network: l}
	m.Consul = StartConsul(t, ConsulOptions{Version: consulVersion, Host: l.Control, Secure: secure})
	m.writeEntries(t)
	m.Echo = StartEcho(t, l.Service, 8080)
	RegisterService(t, ServiceOptions{
		Name: "static-server", Port: 8080, Consul: m.Consul, Host: l.Service, Envoy: envoyVersion,
	})
	m.HAProxy = StartHAProxy(t, HAProxyOptions{
		Host: l.Balancer, Targets: []*Host{l.Gateway}, Ports: []int{8080}, Header: SendNone,
	})
	return m
}

// writeEntries writes the lab's config entries as they are at its beginning, in
// an order that Consul takes.
func (l *Lab) writeEntries(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"proxy-defaults", "service-defaults", "ingress-gateway", "service-intentions"} {
		l.Consul.WriteEntry(t, testprocess.ReadFile(t, filepath.Join("testdata", "lab", kind+".hcl")))
	}
}

// Request is the lab's request, from the client through the balancer.
func (l *Lab) Request(path string) Request {
	return Request{From: l.Client, To: l.Balancer.Addr(8080), Path: path}
}

// RegisterCatalog writes the lab's entries, and registers its gateway and its
// service without processes.
func (l *Network) RegisterCatalog(t *testing.T, consul *Consul) {
	t.Helper()
	(&Lab{Network: l, Consul: consul}).writeEntries(t)
	for _, registration := range []*api.CatalogRegistration{
		{Node: "gateway", Address: GatewayIP, Service: &api.AgentService{
			Kind: api.ServiceKindIngressGateway, ID: "ingress-gateway", Service: "ingress-gateway", Address: GatewayIP, Port: 8443,
		}},
		{Node: "service", Address: ServiceIP, Service: &api.AgentService{
			ID: "static-server", Service: "static-server", Address: ServiceIP, Port: 8080,
		}},
		{Node: "service", Address: ServiceIP, Service: &api.AgentService{
			Kind: api.ServiceKindConnectProxy, ID: "static-server-sidecar-proxy", Service: "static-server-sidecar-proxy",
			Address: ServiceIP, Port: 21000,
			Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "static-server"},
		}},
	} {
		if _, err := consul.Client.Catalog().Register(registration, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TCPPort is the port of the tcp listener, and of its service.
const TCPPort = 9000

// SetMode writes proxy-defaults with a mode of PROXY protocol.
func (l *Lab) SetMode(t *testing.T, mode string) {
	t.Helper()
	l.Consul.WriteEntry(t, testprocess.ReadFile(t, "testdata/lab/proxy-defaults.hcl")+fmt.Sprintf(`
Config {
  usher {
    proxy_protocol { mode = %q }
  }
}
`, mode))
}

// WantPlainRefused wants plain connections closed without an answer.
func (l *Lab) WantPlainRefused(t *testing.T) {
	t.Helper()
	if got, err := l.Request(NewPath()).Do(t.Context()); err == nil {
		t.Errorf("a connection without a PROXY header got %d %q, want it closed", got.Status, got.Body)
	}
}

// ForwardedFor is the X-Forwarded-For that the service got.
func (l *Lab) ForwardedFor(t *testing.T, path string) string {
	t.Helper()
	return strings.Join(l.Echo.Received(t, path).Header.Values("X-Forwarded-For"), ",")
}

// WantClientAddress waits until requests are answered, and wants the client's
// own address in the access log and at the service, and the balancer's beside
// it in the log.
func (l *Lab) WantClientAddress(t *testing.T, gateway *Envoy) {
	t.Helper()
	WaitStatus(t, l.Request("/"), http.StatusOK)
	path := NewPath()
	l.Request(path).MustDo(t).WantHello(t)
	entry := gateway.Log.WaitRequest(t, path)
	if got := entry.IP(t, "downstream_remote_address"); got != ClientIP {
		t.Errorf("access log has %s for the client, want %s", got, ClientIP)
	}
	if got := entry.IP(t, "downstream_direct_remote_address"); got != BalancerIP {
		t.Errorf("access log has %s for the balancer, want %s", got, BalancerIP)
	}
	if got := l.ForwardedFor(t, path); got != ClientIP {
		t.Errorf("the service got X-Forwarded-For %q, want %q", got, ClientIP)
	}
}

// WantBadRequest is the lab's second step on Consul's own xDS.
func (l *Lab) WantBadRequest(t *testing.T) {
	t.Helper()
	WaitStatus(t, l.Request("/"), http.StatusBadRequest)
}

// WantBalancerAddress is the lab's first step: the request is answered, and
// the service does not get the client's address.
func (l *Lab) WantBalancerAddress(t *testing.T, gateway *Envoy) {
	t.Helper()
	WaitStatus(t, l.Request("/"), http.StatusOK)
	path := NewPath()
	l.Request(path).MustDo(t).WantHello(t)
	if got := gateway.Log.WaitRequest(t, path).IP(t, "downstream_remote_address"); got != BalancerIP {
		t.Errorf("access log has %s for the client, want the balancer's %s", got, BalancerIP)
	}
	if got := l.Echo.Received(t, path).Header.Values("X-Forwarded-For"); len(got) != 0 {
		t.Errorf("the service got X-Forwarded-For %q, want none", got)
	}
}
