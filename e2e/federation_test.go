//go:build e2e

package e2e

import (
	"testing"

	"github.com/hashicorp/consul/api"
)

// TestFailoverToAnotherDatacenter takes the only instance of a service in the
// first datacenter out of service, and back, under load: straight to the one in
// the second datacenter, through the mesh gateway there, and through both. The
// mode is changed where nothing goes that way, and where all of the load does.
// No request fails at Usher's gateway; those of Consul's own are printed.
func TestFailoverToAnotherDatacenter(t *testing.T) {
	f := startFarLab(t, []string{
		"-datacenter", "dc2", "-retry-join-wan", controlIP, "-hcl", `primary_datacenter = "dc1"`,
	}, func(f *farLab) { f.joinWAN(t) })
	f.failsOver(t, api.ServiceResolverFailover{Datacenters: []string{"dc2"}})

	ways := []struct {
		mode api.MeshGatewayMode
		at   string // where the gateway's Envoy connects to
	}{
		{api.MeshGatewayModeRemote, farMeshIP + ":8443"},
		{api.MeshGatewayModeLocal, hereMeshIP + ":8443"},
		{api.MeshGatewayModeNone, farServiceIP + ":21000"},
	}
	over := func(way int) change {
		defaults := logFormat("far")
		defaults.MeshGateway.Mode = ways[way].mode
		return change{"mesh gateway mode " + string(ways[way].mode), f.writing(defaults), dumps(clusterHosts, "::"+ways[way].at+"::")}
	}
	for way := range ways {
		f.make(t, over(way))
		f.goThereAndBack(t)
	}
	f.make(t, f.out())
	for way := range ways {
		f.make(t, over(way))
		f.waitLoad(t)
	}
	f.make(t, f.back())
	f.wantNoFailures(t)
}

// TestFailoverToAClusterPeer does the same with another cluster, whose
// certificates have another root. Then the service is led there for good.
func TestFailoverToAClusterPeer(t *testing.T) {
	f := startFarLab(t, []string{"-hcl", "ports { grpc_tls = 8503 }"}, func(f *farLab) { f.peer(t) })
	f.failsOver(t, api.ServiceResolverFailover{Targets: []api.ServiceResolverFailoverTarget{{Peer: far}}})
	f.goThereAndBack(t)
	f.make(t, change{"redirect to the peer", f.writing(&api.ServiceResolverConfigEntry{
		Kind: api.ServiceResolver, Name: "static-server", Redirect: &api.ServiceResolverRedirect{Service: "static-server", Peer: far},
	}), answered(call{Path: "/"}, servedBy, far)})
	f.waitLoad(t)
	f.wantNoFailures(t)
}

// failsOver writes the failover, starts the gateways, and puts the load on them
// once they have the other leg.
func (f *farLab) failsOver(t *testing.T, to api.ServiceResolverFailover) {
	t.Helper()
	if err := f.set(&api.ServiceResolverConfigEntry{
		Kind: api.ServiceResolver, Name: "static-server", Failover: map[string]api.ServiceResolverFailover{"*": to},
	}); err != nil {
		t.Fatal(err)
	}
	f.startGateways(t)
	f.startLoad(t)
	for _, g := range f.both() {
		eventually(t, g.Name+" has the other leg", changeDeadline, func() error {
			return g.has(clusterHosts, "failover-target~1~static-server.default.dc1.internal")
		})
	}
}

func (f *farLab) out() change {
	return change{"the instance here goes out of service", f.maintain(true), answered(call{Path: "/"}, servedBy, far)}
}

func (f *farLab) back() change {
	return change{"the instance here is back", f.maintain(false), answered(call{Path: "/"}, servedBy, here)}
}

// goThereAndBack has all of the load go to the far instance for a while.
func (f *farLab) goThereAndBack(t *testing.T) {
	t.Helper()
	for _, c := range []change{f.out(), f.back()} {
		f.make(t, c)
		f.waitLoad(t)
	}
}

// waitLoad waits until what was changed has been under load for a while.
func (f *farLab) waitLoad(t *testing.T) {
	t.Helper()
	for _, g := range f.both() {
		g.load.waitMore(t)
	}
}
