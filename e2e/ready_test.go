//go:build e2e

package e2e

import (
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
)

// TestReadyWithoutConsul stops Consul: an Usher that can serve Envoys stays
// ready, and one that has nothing to serve does not.
func TestReadyWithoutConsul(t *testing.T) {
	t.Parallel()
	network := lab.NewNetwork(t)
	consul := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: network.Control})
	network.RegisterCatalog(t, consul)
	good := lab.StartUsher(t, lab.UsherOptions{Host: network.Gateway, Consul: consul})
	lab.FetchPrivateKey(t, lab.ConnectFakeEnvoy(t, lab.XDSPort{From: network.Gateway}.Dial(t), fakeenvoy.Delta, ""))
	empty := lab.StartUsher(t, lab.UsherOptions{Host: network.Service, Consul: consul}) // no Envoy has asked it
	consul.Kill()

	empty.WantNotReady(t, consul.HTTPAddr, "connection refused")
	good.WantReadyWithoutConsul(t, consul.HTTPAddr)
	good.Kill()
	again := lab.LaunchUsher(t, lab.UsherOptions{Host: network.Gateway, Consul: consul})
	again.WantNotReady(t, consul.HTTPAddr, "connection refused")
}
