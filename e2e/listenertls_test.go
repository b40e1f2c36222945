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

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestTLSListener has a gateway that serves TLS with a certificate of the mesh.
// Clients that trust the mesh's root, curl and Go's, get their answers under
// every name of the gateway. Under load, a service gets one more host, and then
// the mesh gets a new root: the certificate is signed again each time, and no
// request fails.
func TestTLSListener(t *testing.T) {
	t.Parallel()
	for _, story := range []struct {
		consul string
		secure bool
	}{{lab.ConsulNew, false}, {lab.ConsulOld, true}} {
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

// TestUsherRestartsWithoutSigning restarts Usher while Consul does not sign
// certificates. An Envoy that has a certificate keeps it and its listener, and
// gets other changes. A new Envoy gets only the listeners without TLS.
func TestUsherRestartsWithoutSigning(t *testing.T) {
	t.Parallel()
	s := startTLSListener(t, lab.ConsulNew, false)
	s.entry.TLS = api.GatewayTLSConfig{}
	s.entry.Listeners[0].TLS = &api.GatewayTLSConfig{Enabled: true}
	s.write(t)
	lab.WaitStatus(t, lab.Request{From: s.Client, To: s.Gateway.Addr(8081), Host: "www.example.com"}, http.StatusOK)
	before := s.served(t)

	s.Usher.Stop(t)
	s.startUsher(t, "--consul-grpc-addr", "http://"+s.Control.Addr(1))
	s.Usher.WaitOutput(t, "consul's gRPC port at "+s.Control.Addr(1))
	s.Usher.WaitOutput(t, "there is no certificate for clients yet")
	s.entry.Listeners[1].Services[0].Hosts = []string{"later.example.com"}
	s.write(t)
	lab.WaitStatus(t, lab.Request{From: s.Client, To: s.Gateway.Addr(8081), Host: "later.example.com"}, http.StatusOK)
	if s.served(t) != before {
		t.Error("the certificate has changed")
	}

	other := s.AddHost(t, "gateway2", lab.Gateway2IP)
	fresh := lab.StartGateway(t, lab.GatewayOptions{
		Host: other, Consul: s.Consul, Envoy: lab.EnvoyNew, GRPCAddr: s.Usher.GRPCAddr, ID: "fresh",
	})
	fresh.WaitListener(t, 8081)
	if ports, err := fresh.ListenerPorts(); err != nil || slices.Contains(ports, 8080) {
		t.Errorf("the new Envoy has the ports %v, %v, want no 8080", ports, err)
	}

	s.Usher.Stop(t)
	s.startUsher(t)
	fresh.WaitListener(t, 8080)
	testprocess.Eventually(t, "a new certificate", testprocess.ChangeDeadline, func() error {
		if s.served(t) == before {
			return errors.New("the old one is there")
		}
		return nil
	})
}

// tlsListener is the lab with a gateway that speaks TLS: on port 8080 under the
// names that Consul's DNS has, on 8081 under hosts of its own.
type tlsListener struct {
	*lab.Lab
	Usher *lab.Usher

	entry *api.IngressGatewayConfigEntry
	names map[string]int // with the port
	trust *tls.Config
	token string // Usher's; "" without ACLs
}

func startTLSListener(t *testing.T, consulVersion string, secure bool) *tlsListener {
	t.Helper()
	s := &tlsListener{
		Lab: lab.Start(t, consulVersion, lab.EnvoyNew, secure),
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
	s.token = s.Consul.NewTokenIfSecure(t, "usher", testprocess.ReadFile(t, "../docs/usher-policy.hcl"))
	s.startUsher(t)
	lab.StartGateway(t, lab.GatewayOptions{
		Host: s.Gateway, Consul: s.Consul, Envoy: lab.EnvoyNew, GRPCAddr: s.Usher.GRPCAddr,
		Token: s.Consul.NewTokenIfSecure(t, "ingress-gateway", gatewayRules),
	})
	s.trust = &tls.Config{RootCAs: s.pool(t, s.roots(t)...)}
	for name := range s.names {
		lab.WaitStatus(t, s.call(name), http.StatusOK)
	}
	return s
}

// startUsher starts Usher where Envoys of other hosts reach it.
func (s *tlsListener) startUsher(t *testing.T, args ...string) {
	t.Helper()
	s.Usher = lab.StartUsher(t, lab.UsherOptions{
		Host: s.Gateway, Consul: s.Consul, Token: s.token,
		XDSAddr: s.Gateway.Addr(18000), Args: append(args, "--insecure-plaintext"),
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

func (s *tlsListener) call(name string) lab.Request {
	return lab.Request{From: s.Client, To: s.Gateway.Addr(s.names[name]), Host: name, Path: lab.NewPath(), TLS: s.trust}
}

// wantNames makes a request under each name with Go's client and with curl.
func (s *tlsListener) wantNames(t *testing.T, names map[string]int) {
	t.Helper()
	file := lab.WriteFile(t, testprocess.NewDir(t), "roots.pem", strings.Join(s.roots(t), "\n"))
	for name, port := range names {
		s.call(name).MustDo(t).WantHello(t)
		output, err := testprocess.RunOutput(t, testprocess.Command{
			Name: "curl", Path: testprocess.Debian(t, "curl", "curl"), Host: s.Client,
			Args: []string{
				"--silent", "--show-error", "--fail", "--max-time", "5", "--cacert", file,
				"--resolve", fmt.Sprintf("%s:%d:%s", name, port, s.Gateway.IP),
				fmt.Sprintf("https://%s%s", net.JoinHostPort(name, fmt.Sprint(port)), lab.NewPath()),
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
	c := lab.Request{From: s.Client, To: s.Gateway.Addr(8081), Host: "other.example.com", TLS: s.trust}
	if _, err := c.Do(t.Context()); !errors.As(err, new(x509.HostnameError)) {
		t.Errorf("%s: %v, want a certificate for other names", c.Host, err)
	}
}

// underLoad makes a change while requests come in over TLS, half of them on
// connections that are kept alive.
func (s *tlsListener) underLoad(t *testing.T, change func()) {
	t.Helper()
	target := s.call("static-server.ingress.consul")
	load := lab.StartLoad(t, target)
	load.WaitMore(t)
	change()
	load.WaitMore(t)
	load.WantNoFailures(t)
}

// addHost gives the service one more host, and waits for it.
func (s *tlsListener) addHost(t *testing.T, name string) {
	t.Helper()
	service := &s.entry.Listeners[1].Services[0]
	service.Hosts = append(service.Hosts, name)
	s.write(t)
	s.names[name] = 8081
	lab.WaitStatus(t, s.call(name), http.StatusOK)
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
	testprocess.Eventually(t, "the mesh has a new root", testprocess.ChangeDeadline, func() error {
		if s.roots(t)[0] == before[0] {
			return errors.New("the old one signs")
		}
		return nil
	})
	c := s.call("www.example.com")
	c.TLS = &tls.Config{RootCAs: s.pool(t, s.roots(t)[0])}
	testprocess.Eventually(t, "a certificate of the new root", leafDeadline, func() error {
		_, err := c.Do(t.Context())
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
	c.MustDo(t).WantHello(t)
	return serial
}
