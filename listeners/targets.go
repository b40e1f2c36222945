package listeners

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
)

// targetGroup is what one resolver of a chain leads to: a cluster, or with failover an aggregate of clusters that
// are tried in order.
type targetGroup struct {
	// clusterName is what routes and tcp listeners name. It is empty if the group leads to a cluster peer whose root
	// certificates are not known.
	clusterName     string
	node            *gateway.ChainNode
	failover        bool
	targets         []edsCluster // may be none: a cluster peer may export no instance
	unresolvedPeers []string     // the cluster peers that are left out
}

// targetCluster is one cluster with endpoints.
type edsCluster struct {
	name   string
	target *gateway.Target
	// fromPartition is the partition of the service that leads here: Consul compares other partitions with it.
	fromPartition string
	peer          *gateway.PeerMeta // of the endpoints in a cluster peer; nil: the own mesh
}

// targetGroupsOf returns the groups of a chain, sorted by the names of their nodes.
func targetGroupsOf(s *gateway.Snapshot, c *gateway.Chain) ([]targetGroup, error) {
	var groups []targetGroup
	for _, name := range slices.Sorted(maps.Keys(c.Nodes)) {
		node := c.Nodes[name]
		if node != nil && node.Type != gateway.NodeResolver {
			continue
		}
		g, err := targetGroupOf(s, c, node)
		if err != nil {
			return nil, fmt.Errorf("node %q: %w", name, err)
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// incomplete is the error of a discovery chain that refers to something that it does not have.
func missingInChain(c *gateway.Chain, missing string) error {
	return fmt.Errorf("the discovery chain refers to %s, and does not contain it; "+
		"look at GET /v1/discovery-chain/%s: if it is there, report a bug in Usher, else one in Consul", missing, c.ServiceName)
}

// targetGroupOf returns the group of a resolver node.
func targetGroupOf(s *gateway.Snapshot, c *gateway.Chain, node *gateway.ChainNode) (targetGroup, error) {
	if node == nil {
		return targetGroup{}, missingInChain(c, "a node")
	}
	if node.Type != gateway.NodeResolver || node.Resolver == nil {
		return targetGroup{}, fmt.Errorf("the discovery chain has a node of type %q where a resolver is needed; "+
			"check the service-router, service-splitter and service-resolver of %s", node.Type, c.ServiceName)
	}
	primary := c.Targets[node.Resolver.Target]
	if primary == nil {
		return targetGroup{}, missingInChain(c, fmt.Sprintf("target %q", node.Resolver.Target))
	}
	name, err := clusterName(s, primary)
	if err != nil {
		return targetGroup{}, fmt.Errorf("target %q: %w", node.Resolver.Target, err)
	}
	g := targetGroup{clusterName: name, node: node}
	targets := []string{node.Resolver.Target}
	if f := node.Resolver.Failover; f != nil {
		if m := f.Policy.Mode; m != "" && m != "sequential" {
			return targetGroup{}, fmt.Errorf("failover policy %q is not supported; use sequential", m)
		}
		g.failover = true
		targets = append(targets, f.Targets...)
	}
	if name == "" {
		g.unresolvedPeers = []string{primary.Peer}
		return g, nil
	}
	for _, id := range targets {
		target := c.Targets[id]
		if target == nil {
			return targetGroup{}, missingInChain(c, fmt.Sprintf("target %q", id))
		}
		g.add(s, edsCluster{target: target, fromPartition: c.Partition})
	}
	return g, nil
}

// add adds a cluster, unless its target is in a cluster peer and cannot be verified: it has no root certificates or
// no endpoints. As with Consul, these do not count in the names of the others.
func (g *targetGroup) add(s *gateway.Snapshot, t edsCluster) {
	t.name = g.clusterName
	if g.failover {
		t.name = fmt.Sprintf("failover-target~%d~%s", len(g.targets), g.clusterName)
	}
	if t.target.Peer != "" {
		if peerRoots(s, t.target.Peer) == nil {
			g.unresolvedPeers = append(g.unresolvedPeers, t.target.Peer)
			return
		}
		if t.peer = peerMeta(s.Endpoints.Get(t.target.ID)); t.peer == nil {
			return
		}
	}
	g.targets = append(g.targets, t)
}

// clusterName returns the name of a target's cluster: the chain's name for it, and for a target in a cluster peer
// one that ends in the peer's trust domain. It is empty while the peer's root certificates are not known.
func clusterName(s *gateway.Snapshot, t *gateway.Target) (string, error) {
	switch {
	case t.Peer == "" && t.Name == "":
		return "", errors.New("the discovery chain has no name for it; write the service-resolver again, and report it if this lasts")
	case t.Peer == "":
		return t.Name, nil
	}
	roots := peerRoots(s, t.Peer)
	if roots == nil {
		return "", nil
	}
	parts := []string{t.Service, gateway.OrDefault(t.Namespace), t.Peer, "external"}
	if domain := cmp.Or(roots.TrustDomain, trustDomainOf(peerMeta(s.Endpoints.Get(t.ID)))); domain != "" {
		parts = append(parts, domain)
	}
	return strings.Join(parts, "."), nil
}

// peerRoots returns the root certificates of a cluster peer; nil while there are none.
func peerRoots(s *gateway.Snapshot, peer string) *gateway.Roots {
	if r := s.Peers[peer]; r != nil && len(r.PEMs) > 0 {
		return r
	}
	return nil
}

// peerMeta returns how to reach and verify the endpoints of a target in a cluster peer, which is the same for all of
// them. It is nil if there are none.
func peerMeta(e *gateway.Endpoints) *gateway.PeerMeta {
	if e == nil {
		return nil
	}
	for i := range e.Endpoints {
		if p := e.Endpoints[i].Peer; p != nil && len(p.SpiffeID) > 0 {
			return p
		}
	}
	return nil
}

// trustDomainOf reads the trust domain of a cluster peer from the identities of its endpoints; "" if there is none.
func trustDomainOf(p *gateway.PeerMeta) string {
	if p == nil {
		return ""
	}
	for _, id := range p.SpiffeID {
		if u, err := url.Parse(id); err == nil && u.Scheme == "spiffe" && u.Host != "" {
			return u.Host
		}
	}
	return ""
}
