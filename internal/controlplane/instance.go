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

// candidates returns the registered instances that an Envoy may be: those with its
// service ID and, if that is not enough, with its node name and its address.
func (e *encoder) candidates(n xds.Node) []*gateway.Instance {
	var found, atAddress []*gateway.Instance
	for _, in := range e.instances[n.ID] {
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
func errAmbiguous(n xds.Node, candidates []*gateway.Instance) error {
	var nodes []string
	for _, in := range candidates {
		nodes = append(nodes, fmt.Sprintf("%q", in.Node))
	}
	return status.Errorf(codes.FailedPrecondition,
		"gateway %q has instances with the service ID %q and different settings on the nodes %s, and neither the Envoy's %s nor its node metadata says which one it is: "+
			"add node_name to the metadata (\"usher bootstrap --node-name\", \"consul connect envoy -node-name\")",
		n.Cluster, n.ID, strings.Join(nodes, ", "), describeAddress(n.Peer))
}

func describeAddress(a netip.Addr) string {
	if !a.IsValid() {
		return "unix socket"
	}
	return "address " + a.String()
}
