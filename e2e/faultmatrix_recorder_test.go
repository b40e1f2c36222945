//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// recordedTypes are what a recorder asks for.
var recordedTypes = []string{
	resource.ClusterType, resource.ListenerType, resource.EndpointType, resource.RouteType, resource.SecretType,
}

// recorder is a fake Envoy that asks for what a real one would, acknowledges
// all, comes back when its stream ends, and says then what it has. It writes
// down every loss: a resource that is taken away, or that has less in it than
// before.
type recorder struct {
	node *corev3.Node

	mu     sync.Mutex
	have   map[string]map[string]*discoveryv3.Resource // by type and name
	ports  map[string]map[int]bool                     // of the endpoints in load assignments, by name
	losses []string
	ended  error // what ended the last stream
}

// newRecorder makes one that has nothing yet, as the instance of a gateway that
// has the same name.
func newRecorder(gateway string) *recorder {
	r := &recorder{
		node: &corev3.Node{Id: gateway, Cluster: gateway},
		have: map[string]map[string]*discoveryv3.Resource{}, ports: map[string]map[int]bool{},
	}
	for _, typeURL := range recordedTypes {
		r.have[typeURL] = map[string]*discoveryv3.Resource{}
	}
	return r
}

// connect keeps a stream open until the returned function is called, which
// waits for its end.
func (r *recorder) connect(conn *grpc.ClientConn) (leave func()) {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), "x-consul-token", lab.ManagementToken))
	var work sync.WaitGroup
	work.Go(func() {
		for ctx.Err() == nil {
			err := r.runStream(ctx, conn)
			r.mu.Lock()
			r.ended = err
			r.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	return func() {
		cancel()
		work.Wait()
	}
}

// runStream is one stream.
func (r *recorder) runStream(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	asked := map[string]map[string]bool{}
	if err := r.subscribe(stream, asked); err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		r.apply(response)
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{
			TypeUrl: response.GetTypeUrl(), ResponseNonce: response.GetNonce(),
		}); err != nil {
			return err
		}
		if isNamed(response.GetTypeUrl()) {
			continue
		}
		if err := r.follow(stream, asked); err != nil {
			return err
		}
	}
}

// subscribe says what the recorder has, and asks for all clusters and listeners.
func (r *recorder) subscribe(stream grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse], asked map[string]map[string]bool) error {
	names := r.names()
	for i, typeURL := range recordedTypes {
		asked[typeURL] = map[string]bool{}
		request := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, InitialResourceVersions: r.versions(typeURL)}
		if i == 0 {
			request.Node = r.node
		}
		if isNamed(typeURL) {
			if len(names[typeURL]) == 0 {
				continue
			}
			request.ResourceNamesSubscribe = slices.Sorted(maps.Keys(names[typeURL]))
			maps.Copy(asked[typeURL], names[typeURL])
		}
		if err := stream.Send(request); err != nil {
			return err
		}
	}
	return nil
}

// follow asks for what the resources name, and gives up what they no longer do.
func (r *recorder) follow(stream grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse], asked map[string]map[string]bool) error {
	for typeURL, names := range r.names() {
		request := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL}
		for name := range names {
			if !asked[typeURL][name] {
				asked[typeURL][name] = true
				request.ResourceNamesSubscribe = append(request.ResourceNamesSubscribe, name)
			}
		}
		for name := range asked[typeURL] {
			if !names[name] {
				delete(asked[typeURL], name)
				r.forget(typeURL, name)
				request.ResourceNamesUnsubscribe = append(request.ResourceNamesUnsubscribe, name)
			}
		}
		if len(request.ResourceNamesSubscribe)+len(request.ResourceNamesUnsubscribe) == 0 {
			continue
		}
		if err := stream.Send(request); err != nil {
			return err
		}
	}
	return nil
}

func isNamed(typeURL string) bool {
	return typeURL != resource.ClusterType && typeURL != resource.ListenerType
}

func (r *recorder) forget(typeURL, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.have[typeURL], name)
}

func (r *recorder) versions(typeURL string) map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	versions := map[string]string{}
	for name, has := range r.have[typeURL] {
		versions[name] = has.GetVersion()
	}
	return versions
}

// names are what clusters and listeners name, by type.
func (r *recorder) names() map[string]map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := map[string]map[string]bool{resource.EndpointType: {}, resource.RouteType: {}, resource.SecretType: {}}
	for _, typeURL := range []string{resource.ClusterType, resource.ListenerType} {
		for name, has := range r.have[typeURL] {
			visitMessages(has.GetResource(), func(m proto.Message) {
				switch m := m.(type) {
				case *clusterv3.Cluster:
					if m.GetType() == clusterv3.Cluster_EDS {
						if service := m.GetEdsClusterConfig().GetServiceName(); service != "" {
							name = service
						}
						names[resource.EndpointType][name] = true
					}
				case *hcmv3.Rds:
					names[resource.RouteType][m.GetRouteConfigName()] = true
				case *tlsv3.SdsSecretConfig:
					names[resource.SecretType][m.GetName()] = true
				}
			})
		}
	}
	return names
}

// visitMessages visits a message and all messages in it, those in an Any too.
func visitMessages(m proto.Message, visit func(proto.Message)) {
	if a, is := m.(*anypb.Any); is {
		if inner, err := a.UnmarshalNew(); err == nil {
			visitMessages(inner, visit)
		}
		return
	}
	visit(m)
	m.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			if field.MapValue().Message() != nil {
				value.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					visitMessages(v.Message().Interface(), visit)
					return true
				})
			}
		case field.Message() == nil:
		case field.IsList():
			for i := range value.List().Len() {
				visitMessages(value.List().Get(i).Message().Interface(), visit)
			}
		default:
			visitMessages(value.Message().Interface(), visit)
		}
		return true
	})
}

// apply takes a response over.
func (r *recorder) apply(response *discoveryv3.DeltaDiscoveryResponse) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have := r.have[response.GetTypeUrl()]
	for _, name := range response.GetRemovedResources() {
		if have[name] != nil {
			r.losses = append(r.losses, fmt.Sprintf("%s %q is taken away", shortType(response.GetTypeUrl()), name))
		}
		delete(have, name)
	}
	for _, next := range response.GetResources() {
		before, after := sizeOf(have[next.GetName()]), sizeOf(next)
		if after < before {
			r.losses = append(r.losses, fmt.Sprintf("%s %q has %d where it had %d", shortType(response.GetTypeUrl()), next.GetName(), after, before))
		}
		have[next.GetName()] = next
		if response.GetTypeUrl() == resource.EndpointType {
			r.ports[next.GetName()] = portsOf(next)
		}
	}
}

func portsOf(assignment *discoveryv3.Resource) map[int]bool {
	ports := map[int]bool{}
	visitMessages(assignment.GetResource(), func(m proto.Message) {
		if address, is := m.(*corev3.SocketAddress); is {
			ports[int(address.GetPortValue())] = true
		}
	})
	return ports
}

func shortType(typeURL string) string {
	names := map[string]string{
		resource.ClusterType: "cluster", resource.ListenerType: "listener", resource.EndpointType: "load assignment",
		resource.RouteType: "route configuration", resource.SecretType: "secret",
	}
	return names[typeURL]
}

// sizeOf is how much there is in a resource: endpoints, virtual hosts, or filter
// chains and what reads the beginning of a connection.
func sizeOf(has *discoveryv3.Resource) int {
	m, err := has.GetResource().UnmarshalNew()
	if err != nil {
		return 0
	}
	switch m := m.(type) {
	case *endpointv3.ClusterLoadAssignment:
		n := 0
		for _, locality := range m.GetEndpoints() {
			n += len(locality.GetLbEndpoints())
		}
		return n
	case *routev3.RouteConfiguration:
		return len(m.GetVirtualHosts())
	case *listenerv3.Listener:
		return len(m.GetFilterChains()) + len(m.GetListenerFilters())
	default:
		return 1
	}
}

// lastEnd is what ended the last stream.
func (r *recorder) lastEnd() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ended
}

// waitLosses waits until there is a loss with each of the prefixes.
func (r *recorder) waitLosses(t *testing.T, prefixes []string) {
	t.Helper()
	for _, prefix := range prefixes {
		testprocess.Eventually(t, "the loss of "+prefix, testprocess.ChangeDeadline, func() error {
			r.mu.Lock()
			defer r.mu.Unlock()
			if slices.ContainsFunc(r.losses, func(loss string) bool { return strings.HasPrefix(loss, prefix) }) {
				return nil
			}
			return fmt.Errorf("only %q", r.losses)
		})
	}
}

// drainLosses returns the losses since it was called last.
func (r *recorder) drainLosses() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	losses := r.losses
	r.losses = nil
	return losses
}

// waitEndpoint waits until a load assignment has an endpoint with the port.
func (r *recorder) waitEndpoint(t *testing.T, port int) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("the endpoint with port %d reaches the fake Envoy", port), testprocess.ChangeDeadline, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, ports := range r.ports {
			if ports[port] {
				return nil
			}
		}
		return errors.Join(errors.New("it does not have it"), r.ended)
	})
}

// held is a resource as the recorder has it.
type held = *discoveryv3.Resource

// copy returns what the recorder has.
func (r *recorder) copy() map[string]map[string]held {
	r.mu.Lock()
	defer r.mu.Unlock()
	return cloneHave(r.have)
}

// restore makes the recorder have what copy has given.
func (r *recorder) restore(have map[string]map[string]held) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.have = cloneHave(have)
}

func cloneHave(have map[string]map[string]held) map[string]map[string]held {
	out := map[string]map[string]held{}
	for typeURL, resources := range have {
		out[typeURL] = maps.Clone(resources)
	}
	return out
}
