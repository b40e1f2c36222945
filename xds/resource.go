package xds

import (
	"fmt"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Resource is one encoded resource. It is encoded once, however many Envoys
// get it, and it is never modified.
type Resource struct {
	name, version string
	size          int
	// item is the resource as an element of a delta response, and body, which
	// is the end of it, as one of a state-of-the-world response.
	deltaItem, sotwItem mem.Buffer
	// children are the resources of the type's child type that this one
	// names: load assignments of a cluster, route configurations of a
	// listener.
	children []string
	// legs are the clusters that an aggregate cluster sends to.
	targets []string
}

// NewResource checks a message against Envoy's own field rules and encodes it,
// under the name that it has in itself. Equal messages get equal versions, in
// every process.
func NewResource(t Type, m proto.Message) (*Resource, error) {
	return NewNamedResource(t, NameOf(m), m)
}

// NewNamedResource is NewResource for messages of types without names, such as
// TokenBucket. All others have the name that is given.
func NewNamedResource(t Type, name string, m proto.Message) (*Resource, error) {
	if name == "" {
		return nil, fmt.Errorf("%s without a name", t)
	}
	if url := "type.googleapis.com/" + string(proto.MessageName(m)); url != t.URL() {
		return nil, fmt.Errorf("%s %q is a %s", t, name, proto.MessageName(m))
	}
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return nil, fmt.Errorf("%s %q: %w", t, name, err)
		}
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", t, name, err)
	}
	r := &Resource{name: name, version: cache.HashResource(value), size: len(value), children: childrenOf(m), targets: targetsOf(m)}
	r.encode(t, value)
	return r, nil
}

// encode makes item and body. The body comes last in the item, and has the same
// field number there and in a state-of-the-world response. What has no name is
// wrapped there, as Envoy allows
// (https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/discovery/v3/discovery.proto#service-discovery-v3-discoveryresponse).
func (r *Resource) encode(t Type, value []byte) {
	body := appendBytes(nil, resourceBody, appendBytes(appendString(nil, anyType, t.URL()), anyValue, value))
	head := appendString(appendString(nil, resourceVersion, r.version), resourceName, r.name)
	item := protowire.AppendTag(nil, responseItem, protowire.BytesType)
	item = protowire.AppendVarint(item, uint64(len(head)+len(body)))
	item = slices.Concat(item, head, body)
	r.deltaItem, r.sotwItem = mem.SliceBuffer(item), mem.SliceBuffer(item[len(item)-len(body):])
	if !t.isNamed() {
		wrapped := appendBytes(appendString(nil, anyType, resourceURL), anyValue, slices.Concat(head, body))
		r.sotwItem = mem.SliceBuffer(appendBytes(nil, responseItem, wrapped))
	}
}

// NameOf is the name a resource made of m would have; empty if m has none.
func NameOf(m proto.Message) string { return cache.GetResourceName(m) }

// Name is the resource's name, unique within its type.
func (r *Resource) Name() string { return r.name }

// Version is the SHA-256 of the encoded bytes, in hexadecimal.
func (r *Resource) Version() string { return r.version }

// Size is the number of encoded bytes, without the envelope.
func (r *Resource) Size() int { return r.size }

// isAggregate says whether the resource is a cluster that leads to others.
func (r *Resource) isAggregate() bool { return len(r.targets) > 0 }

// childrenOf lists what Envoy will ask for by name once it has m.
func childrenOf(m proto.Message) []string {
	switch m := m.(type) {
	case *clusterv3.Cluster:
		return clusterChildren(m)
	case *listenerv3.Listener:
		return listenerChildren(m)
	default:
		return nil
	}
}

func clusterChildren(c *clusterv3.Cluster) []string {
	if c.GetType() != clusterv3.Cluster_EDS {
		return nil
	}
	if name := c.GetEdsClusterConfig().GetServiceName(); name != "" {
		return []string{name}
	}
	return []string{c.GetName()}
}

func listenerChildren(l *listenerv3.Listener) []string {
	chains := l.GetFilterChains()
	if d := l.GetDefaultFilterChain(); d != nil {
		chains = append(slices.Clone(chains), d)
	}
	var names []string
	for _, chain := range chains {
		for _, filter := range chain.GetFilters() {
			// Nil for every other kind of filter.
			manager := resource.GetHTTPConnectionManager(filter)
			if name := manager.GetRds().GetRouteConfigName(); name != "" {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// legsOf lists the clusters that m sends to instead of instances of its own.
func targetsOf(m proto.Message) []string {
	c, ok := m.(*clusterv3.Cluster)
	if !ok {
		return nil
	}
	var aggregate aggregatev3.ClusterConfig
	if err := c.GetClusterType().GetTypedConfig().UnmarshalTo(&aggregate); err != nil {
		return nil // it is of another kind
	}
	return aggregate.GetClusters()
}
