package resourcediff

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
)

// View is what an Envoy has at some moment.
type View struct {
	Resources Resources
	// Missing is what it still waits for; "" for nothing.
	Missing string
}

// Stream holds one stream of the delta protocol as an Envoy does: it asks for all clusters and listeners and for what they
// refer to, and accepts everything that is valid. It calls publish with each new view, and returns why the stream ended.
// A token is a part of ctx.
func Stream(ctx context.Context, conn grpc.ClientConnInterface, node *corev3.Node, publish func(View)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	c := clientStream{stream: stream, has: Resources{}, wants: map[string][]string{}, answered: map[string]bool{}}
	for i, typeURL := range WildcardTypes {
		request := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL}
		if i == 0 {
			request.Node = node
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
		publish(c.view())
	}
}

// clientStream is the state of one stream.
type clientStream struct {
	stream   discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	has      Resources
	wants    map[string][]string // the names it has subscribed to, sorted
	answered map[string]bool     // the types that came
}

// handle accepts a response, and subscribes to what its resources refer to.
func (c *clientStream) handle(r *discoveryv3.DeltaDiscoveryResponse) error {
	c.answered[r.TypeUrl] = true
	for _, resource := range r.Resources {
		err := errors.Join(c.has.Add(resource.Name, resource.Resource), Validate(resource.Resource))
		if err != nil {
			return fmt.Errorf("%s: %w", resource.Name, err)
		}
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
	wanted := c.has.References()
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
func (c *clientStream) view() View {
	v := View{Resources: Resources{}}
	for typeURL, byName := range c.has {
		v.Resources[typeURL] = maps.Clone(byName)
	}
	for _, typeURL := range WildcardTypes {
		if !c.answered[typeURL] {
			v.Missing = typeURL
		}
	}
	for typeURL, names := range c.wants {
		for _, name := range names {
			if _, ok := c.has[typeURL][name]; !ok {
				v.Missing = typeURL + " " + name
			}
		}
	}
	return v
}

// without returns the names that are in one and not in the other.
func without(names, other []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(other, name) })
}
