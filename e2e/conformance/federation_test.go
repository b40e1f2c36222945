//go:build e2e

package conformance

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/resourcediff"
)

// The second datacenter, and the nodes in it.
const (
	remoteDatacenter = "dc2"
	remoteNode       = "mesh2"
	meshGatewayNode  = "gateways" // in either datacenter
)

// federatedCase is a case in which there is a second datacenter, or a cluster
// peer.
type federatedCase struct {
	lab.GatewayCase `yaml:",inline"`

	// Remote are the services there, as Services are those of the first
	// datacenter.
	Remote map[string][]map[string]any
	// MeshGateways are those of each datacenter: what is laid over the
	// registration, and the Status of its check.
	MeshGateways map[string][]map[string]any
}

// TestSameResourcesAsConsulWithASecondDatacenter compares cases in which
// services lead to another datacenter.
func TestSameResourcesAsConsulWithASecondDatacenter(t *testing.T) { compareFederated(t, current) }

// TestSameResourcesAsOldConsulWithASecondDatacenter does the same with the older
// Consul.
func TestSameResourcesAsOldConsulWithASecondDatacenter(t *testing.T) { compareFederated(t, older) }

func readFederated(t *testing.T, pattern string) []federatedCase {
	t.Helper()
	return lab.ReadCases(t, pattern, func(c *federatedCase, name string) { c.Name = name })
}

func compareFederated(t *testing.T, ref reference) {
	t.Parallel()
	cases := readFederated(t, "testdata/federation/*.yaml")
	s := startSuite(t, ref)
	s.releases = envoys[:1]
	remote := startRemote(t, s.consul)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			s.loadFederated(t, remote, c)
			s.run(t, c.GatewayCase)
		})
	}
	t.Logf("Consul %s: %d of %d cases equal, %d resources", ref.version, s.equal, len(cases), s.resources)
}

// TestADatacenterThatIsGoneStays ends the second datacenter. Consul's xDS and
// Usher keep what they know of it, and go on with what changes elsewhere.
func TestADatacenterThatIsGoneStays(t *testing.T) {
	t.Parallel()
	c := readFederated(t, "testdata/federation/mesh-gateways-remote.yaml")[0]
	s := startSuite(t, current)
	var own *envoy
	t.Run("it is there", func(while *testing.T) {
		s.loadFederated(while, startRemote(while, s.consul), c)
		s.run(while, c.GatewayCase)
		// Not before: Consul would send what it has of the gateway without a case.
		var stop func()
		own, stop = connect(t, s.consul.grpc)
		t.Cleanup(stop)
		if _, err := settled(own, nothingElse); err != nil {
			while.Fatal(err)
		}
	})
	eventually(t, "the first datacenter knows that it is gone", func() error {
		if _, _, err := s.consul.client.Catalog().Nodes(&api.QueryOptions{Datacenter: remoteDatacenter}); err == nil {
			return errors.New("it answers")
		}
		return nil
	})
	more := sidecar("api", 1, 2, map[string]any{"Status": "passing"})
	if err := s.consul.write([]write{{registerPath, more}}); err != nil {
		t.Fatal(err)
	}
	v, err := settled(own, func(v view) string {
		for _, address := range []string{"10.1.1.2", "198.51.100.21"} {
			if !strings.Contains(resourcediff.Text(v.Resources[resource.EndpointType]), address) {
				return address
			}
		}
		return ""
	})
	if err != nil {
		t.Fatalf("Consul's xDS has the new instance beside the mesh gateways there: %v", err)
	}
	want := &original{suite: s, views: own.views}
	if err := want.take(v); err != nil {
		t.Fatal(err)
	}
	s.expect(t, "the Envoy that stays", s.follower, want)
}

// loadFederated replaces what both datacenters have of a case, beside what every
// case has in the first one.
func (s *suite) loadFederated(t *testing.T, remote *consulServer, c federatedCase) {
	t.Helper()
	s.consul.loadRemote(t, "dc1", c)
	remote.loadRemote(t, remoteDatacenter, c)
}

// startRemote starts a server of the second datacenter, and waits until the
// first one's answers questions about it.
func startRemote(t *testing.T, first *consulServer) *consulServer {
	t.Helper()
	ip := loopback()
	host, _, err := net.SplitHostPort(first.http)
	if err != nil {
		t.Fatal(err)
	}
	remote := startConsul(t, ip, first.version,
		"-datacenter", remoteDatacenter, "-retry-join-wan", host, "-hcl", `primary_datacenter = "dc1"`)
	lab.WaitDatacenter(t, first.client, remoteDatacenter)
	return remote
}

// loadRemote replaces what a datacenter has of a case's remote services and mesh
// gateways.
func (s *consulServer) loadRemote(t *testing.T, dc string, c federatedCase) {
	t.Helper()
	for _, node := range []string{remoteNode, meshGatewayNode} {
		if _, err := s.client.Catalog().Deregister(&api.CatalogDeregistration{Node: node}, nil); err != nil {
			t.Fatalf("deregister %s: %v", node, err)
		}
	}
	var writes []write
	for i, over := range c.MeshGateways[dc] {
		writes = append(writes, write{registerPath, meshGateway(dc, i+1, over)})
	}
	if dc == remoteDatacenter {
		for i, name := range slices.Sorted(maps.Keys(c.Remote)) {
			for j, instance := range c.Remote[name] {
				writes = append(writes, onRemoteNode(sidecar(name, i+1, j+1, instance)))
			}
		}
	}
	if err := s.write(writes); err != nil {
		t.Fatalf("%s: %v", dc, err)
	}
}

// onRemoteNode puts a registration onto the node of the second datacenter, which
// has an address for those outside.
func onRemoteNode(registration map[string]any) write {
	registration["Node"], registration["Address"] = remoteNode, "10.2.0.2"
	registration["TaggedAddresses"] = map[string]any{"wan": "198.51.100.2"}
	return write{registerPath, registration}
}

// meshGateway registers the ith mesh gateway of a datacenter.
func meshGateway(dc string, i int, over map[string]any) map[string]any {
	id := fmt.Sprintf("mesh-gateway-%d", i)
	service := map[string]any{
		"Kind": "mesh-gateway", "ID": id, "Service": "mesh-gateway",
		"Address": fmt.Sprintf("10.9.%s.%d", dc[2:], i), "Port": 8443,
		"TaggedAddresses": map[string]any{
			"lan": map[string]any{"Address": fmt.Sprintf("10.9.%s.%d", dc[2:], i), "Port": 8443},
			"wan": map[string]any{"Address": fmt.Sprintf("198.51.100.%s%d", dc[2:], i), "Port": 443},
		},
	}
	return lab.Override(map[string]any{"Node": meshGatewayNode, "Address": "10.9.0.1", "Service": service}, over)
}
