//go:build e2e

package e2e

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestAddressesOfConsul starts Usher with every form of Consul's address that
// Consul's own commands accept.
func TestAddressesOfConsul(t *testing.T) {
	t.Parallel()
	socket := "unix://" + filepath.Join(testprocess.NewDir(t), "consul.sock")
	e := &environment{Network: lab.NewNetwork(t)}
	e.Consul = lab.StartConsul(t, lab.ConsulOptions{
		Version: lab.ConsulNew, Host: e.Control,
		Args: []string{"-hcl", `addresses { http = "0.0.0.0 ` + socket + `" }`},
	})
	e.RegisterCatalog(t, e.Consul)
	env := []string{"CONSUL_HTTP_ADDR=" + e.Client.Addr(8500)} // no server there: the flag wins
	for _, address := range []string{e.Control.Addr(8500), "http://" + e.Control.Addr(8500), socket} {
		t.Run(address, func(t *testing.T) {
			if services, err := e.catalogServices(t, env, "-http-addr="+address); err != nil || !strings.Contains(services, "static-server") {
				t.Errorf("consul catalog services: %v: %s", err, services)
			}
			u := lab.StartUsher(t, lab.UsherOptions{Host: e.Gateway, Env: env, Args: []string{"--consul-http-addr", address}})
			defer u.Stop(t)
			lab.FetchPrivateKey(t, lab.ConnectFakeEnvoy(t, lab.XDSPort{From: e.Gateway}.Dial(t), fakeenvoy.Delta, ""))
		})
	}
}

// TestPlaintextBeyondLoopback is for a user who knows that the
// network is safe: an Envoy of another host is served without TLS.
func TestPlaintextBeyondLoopback(t *testing.T) {
	t.Parallel()
	network := lab.NewNetwork(t)
	consul := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: network.Control})
	network.RegisterCatalog(t, consul)
	address := network.Control.Addr(18000)
	lab.StartUsher(t, lab.UsherOptions{Host: network.Control, Consul: consul, XDSAddr: address, Args: []string{"--insecure-plaintext"}})
	lab.FetchPrivateKey(t, lab.ConnectFakeEnvoy(t, lab.XDSPort{From: network.Gateway, Address: address}.Dial(t), fakeenvoy.Delta, ""))
}

// TestSocketForEnvoys has an Envoy reach Usher over a unix socket, with Consul's
// own bootstrap. An Usher that was killed leaves its socket behind; the next one
// replaces it, and the Envoy connects again.
func TestSocketForEnvoys(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	l.SetMode(t, "strict")
	l.HAProxy.SetHeader(t, lab.SendV2)
	o := lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, XDSAddr: "unix://" + filepath.Join(testprocess.NewDir(t), "xds.sock")}
	usher := lab.StartUsher(t, o)
	gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: o.XDSAddr})
	l.WantClientAddress(t, gateway)

	before := gateway.XDSStreams(t)
	usher.Kill()
	lab.StartUsher(t, o)
	testprocess.Eventually(t, "the Envoy has come back", testprocess.StartDeadline, func() error {
		if now := gateway.XDSStreams(t); now.Ended == before.Ended || now.Open == 0 {
			return errors.New("it has not")
		}
		return nil
	})
	l.SetMode(t, "off")
	l.WantBadRequest(t)
}
