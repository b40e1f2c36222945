//go:build e2e

package main

import (
	"context"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	xds "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
)

const (
	deltaMethod = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
	// reconnectPause is how long an Envoy waits before it connects again.
	reconnectPause = 20 * time.Millisecond
	// largestResponse must hold all clusters of the largest gateway.
	largestResponse = 256 << 20
)

// types are those that an Envoy asks for, in its order; the first two as
// wildcards, the others by name.
var types = []string{xds.ClusterType, xds.ListenerType, xds.EndpointType, xds.RouteType, xds.SecretType}

func isNamed(typeURL string) bool { return typeURL != xds.ClusterType && typeURL != xds.ListenerType }

// envoy is one fake Envoy: it asks for what a real one would ask for, and
// acknowledges everything. It never unsubscribes: nothing in the bench takes a
// cluster away. It belongs to the goroutine of its run.
type envoy struct {
	fleet *fleet
	index int // in the fleet
	id    string
	conn  *grpc.ClientConn

	has   map[string]map[string]*resource // by type URL and name
	wants map[reference]bool              // what it has subscribed to
	// What its state is judged by.
	waiting   int // wanted resources that it does not have
	endpoints int // services whose endpoints it has
	hosts     int // virtual hosts of its routes
	complete  bool
}

func newEnvoy(f *fleet, index int, id string, conn *grpc.ClientConn) *envoy {
	e := &envoy{fleet: f, index: index, id: id, conn: conn, has: map[string]map[string]*resource{}, wants: map[reference]bool{}}
	for _, t := range types {
		e.has[t] = map[string]*resource{}
	}
	return e
}

// run keeps a stream up until ctx ends.
func (e *envoy) run(ctx context.Context) {
	for {
		err := e.runStream(ctx)
		if ctx.Err() != nil {
			return
		}
		e.fleet.lost(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(reconnectPause):
		}
	}
}

// runStream holds one stream until it ends.
func (e *envoy) runStream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := e.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, deltaMethod,
		grpc.ForceCodecV2(fakeenvoy.Lean{}), grpc.MaxCallRecvMsgSize(largestResponse), grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	if err := e.subscribe(stream); err != nil {
		return err
	}
	for {
		var r fakeenvoy.LeanResponse
		if err := stream.RecvMsg(&r); err != nil {
			return err
		}
		if err := e.handle(stream, &r, time.Now()); err != nil {
			return err
		}
	}
}

// subscribe sends the first request of each type, with the versions that the Envoy
// has from an earlier stream.
func (e *envoy) subscribe(stream grpc.ClientStream) error {
	names := map[string][]string{}
	for ref := range e.wants {
		names[ref.typeURL] = append(names[ref.typeURL], ref.name)
	}
	for i, t := range types {
		if isNamed(t) && len(names[t]) == 0 {
			continue
		}
		request := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: t, ResourceNamesSubscribe: names[t]}
		if i == 0 {
			request.Node = node(e.id)
		}
		if len(e.has[t]) > 0 {
			request.InitialResourceVersions = make(map[string]string, len(e.has[t]))
			for name, r := range e.has[t] {
				request.InitialResourceVersions[name] = r.version
			}
		}
		if err := stream.SendMsg(request); err != nil {
			return err
		}
	}
	return nil
}

// node is what an Envoy of an instance says about itself.
func node(id string) *corev3.Node {
	return &corev3.Node{
		Id:            id,
		Cluster:       gatewayName,
		UserAgentName: "envoy",
		Metadata:      &structpb.Struct{Fields: map[string]*structpb.Value{"node_name": structpb.NewStringValue(gatewayNode)}},
		UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
			Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 35, Patch: 3},
		}},
	}
}

// handle accepts a response that was read at the time, and subscribes to what its
// resources refer to.
func (e *envoy) handle(stream grpc.ClientStream, r *fakeenvoy.LeanResponse, at time.Time) error {
	e.fleet.count(r)
	expected := e.fleet.expected.Load()
	subscribe := map[string][]string{}
	for _, i := range r.Resources {
		known, err := e.fleet.library.read(r.TypeURL, i)
		if err != nil {
			return err
		}
		e.store(r.TypeURL, known.name, known)
		for _, ref := range known.refs {
			if e.want(ref) {
				subscribe[ref.typeURL] = append(subscribe[ref.typeURL], ref.name)
			}
		}
		expected.observe(e.index, r.TypeURL, known, i.Body, at)
	}
	for _, name := range r.Removed {
		e.store(r.TypeURL, name, nil)
	}
	if err := stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeURL, ResponseNonce: r.Nonce}); err != nil {
		return err
	}
	for _, t := range types {
		if len(subscribe[t]) == 0 {
			continue
		}
		if err := stream.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: t, ResourceNamesSubscribe: subscribe[t]}); err != nil {
			return err
		}
	}
	e.checkComplete(at)
	return nil
}

// want subscribes to a name; false if it is subscribed to already.
func (e *envoy) want(ref reference) bool {
	if e.wants[ref] {
		return false
	}
	e.wants[ref] = true
	if e.has[ref.typeURL][ref.name] == nil {
		e.waiting++
	}
	return true
}

// store replaces a resource, or removes it with nil.
func (e *envoy) store(typeURL, name string, r *resource) {
	before := e.has[typeURL][name]
	if e.wants[reference{typeURL, name}] {
		e.waiting += count(before != nil) - count(r != nil)
	}
	e.endpoints -= count(before != nil && before.endpoints)
	if before != nil {
		e.hosts -= before.hosts
	}
	if r == nil {
		delete(e.has[typeURL], name)
		return
	}
	e.endpoints += count(r.endpoints)
	e.hosts += r.hosts
	e.has[typeURL][name] = r
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// checkComplete reports to the fleet when the Envoy first has all resources.
func (e *envoy) checkComplete(at time.Time) {
	if e.complete || e.waiting > 0 || e.endpoints < e.fleet.services || e.hosts < e.fleet.services || len(e.has[xds.ListenerType]) == 0 {
		return
	}
	e.complete = true
	e.fleet.completed(at)
}
