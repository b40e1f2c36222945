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

// group is what one resolver of a chain leads to: a cluster, or with failover
// an aggregate of clusters that are tried in order.
type group struct {
	// base is the cluster that routes and tcp listeners name; "" when the group
	// leads to a cluster peer whose root certificates are not known.
	base     string
	node     *gateway.ChainNode
	failover bool
	// legs may be none: a cluster peer that exports no instance leaves none.
	legs []leg
	// unknown are the cluster peers that are left out.
	unknown []string
}

// leg is one cluster with instances behind it.
type leg struct {
	cluster string
	target  *gateway.Target
	// from is the partition of the service that leads here; Consul measures from
	// there what is in another partition.
	from string
	peer *gateway.PeerMeta // of the instances in a cluster peer; nil: the own mesh
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
	targets := []string{node.Resolver.Target}
	if f := node.Resolver.Failover; f != nil {
		if m := f.Policy.Mode; m != "" && m != "sequential" {
			return group{}, fmt.Errorf("failover policy %q is not supported; use sequential", m)
		}
		g.failover = true
		targets = append(targets, f.Targets...)
	}
	if base == "" {
		g.unknown = []string{primary.Peer}
		return g, nil
	}
	for _, id := range targets {
		target := c.Targets[id]
		if target == nil {
			return group{}, fmt.Errorf("its discovery chain misses target %q", id)
		}
		g.add(s, leg{target: target, from: c.Partition})
	}
	return g, nil
}

// add adds a leg, unless its target is in a cluster peer and cannot be
// verified: no root certificates, or nobody to verify. As with Consul, the legs
// are counted without those.
func (g *group) add(s *gateway.Snapshot, l leg) {
	l.cluster = g.base
	if g.failover {
		l.cluster = fmt.Sprintf("failover-target~%d~%s", len(g.legs), g.base)
	}
	if l.target.Peer != "" {
		if peerRoots(s, l.target.Peer) == nil {
			g.unknown = append(g.unknown, l.target.Peer)
			return
		}
		if l.peer = peerMeta(s.Endpoints.Get(l.target.ID)); l.peer == nil {
			return
		}
	}
	g.legs = append(g.legs, l)
}

// clusterName gives the name of a target's cluster: the chain's name for it,
// and for a target in a cluster peer one that ends in the peer's trust domain.
// It is empty while the peer's root certificates are not known.
func clusterName(s *gateway.Snapshot, t *gateway.Target) (string, error) {
	switch {
	case t == nil:
		return "", errors.New("its discovery chain does not have it")
	case t.Peer == "" && t.Name == "":
		return "", errors.New("it has no name")
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

// peerRoots gives the root certificates of a cluster peer; nil while there are
// none.
func peerRoots(s *gateway.Snapshot, peer string) *gateway.Roots {
	if r := s.Peers[peer]; r != nil && len(r.PEMs) > 0 {
		return r
	}
	return nil
}

// peerMeta says how to reach and verify the instances of a target in a cluster
// peer: the same for all of them. It is nil when there are none.
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

// trustDomainOf reads the trust domain of a cluster peer out of the identities
// of its instances; "" when there is none.
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
