//go:build e2e

package lab

import (
	"errors"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The addresses of the hosts of the other datacenter, or cluster, and of the
// mesh gateways of both.
const (
	RemoteControlIP     = "198.18.0.50"
	RemoteServiceIP     = "198.18.0.51"
	MeshGatewayIP       = "198.18.0.60"
	RemoteMeshGatewayIP = "198.18.0.61"
)

// MeshGatewayPort is where a mesh gateway listens, for both sides.
const MeshGatewayPort = 8443

// RemoteLab is the lab with two gateways, and a service that has one instance here
// and one in another datacenter or cluster, with a mesh gateway at either place. The
// instances say where they are.
type RemoteLab struct {
	*Comparison
	Remote *Consul
}

// The instances of the service say this.
const (
	Here = "here"
	Far  = "far"
)

// StartRemoteLab starts everything but the gateways. The remote server has the
// arguments, and link connects it with the one here.
func StartRemoteLab(t *testing.T, farArgs []string, link func(*RemoteLab)) *RemoteLab {
	t.Helper()
	l := NewNetwork(t)
	f := &RemoteLab{Comparison: &Comparison{Network: l}}
	f.Consul = StartConsul(t, ConsulOptions{Version: ConsulNew, Host: l.Control})
	f.Remote = StartConsul(t, ConsulOptions{Version: ConsulNew, Host: l.AddHost(t, "farcontrol", RemoteControlIP), Args: farArgs})
	link(f)
	for _, e := range []api.ConfigEntry{
		ProxyDefaultsWithLog("far"),
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "static-server", Protocol: "http"},
		&api.IngressGatewayConfigEntry{
			Kind: api.IngressGateway, Name: "ingress-gateway",
			Listeners: []api.IngressListener{{
				Port: 8080, Protocol: "http",
				Services: []api.IngressService{{Name: "static-server", Hosts: []string{ServiceHost}}},
			}},
		},
	} {
		if err := f.WriteEntry(e); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []struct {
		where   string
		consul  *Consul
		service *Host
		mesh    *Host
	}{
		{Here, f.Consul, l.Service, l.AddHost(t, "mesh", MeshGatewayIP)},
		{Far, f.Remote, l.AddHost(t, "farservice", RemoteServiceIP), l.AddHost(t, "farmesh", RemoteMeshGatewayIP)},
	} {
		ServeNamed(t, at.service, 8080, at.where)
		RegisterService(t, ServiceOptions{Name: "static-server", Port: 8080, Consul: at.consul, Host: at.service, Envoy: EnvoyNew})
		at.consul.WaitChecked(t, "static-server")
		startMeshGateway(t, at.consul, at.mesh)
	}
	return f
}

// startMeshGateway registers and runs a mesh gateway, and waits until Consul has
// found it listening.
func startMeshGateway(t *testing.T, a *Consul, h *Host) {
	t.Helper()
	gateway := StartEnvoy(t, EnvoyOptions{
		Name: "mesh gateway on " + h.Name, Host: h, Consul: a, Envoy: EnvoyNew, AdminPort: 19000,
		Args: []string{
			"-gateway=mesh", "-register", "-service", "mesh-gateway",
			"-address", h.Addr(MeshGatewayPort), "-wan-address", h.Addr(MeshGatewayPort),
		},
	})
	gateway.WaitListener(t, MeshGatewayPort)
	testprocess.Eventually(t, gateway.Name+" is passing", testprocess.StartDeadline, func() error {
		passing, _, err := a.Client.Health().Service("mesh-gateway", "", true, nil)
		if err == nil && len(passing) == 0 {
			err = errors.New("it is not")
		}
		return err
	})
}

// WaitWAN waits until both datacenters know each other.
func (f *RemoteLab) WaitWAN(t *testing.T) {
	t.Helper()
	WaitDatacenter(t, f.Consul.Client, "dc2")
	WaitDatacenter(t, f.Remote.Client, "dc1")
}

// WaitDatacenter waits until a Consul server answers queries about another
// datacenter.
func WaitDatacenter(t *testing.T, client *api.Client, datacenter string) {
	t.Helper()
	testprocess.Eventually(t, "Consul knows the nodes of "+datacenter, testprocess.StartDeadline, func() error {
		nodes, _, err := client.Catalog().Nodes(&api.QueryOptions{Datacenter: datacenter})
		if err == nil && len(nodes) == 0 {
			err = errors.New("there are none")
		}
		return err
	})
}

// PeerExportsService makes the remote cluster the peer "far", which exports the
// service.
func (f *RemoteLab) PeerExportsService(t *testing.T) {
	t.Helper()
	EstablishPeering(t, f.Consul.Client, f.Remote.Client, Here, Far)
	for _, e := range []api.ConfigEntry{
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "static-server", Protocol: "http"},
		&api.ExportedServicesConfigEntry{Name: "default", Services: []api.ExportedService{{
			Name: "static-server", Consumers: []api.ServiceConsumer{{Peer: Here}},
		}}},
	} {
		if _, _, err := f.Remote.Client.ConfigEntries().Set(e, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// EstablishPeering makes two clusters peers of each other. The names are those
// that each has at the other one.
func EstablishPeering(t *testing.T, first, second *api.Client, firstName, secondName string) {
	t.Helper()
	var token *api.PeeringGenerateTokenResponse
	testprocess.Eventually(t, secondName+" generates a peering token", testprocess.StartDeadline, func() (err error) {
		token, _, err = second.Peerings().GenerateToken(t.Context(), api.PeeringGenerateTokenRequest{PeerName: firstName}, nil)
		return err
	})
	testprocess.Eventually(t, "the peering is established", testprocess.StartDeadline, func() error {
		_, _, err := first.Peerings().Establish(t.Context(), api.PeeringEstablishRequest{
			PeerName: secondName, PeeringToken: token.PeeringToken,
		}, nil)
		return err
	})
}

// Maintenance puts the instance here into maintenance, or ends it.
func (f *RemoteLab) Maintenance(out bool) func() error {
	const sidecar = "static-server-sidecar-proxy"
	return func() error {
		if out {
			return f.Consul.Client.Agent().EnableServiceMaintenance(sidecar, "work on it")
		}
		return f.Consul.Client.Agent().DisableServiceMaintenance(sidecar)
	}
}
