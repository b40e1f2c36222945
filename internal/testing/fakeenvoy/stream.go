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

// request is what either protocol can say.
type request struct {
	typeURL                string
	subscribe, unsubscribe []string          // delta
	names                  []string          // state of the world
	has                    map[string]string // delta
	version                string            // state of the world
	nonce                  string
	problem                string
	node                   *corev3.Node
}

func (r request) errorDetail() *statuspb.Status {
	if r.problem == "" {
		return nil
	}
	return &statuspb.Status{Code: int32(codes.InvalidArgument), Message: r.problem}
}

// stream is the client's end of either protocol.
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
		InitialResourceVersions: r.has,
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
		ResourceNames: r.names, VersionInfo: r.version,
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

// unwrap gives a resource and its name, which this protocol sends only inside
// it, or in an envelope where it has none.
func unwrap(a *anypb.Any) (name string, body []byte, err error) {
	m, err := a.UnmarshalNew()
	if err != nil {
		return "", nil, err
	}
	if envelope, is := m.(*discoveryv3.Resource); is {
		return envelope.GetName(), envelope.GetResource().GetValue(), nil
	}
	return cache.GetResourceName(m), a.GetValue(), nil
}
