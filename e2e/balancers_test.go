//go:build e2e

package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// balancersLab is a strict gateway with an http and a tcp listener.
type balancersLab struct {
	*lab.Lab
	gateway *lab.Envoy
}

// passage is a way through a balancer to both listeners of the gateway.
type passage struct {
	http   lab.Request
	tcp    lab.TCPExchange
	client string // the client's address, as the balancer says it
	peer   string // the balancer's
}

// TestBalancers puts different load balancers in front of a strict gateway, each
// with its own form of PROXY headers. The log and the service get the client's
// address behind all of them.
func TestBalancers(t *testing.T) {
	t.Parallel()
	l := startBalancersLab(t)
	for _, header := range []lab.ProxyHeader{lab.SendV1, lab.SendV2, lab.SendV2SSL} {
		t.Run("HAProxy with "+string(header), func(t *testing.T) {
			l.HAProxy.SetHeader(t, header)
			l.wantClient(t, l.through(l.Balancer))
		})
	}
	t.Run("HAProxy that ends TLS", func(t *testing.T) {
		h := l.AddHost(t, "haproxy-tls", "198.18.0.12")
		lab.StartHAProxy(t, lab.HAProxyOptions{
			Host: h, Targets: []*lab.Host{l.Gateway}, Ports: []int{8080, lab.TCPPort}, Header: lab.SendV2SSL, Certificate: certificateFile(t, lab.ServiceHost),
		})
		p := l.through(h)
		p.http.TLS = &tls.Config{InsecureSkipVerify: true} // the balancer's certificate is not the story
		p.tcp.TLS = p.http.TLS
		l.wantClient(t, p)
	})
	t.Run("nginx", func(t *testing.T) {
		h := l.AddHost(t, "nginx", "198.18.0.13")
		lab.StartNginx(t, h, l.Gateway, 8080, lab.TCPPort)
		l.wantClient(t, l.through(h))
	})
	t.Run("AWS network load balancer, client behind a VPC endpoint", func(t *testing.T) {
		header := lab.Preface{Bytes: lab.AWSHeader("vpce-08d2bf15fac5001c9")}
		l.wantClient(t, passage{
			http:   lab.Request{From: l.Balancer, To: l.Gateway.Addr(8080), Proxy: header},
			tcp:    lab.TCPExchange{From: l.Balancer, To: l.Gateway.Addr(lab.TCPPort), Headers: []io.WriterTo{header}},
			client: lab.HeaderClient.Addr().String(), peer: lab.BalancerIP,
		})
	})
}

func startBalancersLab(t *testing.T) *balancersLab {
	t.Helper()
	l := &balancersLab{Lab: lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)}
	lab.StartTCPEcho(t, l.Service, lab.TCPPort)
	lab.RegisterService(t, lab.ServiceOptions{
		Name: "static-tcp", Port: lab.TCPPort, Consul: l.Consul, Host: l.Service, Envoy: lab.EnvoyNew, SidecarPort: 21001,
	})
	_, _, err := l.Consul.Client.ConfigEntries().Set(&api.IngressGatewayConfigEntry{
		Kind: api.IngressGateway, Name: "ingress-gateway",
		Listeners: []api.IngressListener{
			{Port: 8080, Protocol: "http", Services: []api.IngressService{{Name: "static-server"}}},
			{Port: lab.TCPPort, Protocol: "tcp", Services: []api.IngressService{{Name: "static-tcp"}}},
		},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.SetMode(t, "strict")
	l.HAProxy.Kill() // it has one port only
	l.HAProxy = lab.StartHAProxy(t, lab.HAProxyOptions{
		Host: l.Balancer, Targets: []*lab.Host{l.Gateway}, Ports: []int{8080, lab.TCPPort}, Header: lab.SendV2,
	})
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
	l.gateway = lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	lab.WaitStatus(t, l.Request("/"), 200)
	l.through(l.Balancer).tcp.WaitData(t, "")
	return l
}

// through is the client's way through a balancer on the host.
func (l *balancersLab) through(h *lab.Host) passage {
	return passage{
		http:   lab.Request{From: l.Client, To: h.Addr(8080)},
		tcp:    lab.TCPExchange{From: l.Client, To: h.Addr(lab.TCPPort)},
		client: lab.ClientIP, peer: h.IP.String(),
	}
}

// wantClient makes a request and a tcp connection. The log has the client's
// address and the balancer's for both, and the service has the client's.
func (l *balancersLab) wantClient(t *testing.T, p passage) {
	t.Helper()
	p.http.Path = lab.NewPath()
	p.http.MustDo(t).WantHello(t)
	p.wantLogged(t, l.gateway.Log.WaitRequest(t, p.http.Path))
	if got := l.ForwardedFor(t, p.http.Path); got != p.client {
		t.Errorf("the service got X-Forwarded-For %q, want %q", got, p.client)
	}

	data, client, err := p.tcp.Do(t.Context())
	if err != nil || data != "" {
		t.Fatalf("the service got %q before the word (%v), want nothing", data, err)
	}
	if p.tcp.Headers != nil {
		client = netip.AddrPortFrom(netip.MustParseAddr(p.client), lab.HeaderClient.Port()).String()
	}
	p.wantLogged(t, l.gateway.Log.Wait(t, map[string]string{"downstream_remote_address": client, "path": ""}))
}

func (p passage) wantLogged(t *testing.T, entry lab.LogEntry) {
	t.Helper()
	if got := entry.IP(t, "downstream_remote_address"); got != p.client {
		t.Errorf("access log has %s for the client, want %s", got, p.client)
	}
	if got := entry.IP(t, "downstream_direct_remote_address"); got != p.peer {
		t.Errorf("access log has %s for the balancer, want %s", got, p.peer)
	}
}

// TestClientCertificatesBehindHAProxy has an HAProxy that ends TLS and asks for client certificates. The log and the
// service get the certificate's common name, and whether HAProxy has verified it. X-Forwarded-Proto is that of the
// client's connection to HAProxy, whatever the client says.
func TestClientCertificatesBehindHAProxy(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := lab.Start(t, lab.ConsulNew, envoy, false)
		usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: `usher {
  proxy_protocol {
    mode = "strict"
    tlvs = [{ type = "ssl_client_verified", header = "x-client-verified" }, { type = "ssl_client_cn", header = "x-client-cn" }]
  }
  client_address { forwarded_proto = "proxy_protocol" }
}
`})
		gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})
		l.HAProxy.SetHeader(t, lab.SendV2SSLCN)
		authority := lab.NewCertificateAuthority(t, "Client CA")
		h := l.AddHost(t, "haproxy-tls", "198.18.0.12")
		lab.StartHAProxy(t, lab.HAProxyOptions{
			Host: h, Targets: []*lab.Host{l.Gateway}, Ports: []int{8080}, Header: lab.SendV2SSLCN, Certificate: certificateFile(t, lab.ServiceHost),
			ClientCA: lab.WriteFile(t, testprocess.NewDir(t), "ca.pem", authority.PEM()),
		})
		lab.WaitStatus(t, l.Request("/"), 200)
		overTLS := func(certificate tls.Certificate) lab.Request {
			config := &tls.Config{InsecureSkipVerify: true} // the balancer's certificate is not the story
			// Unlike Certificates, it also presents one of an authority that the balancer does not ask for.
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
			return lab.Request{From: l.Client, To: h.Addr(8080), TLS: config}
		}
		for _, s := range []struct {
			name, cn, verified, proto string
			request                   lab.Request
		}{
			{"no TLS", "", "", "http", l.Request("")},
			{"TLS", "", "", "https", overTLS(tls.Certificate{})},
			{"a certificate", "alice", "yes", "https", overTLS(clientCertificate(t, authority, "alice"))},
			{"a long name", strings.Repeat("a", 64), "yes", "https", overTLS(clientCertificate(t, authority, strings.Repeat("a", 64)))},
			{"a name with a NUL", "", "yes", "https", overTLS(clientCertificate(t, authority, "admin\x00.example"))},
			{"a certificate of another authority", "alice", "no", "https", overTLS(clientCertificate(t, lab.NewCertificateAuthority(t, "Other CA"), "alice"))},
		} {
			r := s.request
			r.Path = lab.NewPath()
			forgedProto := map[string]string{"http": "https", "https": "http"}[s.proto]
			r.Header = http.Header{"X-Client-Cn": {"forged"}, "X-Client-Verified": {"yes"}, "X-Forwarded-Proto": {forgedProto}}
			r.MustDo(t).WantHello(t)
			seen := l.Echo.Received(t, r.Path).Header
			entry := gateway.Log.WaitRequest(t, r.Path)
			got := []string{seen.Get("X-Client-Cn"), seen.Get("X-Client-Verified"), seen.Get("X-Forwarded-Proto"), entry.Text("ssl_client_cn"), entry.Text("ssl_client_verified")}
			if want := []string{s.cn, s.verified, s.proto, s.cn, s.verified}; !slices.Equal(got, want) {
				t.Errorf("%s: the service and the log have %q, want %q", s.name, got, want)
			}
		}
	})
}

// clientCertificate is a certificate with the common name.
func clientCertificate(t *testing.T, authority *lab.CertificateAuthority, name string) tls.Certificate {
	t.Helper()
	cert, key := authority.IssueNamed(t, testprocess.NewDir(t), name)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// certificateFile is a file with a certificate for the name and its key, as
// HAProxy takes it.
func certificateFile(t *testing.T, name string) string {
	t.Helper()
	dir := testprocess.NewDir(t)
	cert, key := lab.NewCertificateAuthority(t, "Balancer CA").Issue(t, dir, name)
	return lab.WriteFile(t, dir, "both.pem", fmt.Sprint(testprocess.ReadFile(t, cert), testprocess.ReadFile(t, key)))
}
