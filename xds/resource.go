package xds

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Type is a resource type.
type Type uint8

// The types that are served.
const (
	Secret Type = iota
	// TokenBucket limits a rate, such as that of an access log. Its messages have no name field.
	TokenBucket
	Cluster
	Endpoint
	Listener
	Route
	// NumTypes is the number of types. Every Type is less than it.
	NumTypes = iota
)

var (
	// dependencies are the types that listeners and routes refer to, in push order. In removalOrder, a resource goes
	// before those that it refers to.
	dependencies = []Type{Secret, TokenBucket, Cluster, Endpoint}
	removalOrder = []Type{Cluster, Endpoint, Secret, TokenBucket}

	typeURLs = [NumTypes]string{
		Secret: resource.SecretType, TokenBucket: "type.googleapis.com/envoy.type.v3.TokenBucket", Cluster: resource.ClusterType,
		Endpoint: resource.EndpointType, Listener: resource.ListenerType, Route: resource.RouteType,
	}
	typeNames = [NumTypes]string{
		Secret: "secret", TokenBucket: "token_bucket", Cluster: "cluster", Endpoint: "endpoint", Listener: "listener", Route: "route",
	}
)

// URL is the type_url of requests and responses.
func (t Type) URL() string { return typeURLs[t] }

// String returns the lower-case name for logs and metrics.
func (t Type) String() string { return typeNames[t] }

// typeOf returns the type of a URL; false if it is not served.
func typeOf(url string) (Type, bool) {
	i := slices.Index(typeURLs[:], url)
	return Type(max(i, 0)), i >= 0
}

// childTypes are the types of which Envoy waits for resources again whenever the resource that names them changes.
var childTypes = map[Type]Type{Cluster: Endpoint, Listener: Route}

// isFullState reports whether a state-of-the-world response of the type lists all resources, so that leaving one out
// removes it. https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#grouping-resources-into-responses
func (t Type) isFullState() bool { return t == Cluster || t == Listener }

// Resource is an encoded resource. It is encoded once for all Envoys, and is never modified.
type Resource struct {
	name, version string
	size          int
	// deltaItem is the encoded field resources of a DeltaDiscoveryResponse, and sotwItem that of a DiscoveryResponse.
	deltaItem, sotwItem mem.Buffer
	// children are the resources of the child type that this one names, such as the load assignment of a cluster.
	children []string
	members  []string // the clusters of an aggregate cluster
}

// NewResource validates a message by Envoy's own rules and encodes it. Equal messages get equal versions, in every
// process. The name is that in the message, if its type has one.
func NewResource(t Type, name string, m proto.Message) (*Resource, error) {
	if name == "" {
		return nil, fmt.Errorf("%s without a name: a bug in Usher; please report it", t)
	}
	if url := "type.googleapis.com/" + string(proto.MessageName(m)); url != t.URL() {
		return nil, fmt.Errorf("%s %q is a %s: a bug in Usher; please report it", t, name, proto.MessageName(m))
	}
	r := &Resource{name: name, children: childrenOf(t, m), members: membersOf(m)}
	if err := r.encode(t, m); err != nil {
		return nil, fmt.Errorf("%s %q: %w", t, name, err)
	}
	return r, nil
}

// encode validates m and sets what depends on its bytes. The field of the Any has the number 2 in Resource and in
// DiscoveryResponse, so that sotwItem is a part of deltaItem and needs no memory. A message without a name field is
// wrapped, as Envoy allows:
// https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/discovery/v3/discovery.proto#service-discovery-v3-discoveryresponse
func (r *Resource) encode(t Type, m proto.Message) error {
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return err
		}
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return err
	}
	r.version, r.size = cache.HashResource(value), len(value)
	body := &anypb.Any{TypeUrl: t.URL(), Value: value}
	item := &discoveryv3.Resource{Name: r.name, Version: r.version, Resource: body}
	delta, err := proto.Marshal(&discoveryv3.DeltaDiscoveryResponse{Resources: []*discoveryv3.Resource{item}})
	if err != nil {
		return err
	}
	if t == TokenBucket {
		if body, err = anypb.New(item); err != nil {
			return err
		}
	}
	sotw, err := proto.Marshal(&discoveryv3.DiscoveryResponse{Resources: []*anypb.Any{body}})
	if i := bytes.Index(delta, sotw); i >= 0 {
		sotw = delta[i : i+len(sotw)]
	}
	r.deltaItem, r.sotwItem = mem.SliceBuffer(delta), mem.SliceBuffer(sotw)
	return err
}

// Name is unique within the type.
func (r *Resource) Name() string { return r.name }

// Version is the SHA-256 of the encoded bytes, in hexadecimal.
func (r *Resource) Version() string { return r.version }

// Size is the number of encoded bytes, without the envelope.
func (r *Resource) Size() int { return r.size }

// Body returns the message, encoded. An Envoy gets the same bytes.
func (r *Resource) Body() (*anypb.Any, error) {
	var response discoveryv3.DeltaDiscoveryResponse
	if err := proto.Unmarshal(r.deltaItem.ReadOnlyData(), &response); err != nil {
		return nil, err
	}
	return response.Resources[0].Resource, nil
}

// childrenOf returns the names of the child type to which Envoy will subscribe once it has m.
func childrenOf(t Type, m proto.Message) []string {
	child, ok := childTypes[t]
	if !ok {
		return nil
	}
	references := cache.GetResourceReferences(map[string]types.ResourceWithTTL{"": {Resource: m}})
	return slices.Sorted(maps.Keys(references[child.URL()]))
}

// membersOf returns the clusters of an aggregate cluster; nil for another resource.
func membersOf(m proto.Message) []string {
	c, ok := m.(*clusterv3.Cluster)
	if !ok {
		return nil
	}
	var aggregate aggregatev3.ClusterConfig
	if err := c.GetClusterType().GetTypedConfig().UnmarshalTo(&aggregate); err != nil {
		return nil // it is not an aggregate
	}
	return aggregate.GetClusters()
}
