//go:build e2e

package conformance

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/usherproxy/usher/internal/resourcediff"
)

// retryInterval is how long an envoy waits before it connects again.
const retryInterval = 50 * time.Millisecond

// The engine of the comparison is internal/resourcediff.
type (
	resources  = resourcediff.Resources
	tree       = resourcediff.Tree
	view       = resourcediff.View
	difference = resourcediff.Difference
)

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
	e := &envoy{node: node, token: token, views: make(chan view, 1), seen: view{Missing: "any answer"}}
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
	if e.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-consul-token", e.token)
	}
	for ctx.Err() == nil {
		err := resourcediff.Stream(ctx, conn, e.node, e.publish)
		e.publish(view{Missing: fmt.Sprintf("the stream ended: %v", err)})
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

// node is what an Envoy of a gateway that is registered on a node says about
// itself.
func node(gateway, on string) *corev3.Node {
	release := &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 35, Patch: 3}
	return resourcediff.Node(gateway, gateway, release, map[string]string{"node_name": on})
}
