package listeners

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/usherproxy/usher/gateway"
)

// group is what one resolver of a chain leads to: a cluster, or with failover
// an aggregate of clusters that are tried in order.
type group struct {
	base     string // the cluster that routes and tcp listeners name
	node     *gateway.ChainNode
	failover bool
	legs     []leg
}

// leg is one cluster with instances behind it.
type leg struct {
	cluster string
	target  *gateway.Target
	// from is the partition of the service that leads here; Consul measures from
	// there what is in another partition.
	from string
}

// groupsOf gives the groups of a chain, by the names of their nodes.
func groupsOf(s *gateway.Snapshot, c *gateway.Chain) ([]group, error) {
	var groups []group
	for _, name := range slices.Sorted(maps.Keys(c.Nodes)) {
		node := c.Nodes[name]
		if node != nil && node.Type != gateway.NodeResolver {
			continue
		}
		g, err := groupOf(s, c, node)
		if err != nil {
			return nil, fmt.Errorf("node %q: %w", name, err)
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// groupOf gives the group of a resolver node.
func groupOf(s *gateway.Snapshot, c *gateway.Chain, node *gateway.ChainNode) (group, error) {
	if node == nil {
		return group{}, errors.New("its discovery chain misses a node")
	}
	if node.Type != gateway.NodeResolver || node.Resolver == nil {
		return group{}, fmt.Errorf("a node of type %q of its discovery chain stands where a resolver is needed", node.Type)
	}
	primary := c.Targets[node.Resolver.Target]
	base, err := clusterName(s, primary)
	if err != nil {
		return group{}, fmt.Errorf("target %q: %w", node.Resolver.Target, err)
	}
	g := group{base: base, node: node}
	f := node.Resolver.Failover
	if f == nil {
		g.legs = []leg{{cluster: base, target: primary, from: c.Partition}}
		return g, nil
	}
	if m := f.Policy.Mode; m != "" && m != "sequential" {
		return group{}, fmt.Errorf("failover policy %q is not supported; use sequential", m)
	}
	g.failover = true
	for i, id := range append([]string{node.Resolver.Target}, f.Targets...) {
		target := c.Targets[id]
		if target == nil {
			return group{}, fmt.Errorf("its discovery chain misses target %q", id)
		}
		g.legs = append(g.legs, leg{cluster: fmt.Sprintf("failover-target~%d~%s", i, base), target: target, from: c.Partition})
	}
	return g, nil
}

// clusterName gives the name of a target's cluster: the chain's name for it,
// and for a target in a peered cluster one that ends in the peer's trust domain.
func clusterName(s *gateway.Snapshot, t *gateway.Target) (string, error) {
	switch {
	case t == nil:
		return "", errors.New("its discovery chain does not have it")
	case t.Peer == "" && t.Name == "":
		return "", errors.New("it has no name")
	case t.Peer == "":
		return t.Name, nil
	}
	parts := []string{t.Service, tenant(t.Namespace), t.Peer, "external"}
	if domain := peerTrustDomain(s.Endpoints[t.ID]); domain != "" {
		parts = append(parts, domain)
	}
	return strings.Join(parts, "."), nil
}

// peerTrustDomain reads the trust domain of a peer out of what its instances
// are called; "" while there is none.
func peerTrustDomain(e *gateway.Endpoints) string {
	if e == nil {
		return ""
	}
	for _, ep := range e.Endpoints {
		if ep.Peer == nil {
			continue
		}
		for _, id := range ep.Peer.SpiffeID {
			if u, err := url.Parse(id); err == nil && u.Scheme == "spiffe" && u.Host != "" {
				return u.Host
			}
		}
	}
	return ""
}

// spiffeID gives the identity that the instances of a target have in the mesh
// (https://developer.hashicorp.com/consul/docs/secure-mesh/certificate/built-in).
func spiffeID(trustDomain string, t *gateway.Target) string {
	path := fmt.Sprintf("/ns/%s/dc/%s/svc/%s", tenant(t.Namespace), t.Datacenter, t.Service)
	if p := tenant(t.Partition); p != "default" {
		path = "/ap/" + p + path
	}
	id := url.URL{Scheme: "spiffe", Host: trustDomain, Path: path}
	return id.String()
}
