// Package fakeenvoy is a fake Envoy: the client of an aggregated discovery stream over a real gRPC connection. A test can
// run the same steps with the delta and the state-of-the-world protocol.
//
// The fake does nothing by itself: a test calls it to subscribe, acknowledge and reject. For hundreds of Envoys, Lean is a
// codec that leaves resources encoded.
package fakeenvoy

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Protocol is a variant of the discovery protocol.
type Protocol string

// The protocols.
const (
	Delta Protocol = "delta"
	SotW  Protocol = "sotw"
)

// Protocols are both, for tests that run for each.
var Protocols = []Protocol{Delta, SotW}

// wait bounds Next, Expect and End.
const wait = 20 * time.Second

// Options describe an Envoy.
type Options struct {
	// Node is sent with the first request. Nil is a node with the id "envoy".
	Node *corev3.Node
	// Anonymous sends no node.
	Anonymous bool
	// Token is sent as x-consul-token, unless empty.
	Token string
	// Bearer is sent as bearer token, unless empty.
	Bearer string
	// Authorization is the value of the metadata of this name, unless empty. It replaces Bearer.
	Authorization string
	// Has are the versions that the Envoy has from an earlier stream, by type URL and name; delta only.
	Has map[string]map[string]string
	// VersionInfo are the versions that it has from an earlier stream, by type URL; state of the world only.
	VersionInfo map[string]string
}

// Envoy is one stream.
type Envoy struct {
	t             testing.TB
	protocol      Protocol
	options       Options
	stream        stream
	cancel        context.CancelFunc
	subscriptions map[string]*subscription
	nodeSent      bool

	responses chan Response
	// ended holds the error that ended the stream, io.EOF for none.
	ended chan error
}

// subscription is what the Envoy subscribes to, of one type.
type subscription struct {
	names   map[string]struct{}
	nonce   string
	version string
	started bool
}

// Response is what an Envoy received.
type Response struct {
	// Type is the type URL.
	Type string
	// Names are the resources in the response, and Removed the removed ones (delta only). Both are sorted.
	Names, Removed []string
	// Versions are the versions by name (delta), and Version that of the response (state of the world).
	Versions map[string]string
	Version  string
	// Bodies are the encoded resources, in the order of the response.
	Bodies [][]byte
	Nonce  string
}

// Connect opens a stream. The stream ends with the test.
func Connect(t testing.TB, conn grpc.ClientConnInterface, p Protocol, o Options) *Envoy {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if o.Token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-consul-token", o.Token)
	}
	if o.Bearer != "" && o.Authorization == "" {
		o.Authorization = "Bearer " + o.Bearer
	}
	if o.Authorization != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", o.Authorization)
	}
	if o.Node == nil {
		o.Node = &corev3.Node{Id: "envoy", Cluster: "gateway"}
	}
	s, err := open(ctx, conn, p)
	if err != nil {
		cancel()
		t.Fatalf("open a %s stream: %v", p, err)
	}
	e := &Envoy{
		t: t, protocol: p, options: o, stream: s, cancel: cancel, subscriptions: map[string]*subscription{},
		responses: make(chan Response), ended: make(chan error, 1),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.receive(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return e
}

func (e *Envoy) receive(ctx context.Context) {
	for {
		r, err := e.stream.receive()
		if err != nil {
			e.ended <- err
			return
		}
		select {
		case e.responses <- r:
		case <-ctx.Done():
			e.ended <- ctx.Err()
			return
		}
	}
}

// Subscribe adds names to the subscription. The first call for a type without names subscribes to all.
func (e *Envoy) Subscribe(typeURL string, names ...string) {
	e.t.Helper()
	sub := e.subscription(typeURL)
	for _, name := range names {
		sub.names[name] = struct{}{}
	}
	e.send(request{typeURL: typeURL, subscribe: names})
}

// Unsubscribe removes names from the subscription.
func (e *Envoy) Unsubscribe(typeURL string, names ...string) {
	e.t.Helper()
	for _, name := range names {
		delete(e.subscription(typeURL).names, name)
	}
	e.send(request{typeURL: typeURL, unsubscribe: names})
}

// Expect waits for the next response, which must have the type and exactly these resources, in any order.
func (e *Envoy) Expect(typeURL string, names ...string) Response {
	e.t.Helper()
	r := e.Next()
	slices.Sort(names)
	if r.Type != typeURL || !slices.Equal(r.Names, names) {
		e.t.Fatalf("received %s %q, want %s %q", r.Type, r.Names, typeURL, names)
	}
	return r
}

// Next waits for the next response.
func (e *Envoy) Next() Response {
	e.t.Helper()
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	select {
	case r := <-e.responses:
		sub := e.subscription(r.Type)
		sub.nonce = r.Nonce
		return r
	case err := <-e.ended:
		e.ended <- err
		e.t.Fatalf("the stream ended: %v", err)
	case <-timeout.C:
		e.t.Fatalf("no response")
	}
	return Response{}
}

// ExpectNone fails if something arrives. It waits until every goroutine is idle. Call it only in a synctest bubble that
// has the server, too.
func (e *Envoy) ExpectNone() {
	e.t.Helper()
	synctest.Wait()
	select {
	case r := <-e.responses:
		e.t.Fatalf("received %s %q, want nothing", r.Type, r.Names)
	case err := <-e.ended:
		e.ended <- err
		e.t.Fatalf("the stream ended: %v", err)
	default:
	}
}

// Ack accepts a response.
func (e *Envoy) Ack(r Response) {
	e.t.Helper()
	e.subscription(r.Type).version = r.Version
	e.send(request{typeURL: r.Type, nonce: r.Nonce})
}

// Nack rejects a response.
func (e *Envoy) Nack(r Response, message string) {
	e.t.Helper()
	e.send(request{typeURL: r.Type, nonce: r.Nonce, errorMessage: message})
}

// ExpectAck is Expect, then Ack.
func (e *Envoy) ExpectAck(typeURL string, names ...string) Response {
	e.t.Helper()
	r := e.Expect(typeURL, names...)
	e.Ack(r)
	return r
}

// ExpectEnd waits until the server ends the stream with a status. All responses must have been received before.
func (e *Envoy) ExpectEnd(code codes.Code) error {
	e.t.Helper()
	err := e.End()
	if got := status.Code(err); got != code {
		e.t.Fatalf("the stream ended with %v, want %v", err, code)
	}
	return err
}

// End waits until the server ends the stream, and returns the error. All responses must have been received before.
func (e *Envoy) End() error {
	e.t.Helper()
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	select {
	case r := <-e.responses:
		e.t.Fatalf("received %s %q, want the stream's end", r.Type, r.Names)
	case err := <-e.ended:
		e.ended <- err
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	case <-timeout.C:
		e.t.Fatalf("the stream did not end")
	}
	return nil
}

// ServedOrEnded waits until the server sends the first response, or ends the stream. Then it returns the error.
func (e *Envoy) ServedOrEnded() error {
	e.t.Helper()
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	select {
	case <-e.responses:
		return nil
	case err := <-e.ended:
		e.ended <- err
		return err
	case <-timeout.C:
		e.t.Fatalf("the server neither sends anything nor ends the stream")
	}
	return nil
}

// Disconnect ends the stream.
func (e *Envoy) Disconnect() { e.cancel() }

func (e *Envoy) subscription(typeURL string) *subscription {
	if e.subscriptions[typeURL] == nil {
		e.subscriptions[typeURL] = &subscription{names: map[string]struct{}{}}
	}
	return e.subscriptions[typeURL]
}

// send adds the state of the stream to a request and sends it.
func (e *Envoy) send(r request) {
	e.t.Helper()
	sub := e.subscription(r.typeURL)
	r.names = slices.Sorted(maps.Keys(sub.names))
	r.versionInfo = sub.version
	if r.nonce == "" && e.protocol == SotW {
		r.nonce = sub.nonce
	}
	if !sub.started {
		sub.started = true
		r.initialVersions, r.versionInfo = e.options.Has[r.typeURL], e.options.VersionInfo[r.typeURL]
	}
	if !e.nodeSent && !e.options.Anonymous {
		e.nodeSent = true
		r.node = e.options.Node
	}
	// If the server has ended the stream, the next Expect fails with its reason.
	_ = e.stream.send(r)
}

// open opens a stream of a protocol.
func open(ctx context.Context, conn grpc.ClientConnInterface, p Protocol) (stream, error) {
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
	if p == Delta {
		s, err := client.DeltaAggregatedResources(ctx)
		return deltaStream{s}, err
	}
	s, err := client.StreamAggregatedResources(ctx)
	return sotwStream{s}, err
}
