//go:build e2e

package conformance

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
)

// The names that two cluster peers have for each other. The peer's datacenter
// has the name that the local one has.
const (
	peerName = "east" // the one with the exported services
	ownName  = "west"
)

// TestSameResourcesAsConsulWithAClusterPeer compares cases in which services lead
// to a cluster peer: the remote services of a case are in the peer, and
// exported.
func TestSameResourcesAsConsulWithAClusterPeer(t *testing.T) {
	comparePeered(t, current, append(readFederated(t, "testdata/peering/*.yaml"), readFederated(t, "testdata/peering-current/*.yaml")...))
}

// TestSameResourcesAsOldConsulWithAClusterPeer does the same with the older
// Consul, without the cases that it gets wrong: where a peer has no instance, it
// sends clusters that accept every identity; and where a leg of a split is left
// out, the total of the weights still has it.
func TestSameResourcesAsOldConsulWithAClusterPeer(t *testing.T) {
	comparePeered(t, older, readFederated(t, "testdata/peering/*.yaml"))
}

func comparePeered(t *testing.T, ref reference, cases []federatedCase) {
	t.Parallel()
	s := startSuite(t, ref)
	s.releases, s.peered = envoys[:1], true
	peer := startPeer(t, s.consul)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			s.loadPeered(t, peer, c)
			s.run(t, c.GatewayCase)
		})
	}
	t.Logf("Consul %s: %d of %d cases equal, %d resources", ref.version, s.equal, len(cases), s.resources)
	if s.ran == len(cases) {
		s.allowancesAreNeeded(t)
	}
}

// TestClusterPeerGetsNewRoots gives the peer a new root certificate. Usher comes
// to trust what Consul's own gateway does, without a change that wakes it.
func TestClusterPeerGetsNewRoots(t *testing.T) {
	t.Parallel()
	c := readFederated(t, "testdata/peering/redirect.yaml")[0]
	s := startSuite(t, current)
	peer := startPeer(t, s.consul)
	s.loadPeered(t, peer, c)
	s.run(t, c.GatewayCase)
	if _, err := peer.client.Connect().CASetConfig(&api.CAConfig{
		Provider: "consul", Config: map[string]any{"PrivateKeyType": "ec", "PrivateKeyBits": 384},
	}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the peer has sent its new root", func() error {
		p, _, err := s.consul.client.Peerings().Read(t.Context(), peerName, nil)
		if err == nil && len(p.PeerCAPems) < 2 {
			err = errors.New("one root")
		}
		return err
	})
	want, stop, err := s.askConsul(t, false)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	s.expect(t, "the Envoy that stays", s.follower, want)
}

// TestTCPListenerThatLeadsToAClusterPeer shows what Consul's gateway cannot do.
func TestTCPListenerThatLeadsToAClusterPeer(t *testing.T) {
	t.Parallel()
	c := readFederated(t, "testdata/better/peer-tcp.yaml")[0]
	s := startSuite(t, current)
	s.loadPeered(t, startPeer(t, s.consul), c)
	s.consul.reset(t)
	if err := s.consul.load(c.GatewayCase); err != nil {
		t.Fatal(err)
	}
	s.wantWrongWithConsul(t, "cluster name is required")
	want := []string{"db:10.0.1.1:5432", "http:10.0.1.1:8080"}
	eventually(t, "Usher has both listeners, and the instances in the peer", func() error {
		all := s.everything(t, s.usher)
		if got := slices.Sorted(maps.Keys(all[resource.ListenerType])); !slices.Equal(got, want) {
			return fmt.Errorf("it sends the listeners %q, want %q", got, want)
		}
		if len(all[resource.EndpointType]) != 2 {
			return fmt.Errorf("it sends the instances of %d clusters, want 2", len(all[resource.EndpointType]))
		}
		return nil
	})
}

// startPeer starts a server of another cluster, and peers the two.
func startPeer(t *testing.T, first *consulServer) *consulServer {
	t.Helper()
	peer := startConsul(t, loopback(), first.version, "-hcl", "ports { grpc_tls = 8503 }")
	lab.EstablishPeering(t, first.client, peer.client, ownName, peerName)
	return peer
}

// loadPeered replaces what the peer has of a case, and waits until the first
// cluster has imported it.
func (s *suite) loadPeered(t *testing.T, peer *consulServer, c federatedCase) {
	t.Helper()
	peer.loadRemote(t, remoteDatacenter, federatedCase{})
	s.waitImported(t, c, 0)
	peer.loadRemote(t, remoteDatacenter, c)
	var exported []map[string]any
	for _, name := range slices.Sorted(maps.Keys(c.Remote)) {
		exported = append(exported, map[string]any{"Name": name, "Consumers": []map[string]any{{"Peer": ownName}}})
	}
	if err := peer.write([]write{{"/v1/config", map[string]any{
		"Kind": "exported-services", "Name": "default", "Services": exported,
	}}}); err != nil {
		t.Fatal(err)
	}
	s.waitImported(t, c, len(c.MeshGateways[remoteDatacenter]))
}

// waitImported waits until every remote service of the case has that many
// instances: the peer's mesh gateways stand for them.
func (s *suite) waitImported(t *testing.T, c federatedCase, instances int) {
	t.Helper()
	for name := range c.Remote {
		eventually(t, fmt.Sprintf("%s has %d imported instances", name, instances), func() error {
			got, _, err := s.consul.client.Health().Connect(name, "", false, &api.QueryOptions{Peer: peerName})
			if err == nil && len(got) != instances {
				err = fmt.Errorf("it has %d", len(got))
			}
			return err
		})
	}
}
