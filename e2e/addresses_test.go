//go:build e2e

package e2e

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
)

// TestAddressesOfConsul is the story of the forms that Consul's address can
// have: those that Consul's own commands take.
func TestAddressesOfConsul(t *testing.T) {
	t.Parallel()
	socket := "unix://" + filepath.Join(newDir(t), "consul.sock")
	e := &environment{lab: newLab(t)}
	e.Consul = startConsul(t, consulOptions{
		Version: consulNew, Host: e.Control,
		Args: []string{"-hcl", `addresses { http = "0.0.0.0 ` + socket + `" }`},
	})
	e.registerCatalog(t, e.Consul)
	env := []string{"CONSUL_HTTP_ADDR=" + e.Client.addr(8500)} // nobody there: the flag wins
	for _, address := range []string{e.Control.addr(8500), "http://" + e.Control.addr(8500), socket} {
		t.Run(address, func(t *testing.T) {
			if services, err := e.catalogServices(t, env, "-http-addr="+address); err != nil || !strings.Contains(services, "static-server") {
				t.Errorf("consul catalog services: %v: %s", err, services)
			}
			u := startUsher(t, usherOptions{Host: e.Gateway, Env: env, Args: []string{"--consul-http-addr", address}})
			defer u.Stop(t)
			fetchKey(t, fakeGateway(t, xdsPort{From: e.Gateway}.dial(t), fakeenvoy.Delta, ""))
		})
	}
}

// TestPlaintextBeyondLoopback is the story of an operator who knows that the
// network is safe: an Envoy of another host is served without TLS.
func TestPlaintextBeyondLoopback(t *testing.T) {
	t.Parallel()
	network := newLab(t)
	consul := startConsul(t, consulOptions{Version: consulNew, Host: network.Control})
	network.registerCatalog(t, consul)
	address := network.Control.addr(18000)
	startUsher(t, usherOptions{Host: network.Control, Consul: consul, XDSAddr: address, Args: []string{"--insecure-plaintext"}})
	fetchKey(t, fakeGateway(t, xdsPort{From: network.Gateway, Address: address}.dial(t), fakeenvoy.Delta, ""))
}

// TestSocketForEnvoys is the story of an Envoy that reaches Usher over a socket
// in the file system, by Consul's own bootstrap. An Usher that was killed leaves
// its socket behind; the next one takes its place, and the Envoy comes back.
func TestSocketForEnvoys(t *testing.T) {
	t.Parallel()
	l := startMeshLab(t, consulNew, envoyNew, false)
	l.setMode(t, "strict")
	l.HAProxy.setHeader(t, v2Header)
	o := usherOptions{Host: l.Gateway, Consul: l.Consul, XDSAddr: "unix://" + filepath.Join(newDir(t), "xds.sock")}
	usher := startUsher(t, o)
	gateway := startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoyNew, GRPCAddr: o.XDSAddr})
	l.wantClientsAddress(t, gateway)

	before := gateway.streams(t)
	usher.Kill()
	startUsher(t, o)
	eventually(t, "the Envoy has come back", startDeadline, func() error {
		if now := gateway.streams(t); now.Begun == before.Begun || now.Open == 0 {
			return errors.New("it has not")
		}
		return nil
	})
	l.setMode(t, "off")
	l.wantBadRequest(t)
}
