//go:build e2e

package e2e

import (
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestFailoverToAnotherDatacenter takes the only instance of a service in the
// first datacenter out of service, and back, under load. The other instance is
// in a second datacenter and is reached directly, through the mesh gateway
// there, and through both mesh gateways. The mode changes while no request goes
// that way, and while all of them do. No request fails at Usher's gateway; those
// that fail at Consul's own are printed.
func TestFailoverToAnotherDatacenter(t *testing.T) {
	t.Parallel()
	f := lab.StartRemoteLab(t, []string{
		"-datacenter", "dc2", "-retry-join-wan", lab.ControlIP, "-hcl", `primary_datacenter = "dc1"`,
	}, func(f *lab.RemoteLab) { f.WaitWAN(t) })
	failsOver(t, f, api.ServiceResolverFailover{Datacenters: []string{"dc2"}})

	ways := []struct {
		mode api.MeshGatewayMode
		at   string // where the gateway's Envoy connects to
	}{
		{api.MeshGatewayModeRemote, lab.RemoteMeshGatewayIP + ":8443"},
		{api.MeshGatewayModeLocal, lab.MeshGatewayIP + ":8443"},
		{api.MeshGatewayModeNone, lab.RemoteServiceIP + ":21000"},
	}
	over := func(way int) lab.Change {
		defaults := lab.ProxyDefaultsWithLog("far")
		defaults.MeshGateway.Mode = ways[way].mode
		return lab.Change{Name: "mesh gateway mode " + string(ways[way].mode), Apply: f.Writing(defaults), Visible: lab.HasInDump(clusterHosts, "::"+ways[way].at+"::")}
	}
	for way := range ways {
		f.Make(t, over(way))
		failOverAndBack(t, f)
	}
	f.Make(t, goingAway(f))
	for way := range ways {
		f.Make(t, over(way))
		waitServedFrom(t, f)
	}
	f.Make(t, comingBack(f))
	f.WantNoFailures(t)
}

// TestFailoverToAClusterPeer does the same with another cluster, whose
// certificates have another root. Finally the service is redirected to that
// cluster.
func TestFailoverToAClusterPeer(t *testing.T) {
	t.Parallel()
	f := lab.StartRemoteLab(t, []string{"-hcl", "ports { grpc_tls = 8503 }"}, func(f *lab.RemoteLab) { f.PeerExportsService(t) })
	failsOver(t, f, api.ServiceResolverFailover{Targets: []api.ServiceResolverFailoverTarget{{Peer: lab.Far}}})
	failOverAndBack(t, f)
	f.Make(t, lab.Change{Name: "redirect to the peer", Apply: f.Writing(&api.ServiceResolverConfigEntry{
		Kind: api.ServiceResolver, Name: "static-server", Redirect: &api.ServiceResolverRedirect{Service: "static-server", Peer: lab.Far},
	}), Visible: answered(lab.Request{Path: "/"}, lab.ServedBy, lab.Far)})
	waitServedFrom(t, f)
	f.WantNoFailures(t)
}

// failsOver writes the failover, starts the gateways, and puts the load on them
// once they have the other leg.
func failsOver(t *testing.T, f *lab.RemoteLab, to api.ServiceResolverFailover) {
	t.Helper()
	if err := f.WriteEntry(&api.ServiceResolverConfigEntry{
		Kind: api.ServiceResolver, Name: "static-server", Failover: map[string]api.ServiceResolverFailover{"*": to},
	}); err != nil {
		t.Fatal(err)
	}
	f.StartGateways(t)
	f.StartLoad(t)
	for _, g := range f.Both() {
		testprocess.Eventually(t, g.Name+" has the other leg", testprocess.ChangeDeadline, func() error {
			return g.DumpHas(clusterHosts, "failover-target~1~static-server.default.dc1.internal")
		})
	}
}

func goingAway(f *lab.RemoteLab) lab.Change {
	return lab.Change{Name: "the instance here goes out of service", Apply: f.Maintenance(true), Visible: answered(lab.Request{Path: "/"}, lab.ServedBy, lab.Far)}
}

func comingBack(f *lab.RemoteLab) lab.Change {
	return lab.Change{Name: "the instance here is back", Apply: f.Maintenance(false), Visible: answered(lab.Request{Path: "/"}, lab.ServedBy, lab.Here)}
}

// failOverAndBack has all of the load go to the far instance for a while.
func failOverAndBack(t *testing.T, f *lab.RemoteLab) {
	t.Helper()
	for _, c := range []lab.Change{goingAway(f), comingBack(f)} {
		f.Make(t, c)
		waitServedFrom(t, f)
	}
}

// waitServedFrom waits until what was changed has been under load for a while.
func waitServedFrom(t *testing.T, f *lab.RemoteLab) {
	t.Helper()
	for _, g := range f.Both() {
		g.Load.WaitMore(t)
	}
}
