//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"testing"

	"github.com/hashicorp/consul/api"
)

// The addresses of the hosts of the other datacenter, or cluster, and of the
// mesh gateways of both.
const (
	farControlIP = "198.18.0.50"
	farServiceIP = "198.18.0.51"
	hereMeshIP   = "198.18.0.60"
	farMeshIP    = "198.18.0.61"
)

// meshGatewayPort is where a mesh gateway listens, for both sides.
const meshGatewayPort = 8443

// farLab is the lab with two gateways, and a service that has one instance here
// and one far away, with a mesh gateway at either place. The instances say
// where they are.
type farLab struct {
	*twoGateways
	Far *consulAgent
}

// The instances of the service say this.
const (
	here = "here"
	far  = "far"
)

// startFarLab starts everything but the gateways. The far server has the
// arguments, and link brings it together with the one here.
func startFarLab(t *testing.T, farArgs []string, link func(*farLab)) *farLab {
	t.Helper()
	l := newLab(t)
	f := &farLab{twoGateways: &twoGateways{lab: l}}
	f.Consul = startConsul(t, consulOptions{Version: consulNew, Host: l.Control})
	f.Far = startConsul(t, consulOptions{Version: consulNew, Host: l.addHost(t, "farcontrol", farControlIP), Args: farArgs})
	link(f)
	for _, e := range []api.ConfigEntry{
		logFormat("far"),
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "static-server", Protocol: "http"},
		&api.IngressGatewayConfigEntry{
			Kind: api.IngressGateway, Name: "ingress-gateway",
			Listeners: []api.IngressListener{{
				Port: 8080, Protocol: "http",
				Services: []api.IngressService{{Name: "static-server", Hosts: []string{labHost}}},
			}},
		},
	} {
		if err := f.set(e); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []struct {
		where   string
		consul  *consulAgent
		service *host
		mesh    *host
	}{
		{here, f.Consul, l.Service, l.addHost(t, "mesh", hereMeshIP)},
		{far, f.Far, l.addHost(t, "farservice", farServiceIP), l.addHost(t, "farmesh", farMeshIP)},
	} {
		startNamed(t, at.service, 8080, at.where)
		registerService(t, serviceOptions{Name: "static-server", Port: 8080, Consul: at.consul, Host: at.service, Envoy: envoyNew})
		at.consul.waitChecked(t, "static-server")
		startMeshGateway(t, at.consul, at.mesh)
	}
	return f
}

// startMeshGateway registers and runs a mesh gateway, and waits until Consul has
// found it listening.
func startMeshGateway(t *testing.T, a *consulAgent, h *host) {
	t.Helper()
	gateway := startEnvoy(t, envoyOptions{
		Name: "mesh gateway on " + h.Name, Host: h, Consul: a, Envoy: envoyNew, AdminPort: 19000,
		Args: []string{
			"-gateway=mesh", "-register", "-service", "mesh-gateway",
			"-address", h.addr(meshGatewayPort), "-wan-address", h.addr(meshGatewayPort),
		},
	})
	gateway.waitListener(t, meshGatewayPort)
	eventually(t, gateway.Name+" is passing", startDeadline, func() error {
		passing, _, err := a.Client.Health().Service("mesh-gateway", "", true, nil)
		if err == nil && len(passing) == 0 {
			err = errors.New("it is not")
		}
		return err
	})
}

// joinWAN waits until the far server, which is one of a second datacenter, and
// the one here have found each other.
func (f *farLab) joinWAN(t *testing.T) {
	t.Helper()
	eventually(t, "either datacenter knows the other", startDeadline, func() error {
		for a, dc := range map[*consulAgent]string{f.Consul: "dc2", f.Far: "dc1"} {
			nodes, _, err := a.Client.Catalog().Nodes(&api.QueryOptions{Datacenter: dc})
			if err == nil && len(nodes) == 0 {
				err = fmt.Errorf("%s has no nodes", dc)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// peer makes the far server's cluster the peer "far" of the one here, and exports
// the service.
func (f *farLab) peer(t *testing.T) {
	t.Helper()
	var token *api.PeeringGenerateTokenResponse
	eventually(t, "the far cluster gives a token", startDeadline, func() (err error) {
		token, _, err = f.Far.Client.Peerings().GenerateToken(t.Context(), api.PeeringGenerateTokenRequest{PeerName: here}, nil)
		return err
	})
	eventually(t, "the peering is established", startDeadline, func() error {
		_, _, err := f.Consul.Client.Peerings().Establish(t.Context(), api.PeeringEstablishRequest{
			PeerName: far, PeeringToken: token.PeeringToken,
		}, nil)
		return err
	})
	for _, e := range []api.ConfigEntry{
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "static-server", Protocol: "http"},
		&api.ExportedServicesConfigEntry{Name: "default", Services: []api.ExportedService{{
			Name: "static-server", Consumers: []api.ServiceConsumer{{Peer: here}},
		}}},
	} {
		if _, _, err := f.Far.Client.ConfigEntries().Set(e, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// maintain takes the instance here out of service, or back, as an operator does
// before and after work on it.
func (f *farLab) maintain(out bool) func() error {
	const sidecar = "static-server-sidecar-proxy"
	return func() error {
		if out {
			return f.Consul.Client.Agent().EnableServiceMaintenance(sidecar, "work on it")
		}
		return f.Consul.Client.Agent().DisableServiceMaintenance(sidecar)
	}
}
