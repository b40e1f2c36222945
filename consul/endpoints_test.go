package consul

import (
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// newPeeredLab is a Consul whose service web leads to the cluster peer east.
func newFakeGatewayWithPeer(t *testing.T) *fakeConsul {
	t.Helper()
	c := newFakeGatewayWithInstances(t, "web")
	c.set("/v1/discovery-chain/web", reply{body: `{"Chain": {"Datacenter": "dc1", "StartNode": "s", "Nodes": {"s": {}}, "Targets": {
		"web.east": {"ID": "web.east", "Service": "web", "Peer": "east", "MeshGateway": {"Mode": "local"}},
		"api.east": {"ID": "api.east", "Service": "api", "Peer": "east"}}}}`})
	c.set("/v1/health/connect/web?peer=east", reply{body: "[]"})
	c.set("/v1/health/connect/api?peer=east", reply{body: "[]"})
	return c
}

const peeringPath = "/v1/peering/east"

func TestRootsOfAClusterPeer(t *testing.T) {
	c := newFakeGatewayWithPeer(t)
	c.set(peeringPath, reply{body: `{"Name": "east", "PeerCAPems": ["one"], "PeerServerName": "server.dc2.peering.td-of-east.consul"}`})
	w := start(t, c.watcherWithShortTimeouts(t), "gateway")
	before := w.next(t, anyOne)
	wantEqual(t, map[string]*gateway.Roots{"east": {TrustDomain: "td-of-east.consul", PEMs: []string{"one"}}}, before.Peers)
	wantEqual(t, nil, before.MeshGateways)

	c.set(peeringPath, reply{body: `{"Name": "east", "PeerCAPems": ["one", "two"], "PeerServerName": "server.dc2.peering.td-of-east.consul"}`})
	after := w.next(t, anyOne)
	wantEqual(t, map[string]*gateway.Roots{"east": {TrustDomain: "td-of-east.consul", PEMs: []string{"one", "two"}}}, after.Peers)

	c.set(peeringPath, reply{status: 403, body: "Permission denied"})
	denied := w.next(t, func(s *gateway.Snapshot) bool { return len(s.Problems) > 0 })
	wantEqual(t, after.Peers, denied.Peers)
}

// The side that has accepted a peering knows no name of the peer's servers, and
// no certificates before the peer has come.
func TestAClusterPeerThatHasNotComeYetHasNoRoots(t *testing.T) {
	c := newFakeGatewayWithPeer(t)
	c.set(peeringPath, reply{body: `{"Name": "east", "State": "PENDING"}`})
	w := start(t, c.watcher(t), "gateway")
	wantEqual(t, map[string]*gateway.Roots{"east": {}}, w.next(t, anyOne).Peers)
	c.set(peeringPath, reply{body: `{"Name": "east", "State": "ACTIVE", "PeerCAPems": ["one"]}`})
	w.next(t, func(s *gateway.Snapshot) bool {
		return len(s.Peers["east"].PEMs) > 0 && s.Peers["east"].TrustDomain == ""
	})
}

func TestAClusterPeerThatTheTokenMayNotReadHoldsUpNothing(t *testing.T) {
	c := newFakeGatewayWithPeer(t)
	c.set(peeringPath, reply{status: 403, body: "Permission denied"})
	w := start(t, c.watcherWithShortTimeouts(t), "gateway")
	s := w.next(t, func(s *gateway.Snapshot) bool { // before Consul's answer, it says that there is none
		return slices.ContainsFunc(s.Problems, func(p problem.Problem) bool {
			return p.Where == `cluster peer "east"` && strings.Contains(p.What, "Permission denied")
		})
	})
	if len(s.Services) != 1 || len(s.Peers) != 0 {
		t.Errorf("services %v, peers %v", s.Services, s.Peers)
	}
}
