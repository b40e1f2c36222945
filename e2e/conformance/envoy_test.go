//go:build e2e

package conformance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
)

// retryInterval is how long an envoy waits before it connects again.
const retryInterval = 50 * time.Millisecond

// The types by what an Envoy calls them; those with names are asked for by
// name.
var (
	wildcardTypes = []string{resource.ClusterType, resource.ListenerType}
	namedTypes    = []string{resource.EndpointType, resource.RouteType, resource.SecretType}
)

// resources are what an Envoy has: by type URL, by name, as a tree of JSON.
type resources map[string]map[string]tree

// view is what an Envoy knows at some moment.
type view struct {
	resources resources
	// missing says what it still waits for, "" for nothing.
	missing string
}

// envoy is a delta client that asks for what a real Envoy would ask for, and
// accepts everything that is valid; its stream ends at anything else.
type envoy struct {
	node  *corev3.Node
	token string // "" for none
	// views holds the newest view.
	views chan view
	// seen is the view that awaitEqual read last. It counts until there is a new
	// one.
	seen view
}

// connect starts an Envoy of the gateway of every case.
func connect(t *testing.T, addr string) (*envoy, func()) {
	t.Helper()
	return connectAs(t, addr, node(gatewayName, gatewayNode), "")
}

// connectAs starts an Envoy, which connects again when its stream ends, and
// ends with the returned function.
func connectAs(t *testing.T, addr string, node *corev3.Node, token string) (*envoy, func()) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	e := &envoy{node: node, token: token, views: make(chan view, 1), seen: view{missing: "any answer"}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer conn.Close()
		e.run(ctx, conn)
	}()
	return e, func() {
		cancel()
		<-done
	}
}

func (e *envoy) run(ctx context.Context, conn *grpc.ClientConn) {
	for ctx.Err() == nil {
		err := e.runStream(ctx, conn)
		e.publish(view{missing: fmt.Sprintf("the stream ended: %v", err)})
		select {
		case <-ctx.Done():
		case <-time.After(retryInterval):
		}
	}
}

// publish replaces the newest view.
func (e *envoy) publish(v view) {
	select {
	case <-e.views:
	default:
	}
	e.views <- v
}

// runStream holds one stream until it ends.
func (e *envoy) runStream(ctx context.Context, conn *grpc.ClientConn) error {
	if e.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-consul-token", e.token)
	}
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	c := clientStream{stream: stream, has: resources{}, wants: map[string][]string{}, answered: map[string]bool{}}
	for i, typeURL := range wildcardTypes {
		request := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL}
		if i == 0 {
			request.Node = e.node
		}
		if err := stream.Send(request); err != nil {
			return err
		}
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := c.handle(response); err != nil {
			return err
		}
		e.publish(c.view())
	}
}

// node is what an Envoy of a gateway that is registered on a node says about
// itself.
func node(gateway, on string) *corev3.Node {
	return &corev3.Node{
		Id:            gateway,
		Cluster:       gateway,
		UserAgentName: "envoy",
		Metadata:      &structpb.Struct{Fields: map[string]*structpb.Value{"node_name": structpb.NewStringValue(on)}},
		UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
			Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 35, Patch: 3},
		}},
	}
}

// clientStream is the state of one stream.
type clientStream struct {
	stream   discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	has      resources
	wants    map[string][]string // the names it has subscribed to, sorted
	answered map[string]bool     // the types that came
}

// handle accepts a response, and subscribes to what its resources refer to.
func (c *clientStream) handle(r *discoveryv3.DeltaDiscoveryResponse) error {
	c.answered[r.TypeUrl] = true
	if c.has[r.TypeUrl] == nil {
		c.has[r.TypeUrl] = map[string]tree{}
	}
	for _, resource := range r.Resources {
		rendered, err := render(resource.Resource)
		if err := errors.Join(err, validate(resource.Resource)); err != nil {
			return fmt.Errorf("%s: %w", resource.Name, err)
		}
		c.has[r.TypeUrl][resource.Name] = rendered
	}
	for _, name := range r.RemovedResources {
		delete(c.has[r.TypeUrl], name)
	}
	if err := c.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}); err != nil {
		return err
	}
	return c.updateSubscriptions()
}

// updateSubscriptions asks for what is referred to, and gives up what no longer is.
func (c *clientStream) updateSubscriptions() error {
	wanted := c.has.references()
	for _, typeURL := range namedTypes {
		names, had := wanted[typeURL], c.wants[typeURL]
		if slices.Equal(names, had) {
			continue
		}
		request := &discoveryv3.DeltaDiscoveryRequest{
			TypeUrl:                  typeURL,
			ResourceNamesSubscribe:   without(names, had),
			ResourceNamesUnsubscribe: without(had, names),
		}
		for _, name := range request.ResourceNamesUnsubscribe {
			delete(c.has[typeURL], name)
		}
		c.wants[typeURL] = names
		if err := c.stream.Send(request); err != nil {
			return err
		}
	}
	return nil
}

// view returns what there is, and what is still waited for.
func (c *clientStream) view() view {
	v := view{resources: resources{}}
	for typeURL, byName := range c.has {
		v.resources[typeURL] = maps.Clone(byName)
	}
	for _, typeURL := range wildcardTypes {
		if !c.answered[typeURL] {
			v.missing = typeURL
		}
	}
	for typeURL, names := range c.wants {
		for _, name := range names {
			if _, ok := c.has[typeURL][name]; !ok {
				v.missing = typeURL + " " + name
			}
		}
	}
	return v
}

// without returns the names that are in one and not in the other.
func without(names, other []string) []string {
	var out []string
	for _, name := range names {
		if !slices.Contains(other, name) {
			out = append(out, name)
		}
	}
	return out
}
