package xds

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Type is a resource type. The values are in push order: a resource comes after those that it refers to.
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
)

// NumTypes is the number of types. Every Type is less than it.
const NumTypes = 6

// dependencies are the types that listeners and routes refer to, in push order.
var dependencies = []Type{Secret, TokenBucket, Cluster, Endpoint}

var typeURLs = [NumTypes]string{
	Secret:      resource.SecretType,
	TokenBucket: "type.googleapis.com/envoy.type.v3.TokenBucket",
	Cluster:     resource.ClusterType,
	Endpoint:    resource.EndpointType,
	Listener:    resource.ListenerType,
	Route:       resource.RouteType,
}

var typeNames = [NumTypes]string{"secret", "token_bucket", "cluster", "endpoint", "listener", "route"}

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
	// deltaItem is the encoded field resources of a DeltaDiscoveryResponse with this resource, and sotwItem that of
	// a DiscoveryResponse.
	deltaItem, sotwItem mem.Buffer
	// children are the resources of the type's child type that this one names: load assignments of a cluster, route
	// configurations of a listener.
	children []string
	// targets are the clusters to which an aggregate cluster sends.
	targets []string
}

// NewResource validates a message by Envoy's own rules and encodes it. Equal messages get equal versions, in every
// process. The name is that in the message, if its type has one.
func NewResource(t Type, name string, m proto.Message) (*Resource, error) {
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
	if err := r.encode(t, value); err != nil {
		return nil, fmt.Errorf("%s %q: %w", t, name, err)
	}
	return r, nil
}

// encode sets deltaItem and sotwItem. The field of the Any has the number 2 in Resource and in DiscoveryResponse, so
// that sotwItem is a part of deltaItem and needs no memory. A message without a name field is wrapped, as Envoy
// allows
// (https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/discovery/v3/discovery.proto#service-discovery-v3-discoveryresponse).
func (r *Resource) encode(t Type, value []byte) error {
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

// childrenOf returns the names that Envoy will subscribe to once it has m.
func childrenOf(m proto.Message) []string {
	switch m := m.(type) {
	case *clusterv3.Cluster:
		if m.GetType() != clusterv3.Cluster_EDS {
			return nil
		}
		return []string{cmp.Or(m.GetEdsClusterConfig().GetServiceName(), m.GetName())}
	case *listenerv3.Listener:
		return routesOf(m)
	default:
		return nil
	}
}

func routesOf(l *listenerv3.Listener) []string {
	var names []string
	for _, chain := range append(slices.Clone(l.GetFilterChains()), l.GetDefaultFilterChain()) {
		for _, filter := range chain.GetFilters() {
			manager := resource.GetHTTPConnectionManager(filter) // nil for another filter
			if name := manager.GetRds().GetRouteConfigName(); name != "" {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// targetsOf returns the clusters of an aggregate cluster; nil for another resource.
func targetsOf(m proto.Message) []string {
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
