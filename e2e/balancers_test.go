//go:build e2e

package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/netip"
	"testing"

	"github.com/hashicorp/consul/api"
)

// balancersLab is a strict gateway with an http and a tcp listener.
type balancersLab struct {
	*meshLab
	gateway *envoy
}

// passage is a way through a balancer to both listeners of the gateway.
type passage struct {
	http   call
	tcp    tcpCall
	client string // the client's address, as the balancer says it
	peer   string // the balancer's
}

// TestBalancers has the balancers that people have in front of a strict gateway,
// each with its own way to write PROXY headers. The log and the service have the
// client's address behind all of them.
func TestBalancers(t *testing.T) {
	t.Parallel()
	l := startBalancersLab(t)
	for _, header := range []proxyHeader{v1Header, v2Header, v2SSLHeader} {
		t.Run("HAProxy with "+string(header), func(t *testing.T) {
			l.HAProxy.setHeader(t, header)
			l.wantClient(t, l.through(l.Balancer))
		})
	}
	t.Run("HAProxy that ends TLS", func(t *testing.T) {
		h := l.addHost(t, "haproxy-tls", "198.18.0.12")
		startBalancer(t, balancerOptions{
			Host: h, Targets: []*host{l.Gateway}, Ports: []int{8080, tcpPort}, Header: v2SSLHeader, Certificate: certificateFile(t, labHost),
		})
		p := l.through(h)
		p.http.TLS = &tls.Config{InsecureSkipVerify: true} // the balancer's certificate is not the story
		p.tcp.TLS = p.http.TLS
		l.wantClient(t, p)
	})
	t.Run("nginx", func(t *testing.T) {
		h := l.addHost(t, "nginx", "198.18.0.13")
		startNginx(t, h, l.Gateway, 8080, tcpPort)
		l.wantClient(t, l.through(h))
	})
	t.Run("AWS network load balancer, client behind a VPC endpoint", func(t *testing.T) {
		header := preface{text: awsText("vpce-08d2bf15fac5001c9")}
		l.wantClient(t, passage{
			http:   call{From: l.Balancer, To: l.Gateway.addr(8080), Proxy: header},
			tcp:    tcpCall{From: l.Balancer, To: l.Gateway.addr(tcpPort), Headers: []io.WriterTo{header}},
			client: headerClient.Addr().String(), peer: balancerIP,
		})
	})
}

func startBalancersLab(t *testing.T) *balancersLab {
	t.Helper()
	l := &balancersLab{meshLab: startMeshLab(t, consulNew, envoyNew, false)}
	startTCPEcho(t, l.Service, tcpPort)
	registerService(t, serviceOptions{
		Name: "static-tcp", Port: tcpPort, Consul: l.Consul, Host: l.Service, Envoy: envoyNew, SidecarPort: 21001,
	})
	_, _, err := l.Consul.Client.ConfigEntries().Set(&api.IngressGatewayConfigEntry{
		Kind: api.IngressGateway, Name: "ingress-gateway",
		Listeners: []api.IngressListener{
			{Port: 8080, Protocol: "http", Services: []api.IngressService{{Name: "static-server"}}},
			{Port: tcpPort, Protocol: "tcp", Services: []api.IngressService{{Name: "static-tcp"}}},
		},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.setMode(t, "strict")
	l.HAProxy.Kill() // it has one port only
	l.HAProxy = startBalancer(t, balancerOptions{
		Host: l.Balancer, Targets: []*host{l.Gateway}, Ports: []int{8080, tcpPort}, Header: v2Header,
	})
	usher := startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul})
	l.gateway = startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoyNew, GRPCAddr: usher.GRPCAddr})
	waitStatus(t, l.call("/"), 200)
	l.through(l.Balancer).tcp.wait(t, "")
	return l
}

// through is the client's way through a balancer on the host.
func (l *balancersLab) through(h *host) passage {
	return passage{
		http:   call{From: l.Client, To: h.addr(8080)},
		tcp:    tcpCall{From: l.Client, To: h.addr(tcpPort)},
		client: clientIP, peer: h.IP.String(),
	}
}

// wantClient makes a request and a tcp connection. The log has the client's
// address and the balancer's for both, and the service has the client's.
func (l *balancersLab) wantClient(t *testing.T, p passage) {
	t.Helper()
	p.http.Path = newPath()
	p.http.must(t).wantHello(t)
	p.wantLogged(t, l.gateway.Log.request(t, p.http.Path))
	if got := l.forwardedFor(t, p.http.Path); got != p.client {
		t.Errorf("the service got X-Forwarded-For %q, want %q", got, p.client)
	}

	data, client, err := p.tcp.do(t.Context())
	if err != nil || data != "" {
		t.Fatalf("the service got %q before the word (%v), want nothing", data, err)
	}
	if p.tcp.Headers != nil {
		client = netip.AddrPortFrom(netip.MustParseAddr(p.client), headerClient.Port()).String()
	}
	p.wantLogged(t, l.gateway.Log.wait(t, map[string]string{"downstream_remote_address": client, "path": ""}))
}

func (p passage) wantLogged(t *testing.T, entry logEntry) {
	t.Helper()
	if got := entry.ip(t, "downstream_remote_address"); got != p.client {
		t.Errorf("access log has %s for the client, want %s", got, p.client)
	}
	if got := entry.ip(t, "downstream_direct_remote_address"); got != p.peer {
		t.Errorf("access log has %s for the balancer, want %s", got, p.peer)
	}
}

// certificateFile is a file with a certificate for the name and its key, as
// HAProxy takes it.
func certificateFile(t *testing.T, name string) string {
	t.Helper()
	dir := newDir(t)
	cert, key := newAuthority(t, "Balancer CA").issue(t, dir, name)
	return writeFile(t, dir, "both.pem", fmt.Sprint(readFile(t, cert), readFile(t, key)))
}
