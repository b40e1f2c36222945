//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// crowd is many fake Envoys that follow the instances of one cluster.
type crowd struct {
	cluster string
	token   string

	mu       sync.Mutex
	envoys   int
	versions map[string]int // how many Envoys have which version
	lost     []error        // why streams have ended
	changed  chan struct{}  // closed at the next change
}

// newCrowd learns the name of the cluster of a service from an Envoy's own stream.
func newCrowd(t *testing.T, conn *grpc.ClientConn, token, service string) *crowd {
	t.Helper()
	e := lab.ConnectFakeEnvoy(t, conn, fakeenvoy.Delta, token)
	e.Subscribe(resource.ClusterType)
	r := e.Next()
	e.Ack(r)
	e.Disconnect()
	for _, name := range r.Names {
		if strings.HasPrefix(name, service+".") {
			return &crowd{cluster: name, token: token, versions: map[string]int{}, changed: make(chan struct{})}
		}
	}
	t.Fatalf("clusters %q, none of them for %s", r.Names, service)
	return nil
}

// join adds Envoys, a hundred to a connection, until the test ends.
func (c *crowd) join(t *testing.T, port lab.XDSPort, envoys int) {
	t.Helper()
	c.joinOver(t, port, envoys, 100)
}

// joinOver is join with another number of Envoys to a connection.
func (c *crowd) joinOver(t *testing.T, port lab.XDSPort, envoys, perConnection int) {
	t.Helper()
	c.start(t, port, envoys, perConnection, c.run)
	c.mu.Lock()
	c.envoys += envoys
	c.mu.Unlock()
}

// joinSilent adds Envoys that subscribe to all clusters and endpoints, and acknowledge nothing, as after a restart of Usher.
// It waits until each has a response.
func (c *crowd) joinSilent(t *testing.T, port lab.XDSPort, envoys int) {
	t.Helper()
	first := make(chan struct{}, envoys)
	c.start(t, port, envoys, 1, func(ctx context.Context, conn *grpc.ClientConn) error { return c.runSilent(ctx, conn, first) })
	deadline := time.After(testprocess.StartDeadline)
	for i := range envoys {
		select {
		case <-first:
		case <-deadline:
			t.Fatalf("%d of %d Envoys have a response", i, envoys)
		}
	}
}

// start runs Envoys until the test ends.
func (c *crowd) start(t *testing.T, port lab.XDSPort, envoys, perConnection int, run func(context.Context, *grpc.ClientConn) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	var conn *grpc.ClientConn
	for i := range envoys {
		if i%perConnection == 0 {
			conn = port.Dial(t)
		}
		on := conn
		running.Go(func() {
			err := run(ctx, on)
			if ctx.Err() == nil {
				c.update(func() { c.lost = append(c.lost, err) })
			}
		})
	}
}

// stream opens the stream of one Envoy.
func (c *crowd) stream(ctx context.Context, conn *grpc.ClientConn) (grpc.ClientStream, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, "x-consul-token", c.token)
	return conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName, grpc.ForceCodecV2(fakeenvoy.Lean{}))
}

func crowdNode() *corev3.Node {
	return &corev3.Node{Id: "ingress-gateway", Cluster: "ingress-gateway"}
}

// runSilent is one Envoy that acknowledges nothing. It sends to first when it has a response.
func (c *crowd) runSilent(ctx context.Context, conn *grpc.ClientConn, first chan<- struct{}) error {
	stream, err := c.stream(ctx, conn)
	if err != nil {
		return err
	}
	for _, typeURL := range []string{resource.ClusterType, resource.EndpointType} {
		request := &discoveryv3.DeltaDiscoveryRequest{Node: crowdNode(), TypeUrl: typeURL, ResourceNamesSubscribe: []string{"*"}}
		if err := stream.SendMsg(request); err != nil {
			return err
		}
	}
	for got := false; ; got = true {
		if err := stream.RecvMsg(&fakeenvoy.LeanResponse{}); err != nil {
			return err
		}
		if !got {
			first <- struct{}{}
		}
	}
}

// run is one Envoy.
func (c *crowd) run(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := c.stream(ctx, conn)
	if err != nil {
		return err
	}
	request := &discoveryv3.DeltaDiscoveryRequest{
		Node:    crowdNode(),
		TypeUrl: resource.EndpointType, ResourceNamesSubscribe: []string{c.cluster},
	}
	had := ""
	for {
		if err := stream.SendMsg(request); err != nil {
			return err
		}
		var r fakeenvoy.LeanResponse
		if err := stream.RecvMsg(&r); err != nil {
			return err
		}
		for _, i := range r.Resources {
			before := had
			had = string(i.Version)
			c.update(func() {
				if c.versions[before]--; c.versions[before] <= 0 {
					delete(c.versions, before)
				}
				c.versions[had]++
			})
		}
		request = &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.EndpointType, ResponseNonce: r.Nonce}
	}
}

func (c *crowd) update(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	close(c.changed)
	c.changed = make(chan struct{})
}

// waitVersion waits until all Envoys have one version that is not old, and returns it.
func (c *crowd) waitVersion(t *testing.T, old string) string {
	t.Helper()
	deadline := time.After(testprocess.StartDeadline)
	for {
		c.mu.Lock()
		changed, lost := c.changed, fmt.Sprint(c.lost)
		for version, have := range c.versions {
			if have == c.envoys && version != old && version != "" {
				c.mu.Unlock()
				return version
			}
		}
		state := fmt.Sprintf("%d Envoys, versions %v, lost %.300s", c.envoys, c.versions, lost)
		c.mu.Unlock()
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("not all of the crowd have a new version: %s", state)
		}
	}
}

// wantNoneLost wants every stream to have lived on.
func (c *crowd) wantNoneLost(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.lost) > 0 {
		t.Errorf("%d of the crowd's streams have ended, the first with %v", len(c.lost), c.lost[0])
	}
}
