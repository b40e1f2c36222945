//go:build e2e

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
)

// TestTLSListener is the story of an operator who has the gateway speak TLS with
// a certificate of the mesh. Clients that trust the mesh's root, curl and Go's,
// get their answers under every name that the gateway has. Under load, a service
// gets one more host, and then the mesh gets a new root: the certificate is
// signed anew each time, and no request fails.
func TestTLSListener(t *testing.T) {
	for _, story := range []struct {
		consul string
		secure bool
	}{{consulNew, false}, {consulOld, true}} {
		t.Run(fmt.Sprintf("consul %s, secure %v", story.consul, story.secure), func(t *testing.T) {
			t.Parallel()
			s := startTLSListener(t, story.consul, story.secure)
			s.wantNames(t, s.names)
			s.wantNoOtherName(t)
			s.underLoad(t, func() { s.addHost(t, "new.example.com") })
			s.underLoad(t, func() { s.rotate(t) })
			s.wantNames(t, s.names)
		})
	}
}

// TestUsherRestartsWithoutSigning starts Usher anew while nobody signs
// certificates. An Envoy that has a certificate keeps it and its listener, and
// follows other changes; one that is new gets the listeners without TLS alone.
func TestUsherRestartsWithoutSigning(t *testing.T) {
	t.Parallel()
	s := startTLSListener(t, consulNew, false)
	s.entry.TLS = api.GatewayTLSConfig{}
	s.entry.Listeners[0].TLS = &api.GatewayTLSConfig{Enabled: true}
	s.write(t)
	waitStatus(t, call{From: s.Client, To: s.Gateway.addr(8081), Host: "www.example.com"}, http.StatusOK)
	before := s.served(t)

	s.Usher.Stop(t)
	s.startUsher(t, "--consul-grpc-addr", "http://"+s.Control.addr(1))
	s.Usher.WaitOutput(t, "consul's gRPC port at "+s.Control.addr(1))
	s.Usher.WaitOutput(t, "there is no certificate with DNS names for it yet")
	s.entry.Listeners[1].Services[0].Hosts = []string{"later.example.com"}
	s.write(t)
	waitStatus(t, call{From: s.Client, To: s.Gateway.addr(8081), Host: "later.example.com"}, http.StatusOK)
	if s.served(t) != before {
		t.Error("the certificate has changed")
	}

	other := s.lab.addHost(t, "gateway2", gateway2IP)
	fresh := startGateway(t, gatewayOptions{
		Host: other, Consul: s.Consul, Envoy: envoyNew, GRPCAddr: s.Usher.GRPCAddr, ID: "fresh",
	})
	fresh.waitListener(t, 8081)
	if ports, err := fresh.listeners(); err != nil || slices.Contains(ports, 8080) {
		t.Errorf("the new Envoy has the ports %v, %v, want no 8080", ports, err)
	}

	s.Usher.Stop(t)
	s.startUsher(t)
	fresh.waitListener(t, 8080)
	eventually(t, "a new certificate", changeDeadline, func() error {
		if s.served(t) == before {
			return errors.New("the old one is there")
		}
		return nil
	})
}

// tlsListener is the lab with a gateway that speaks TLS: on port 8080 under the
// names that Consul's DNS has, on 8081 under hosts of its own.
type tlsListener struct {
	*meshLab
	Usher *usher

	entry *api.IngressGatewayConfigEntry
	names map[string]int // with the port
	trust *tls.Config
	token string // Usher's; "" without ACLs
}

func startTLSListener(t *testing.T, consulVersion string, secure bool) *tlsListener {
	t.Helper()
	s := &tlsListener{
		meshLab: startMeshLab(t, consulVersion, envoyNew, secure),
		entry: &api.IngressGatewayConfigEntry{
			Kind: api.IngressGateway, Name: "ingress-gateway", TLS: api.GatewayTLSConfig{Enabled: true},
			Listeners: []api.IngressListener{
				{Port: 8080, Protocol: "http", Services: []api.IngressService{{Name: "static-server"}}},
				{Port: 8081, Protocol: "http", Services: []api.IngressService{{Name: "static-server", Hosts: []string{"www.example.com"}}}},
			},
		},
		names: map[string]int{"static-server.ingress.consul": 8080, "static-server.ingress.dc1.consul": 8080, "www.example.com": 8081},
	}
	s.write(t)
	s.token = s.Consul.tokenWhereSecure(t, "usher", readFile(t, "../docs/usher-policy.hcl"))
	s.startUsher(t)
	startGateway(t, gatewayOptions{
		Host: s.Gateway, Consul: s.Consul, Envoy: envoyNew, GRPCAddr: s.Usher.GRPCAddr,
		Token: s.Consul.tokenWhereSecure(t, "ingress-gateway", gatewayRules),
	})
	s.trust = &tls.Config{RootCAs: s.pool(t, s.roots(t)...)}
	for name := range s.names {
		waitStatus(t, s.call(name), http.StatusOK)
	}
	return s
}

// startUsher starts Usher where Envoys of other hosts reach it.
func (s *tlsListener) startUsher(t *testing.T, args ...string) {
	t.Helper()
	s.Usher = startUsher(t, usherOptions{
		Host: s.Gateway, Consul: s.Consul, Token: s.token,
		XDSAddr: s.Gateway.addr(18000), Args: append(args, "--insecure-plaintext"),
	})
}

func (s *tlsListener) write(t *testing.T) {
	t.Helper()
	if _, _, err := s.Consul.Client.ConfigEntries().Set(s.entry, nil); err != nil {
		t.Fatal(err)
	}
}

// roots are the mesh's, in PEM; the one that signs comes first.
func (s *tlsListener) roots(t *testing.T) []string {
	t.Helper()
	list, _, err := s.Consul.Client.Connect().CARoots(nil)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list.Roots, func(a, _ *api.CARoot) int {
		if a.ID == list.ActiveRootID {
			return -1
		}
		return 1
	})
	var pems []string
	for _, root := range list.Roots {
		pems = append(pems, root.RootCertPEM)
	}
	return pems
}

func (s *tlsListener) pool(t *testing.T, pems ...string) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(strings.Join(pems, "\n"))) {
		t.Fatalf("no certificate in %q", pems)
	}
	return pool
}

func (s *tlsListener) call(name string) call {
	return call{From: s.Client, To: s.Gateway.addr(s.names[name]), Host: name, Path: newPath(), TLS: s.trust}
}

// wantNames makes a request under each name with Go's client and with curl.
func (s *tlsListener) wantNames(t *testing.T, names map[string]int) {
	t.Helper()
	file := writeFile(t, newDir(t), "roots.pem", strings.Join(s.roots(t), "\n"))
	for name, port := range names {
		s.call(name).must(t).wantHello(t)
		output, err := runProcess(t, command{
			Name: "curl", Path: tool(t, "curl", "curl"), Host: s.Client,
			Args: []string{
				"--silent", "--show-error", "--fail", "--max-time", "5", "--cacert", file,
				"--resolve", fmt.Sprintf("%s:%d:%s", name, port, s.Gateway.IP),
				fmt.Sprintf("https://%s%s", net.JoinHostPort(name, fmt.Sprint(port)), newPath()),
			},
		}, "")
		if err != nil || output != "hello world\n" {
			t.Errorf("curl: %s: %v: %q", name, err, output)
		}
	}
}

// wantNoOtherName wants a client that asks for another name to refuse the
// certificate.
func (s *tlsListener) wantNoOtherName(t *testing.T) {
	t.Helper()
	c := call{From: s.Client, To: s.Gateway.addr(8081), Host: "other.example.com", TLS: s.trust}
	if _, err := c.do(t.Context()); !errors.As(err, new(x509.HostnameError)) {
		t.Errorf("%s: %v, want a certificate for other names", c.Host, err)
	}
}

// underLoad makes a change while requests come in over TLS, half of them on
// connections that are kept alive.
func (s *tlsListener) underLoad(t *testing.T, change func()) {
	t.Helper()
	target := s.call("static-server.ingress.consul")
	load := startLoad(t, target)
	load.waitMore(t)
	change()
	load.waitMore(t)
	load.wantNoFailures(t)
}

// addHost gives the service one more host, and waits for it.
func (s *tlsListener) addHost(t *testing.T, name string) {
	t.Helper()
	service := &s.entry.Listeners[1].Services[0]
	service.Hosts = append(service.Hosts, name)
	s.write(t)
	s.names[name] = 8081
	waitStatus(t, s.call(name), http.StatusOK)
}

// rotate gives the mesh a new root, and waits until the certificate is of the
// new one.
func (s *tlsListener) rotate(t *testing.T) {
	t.Helper()
	before := s.roots(t)
	if _, err := s.Consul.Client.Connect().CASetConfig(&api.CAConfig{
		Provider: "consul", Config: map[string]any{"PrivateKeyType": "ec", "PrivateKeyBits": 384},
	}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mesh has a new root", changeDeadline, func() error {
		if s.roots(t)[0] == before[0] {
			return errors.New("the old one signs")
		}
		return nil
	})
	c := s.call("www.example.com")
	c.TLS = &tls.Config{RootCAs: s.pool(t, s.roots(t)[0])}
	eventually(t, "a certificate of the new root", leafDeadline, func() error {
		_, err := c.do(t.Context())
		return err
	})
}

// served is the serial number of the certificate on port 8080.
func (s *tlsListener) served(t *testing.T) string {
	t.Helper()
	c := s.call("static-server.ingress.consul")
	var serial string
	c.TLS = s.trust.Clone()
	c.TLS.VerifyConnection = func(state tls.ConnectionState) error {
		serial = state.PeerCertificates[0].SerialNumber.String()
		return nil
	}
	c.must(t).wantHello(t)
	return serial
}
