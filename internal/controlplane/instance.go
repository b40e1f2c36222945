package controlplane

import (
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/xds"
)

// instancesByID are the registered instances of a gateway, by service ID.
type instancesByID map[string][]*gateway.Instance

// candidates returns the registered instances that an Envoy may be: those with its service ID and, if that is not
// enough, with its node name and its address.
func (i instancesByID) candidates(n xds.Node) []*gateway.Instance {
	var found, atAddress []*gateway.Instance
	for _, in := range i[n.ID] {
		if nodeName := n.Metadata["node_name"]; nodeName != "" && in.Node != nodeName {
			continue
		}
		found = append(found, in)
		if hasAddress(in, n.Peer) {
			atAddress = append(atAddress, in)
		}
	}
	if len(found) > 1 && len(atAddress) > 0 {
		return atAddress
	}
	return found
}

func hasAddress(in *gateway.Instance, a netip.Addr) bool {
	is := func(s string) bool {
		own, err := netip.ParseAddr(s)
		return err == nil && own.Unmap() == a.Unmap()
	}
	if is(in.NodeAddress) || is(in.Address) {
		return true
	}
	for _, tagged := range in.TaggedAddresses {
		if is(tagged.Address) {
			return true
		}
	}
	return false
}

// errAmbiguous returns the gRPC status for an Envoy that may be several instances.
func ambiguousError(n xds.Node, candidates []*gateway.Instance) error {
	var nodes []string
	for _, in := range candidates {
		nodes = append(nodes, fmt.Sprintf("%q", in.Node))
	}
	return status.Errorf(codes.FailedPrecondition,
		"%s can be an instance of gateway %q on each of the nodes %s, and their settings differ. "+
			"Start it with the name of its node: \"usher bootstrap --node-name\", or \"consul connect envoy -node-name\"",
		describeEnvoy(n), n.Cluster, strings.Join(nodes, ", "))
}

// describeEnvoy names an Envoy in messages, with its release and the address that it connects from.
func describeEnvoy(n xds.Node) string {
	address := "a unix socket"
	if n.Peer.IsValid() {
		address = n.Peer.String()
	}
	return fmt.Sprintf("Envoy %q (release %s, from %s)", n.ID, n.Release(), address)
}
