//go:build e2e

package conformance

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"testing"

	"github.com/hashicorp/consul/api"
)

// The second datacenter, and the nodes in it.
const (
	remoteDatacenter = "dc2"
	remoteNode       = "mesh2"
	meshGatewayNode  = "gateways" // in either datacenter
)

// federatedCase is a case in which there is a second datacenter.
type federatedCase struct {
	testCase `yaml:",inline"`

	// Remote are the services of the second datacenter, as Services are those of
	// the first.
	Remote map[string][]map[string]any
	// MeshGateways are those of each datacenter: what is laid over the
	// registration, and the Status of its check.
	MeshGateways map[string][]map[string]any
}

// TestSameResourcesAsConsulWithASecondDatacenter compares cases in which
// services lead to another datacenter.
func TestSameResourcesAsConsulWithASecondDatacenter(t *testing.T) {
	cases := readFiles(t, "testdata/federation/*.yaml", func(c *federatedCase, name string) { c.name = name })
	s := startSuite(t, current)
	s.releases = envoys[:1]
	remote := startRemote(t, s.consul)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for dc, server := range map[string]*consulServer{"dc1": s.consul, remoteDatacenter: remote} {
				server.loadRemote(t, dc, c)
			}
			s.run(t, c.testCase)
		})
	}
	t.Logf("%d of %d cases equal, %d resources", s.equal, len(cases), s.resources)
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
	remote := startConsul(t, ip, consulVersion,
		"-datacenter", remoteDatacenter, "-retry-join-wan", host, "-hcl", `primary_datacenter = "dc1"`)
	eventually(t, "the first datacenter knows the second", func() error {
		nodes, _, err := first.client.Catalog().Nodes(&api.QueryOptions{Datacenter: remoteDatacenter})
		if err == nil && len(nodes) == 0 {
			err = errors.New("it has no nodes")
		}
		return err
	})
	return remote
}

// loadRemote replaces what a datacenter has of a case, beside what every case
// has in the first one.
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
				writes = append(writes, remotely(sidecar(name, i+1, j+1, instance)))
			}
		}
	}
	if err := s.write(writes); err != nil {
		t.Fatalf("%s: %v", dc, err)
	}
}

// remotely puts a registration onto the node of the second datacenter, which
// has an address for those outside.
func remotely(registration map[string]any) write {
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
	return laidOver(map[string]any{"Node": meshGatewayNode, "Address": "10.9.0.1", "Service": service}, over)
}
