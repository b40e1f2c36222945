package consul

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// peeringKind reads what is known of a cluster peer
// (https://developer.hashicorp.com/consul/api-docs/peering#read-a-peering-connection).
// Consul cannot block on it.
var peeringType = &queryType{name: "peering", path: "/v1/peering/", interval: 5 * time.Second, decode: decodeAs(decodePeering)}

// peer reads the root certificates of the cluster peer that a target is in.
func (b *snapshotBuilder) addPeer(t *gateway.Target) {
	if t.Peer == "" || b.snapshot.Peers[t.Peer] != nil {
		return
	}
	q := query{queryType: peeringType, name: t.Peer, partition: gateway.OrDefault(t.Partition)}
	roots, f := read[gateway.Roots](b.subscription, q)
	where := fmt.Sprintf("cluster peer %q", t.Peer)
	switch {
	case roots != nil:
		if b.refusedLong(q, f) {
			b.addProblem(where, f.err.Error())
		}
	case !b.lasted(q.String()):
		b.addMissing(q.String(), f.err)
		return
	case outcomeOf(f.err) == outcomeMissing:
		// Consul has no such peering, so Usher serves nothing of that peer.
		b.addProblem(where, f.err.Error())
		roots = noRoots
	default:
		b.addProblem(where, heldBack(q, f))
		return
	}
	if b.snapshot.Peers == nil {
		b.snapshot.Peers = map[string]*gateway.Roots{}
	}
	b.snapshot.Peers[t.Peer] = roots
}

// noRoots is the value for a peer that has sent no root certificates.
var noRoots = &gateway.Roots{}

// hasRoots reports whether the root certificates of a cluster peer are known.
func (b *snapshotBuilder) hasRoots(peer string) bool {
	roots := b.snapshot.Peers[peer]
	return roots != nil && len(roots.PEMs) > 0
}

// decodePeering gives the peer's root certificates. Consul's servers write those
// that the peer has told them last into the peering, in one transaction with
// the trust bundle that its own proxies get; there are none before the peer has
// told any. The peer's trust domain stands in the name of its servers, which
// only the side that has dialled knows: "server.dc2.peering.<trust domain>".
func decodePeering(_ *gateway.Roots, a answer) (*gateway.Roots, error) {
	var out struct {
		Name           string
		PeerServerName string
		PeerCAPems     []string
	}
	if err := json.Unmarshal(a.body, &out); err != nil {
		return nil, fmt.Errorf("peering: %w", err)
	}
	if out.Name == "" || slices.Contains(out.PeerCAPems, "") {
		return nil, errors.New("peering: the answer lacks the name or a certificate")
	}
	_, domain, _ := strings.Cut(out.PeerServerName, ".peering.")
	return &gateway.Roots{TrustDomain: domain, PEMs: out.PeerCAPems}, nil
}
