package fakeenvoy

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"
)

// request is a request of either protocol.
type request struct {
	typeURL                string
	subscribe, unsubscribe []string          // delta
	names                  []string          // state of the world
	initialVersions        map[string]string // delta
	versionInfo            string            // state of the world
	nonce                  string
	errorMessage           string
	node                   *corev3.Node
}

func (r request) errorDetail() *statuspb.Status {
	if r.errorMessage == "" {
		return nil
	}
	return &statuspb.Status{Code: int32(codes.InvalidArgument), Message: r.errorMessage}
}

// stream is a client stream of either protocol.
type stream interface {
	send(request) error
	receive() (Response, error)
}

type deltaStream struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func (s deltaStream) send(r request) error {
	return s.Send(&discoveryv3.DeltaDiscoveryRequest{
		Node: r.node, TypeUrl: r.typeURL, ResponseNonce: r.nonce, ErrorDetail: r.errorDetail(),
		ResourceNamesSubscribe: r.subscribe, ResourceNamesUnsubscribe: r.unsubscribe,
		InitialResourceVersions: r.initialVersions,
	})
}

func (s deltaStream) receive() (Response, error) {
	m, err := s.Recv()
	if err != nil {
		return Response{}, err
	}
	r := Response{Type: m.GetTypeUrl(), Nonce: m.GetNonce(), Versions: map[string]string{}, Removed: m.GetRemovedResources()}
	for _, resource := range m.GetResources() {
		r.Names = append(r.Names, resource.GetName())
		r.Versions[resource.GetName()] = resource.GetVersion()
		r.Bodies = append(r.Bodies, resource.GetResource().GetValue())
	}
	slices.Sort(r.Names)
	slices.Sort(r.Removed)
	return r, nil
}

type sotwStream struct {
	discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
}

func (s sotwStream) send(r request) error {
	return s.Send(&discoveryv3.DiscoveryRequest{
		Node: r.node, TypeUrl: r.typeURL, ResponseNonce: r.nonce, ErrorDetail: r.errorDetail(),
		ResourceNames: r.names, VersionInfo: r.versionInfo,
	})
}

func (s sotwStream) receive() (Response, error) {
	m, err := s.Recv()
	if err != nil {
		return Response{}, err
	}
	r := Response{Type: m.GetTypeUrl(), Nonce: m.GetNonce(), Version: m.GetVersionInfo()}
	for _, resource := range m.GetResources() {
		name, body, err := unwrap(resource)
		if err != nil {
			return Response{}, err
		}
		r.Names = append(r.Names, name)
		r.Bodies = append(r.Bodies, body)
	}
	slices.Sort(r.Names)
	return r, nil
}

// unwrap returns a resource and its name. The state of the world has the name only in the resource, or in a wrapper if
// the resource has no name field.
func unwrap(a *anypb.Any) (name string, body []byte, err error) {
	m, err := a.UnmarshalNew()
	if err != nil {
		return "", nil, err
	}
	if wrapper, ok := m.(*discoveryv3.Resource); ok {
		return wrapper.GetName(), wrapper.GetResource().GetValue(), nil
	}
	return cache.GetResourceName(m), a.GetValue(), nil
}
