package dataplane

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/xds"
)

// An Envoy may connect before its instance is registered.
func TestAGatewayThatIsKnownByItsNameIsAGateway(t *testing.T) {
	k := newKinds(func(context.Context, xds.Node) (Kind, error) { return GatewayByName, nil }, newBackground(slog.New(slog.DiscardHandler)))
	if is, err := k.isGateway(t.Context(), testPeer, xds.Node{ID: "edge-1", Cluster: "edge"}); err != nil || !is {
		t.Errorf("got %v, %v; want a gateway", is, err)
	}
}

func TestAnotherInstanceOfAGatewayIsOneWhileConsulDoesNotAnswer(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil, "edge")
		t.want("edge", true)
		t.catalog.set(errNoConsul)
		if is, err := t.kinds.isGateway(t.Context(), testPeer, xds.Node{ID: "edge-2", Cluster: "edge"}); err != nil || !is {
			t.Errorf("got %v, %v; want a gateway", is, err)
		}
	})
}

// What was a sidecar may be registered as a gateway the next time.
func TestAProxyThatTheCatalogLosesIsForgotten(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.want("web", false)
		time.Sleep(kindTime)
		t.catalog.setAbsent(true)
		t.wantUnknown("web")
		t.catalog.set(errNoConsul)
		t.wantUnknown("web")
	})
}

// Consul refuses a gateway that names another cluster, whatever is remembered of its service and its node.
func TestARefusedNodeIsNotServedFromMemory(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		refused := status.Error(codes.InvalidArgument, "set node.cluster to the gateway's service name")
		t.catalog.set(nil, "edge")
		t.want("edge", true)
		t.catalog.set(refused)
		time.Sleep(kindTime)
		for _, n := range []xds.Node{{ID: "edge-1", Cluster: "edge"}, {ID: "edge-1", Cluster: "web"}, {ID: "edge-2", Cluster: "edge"}} {
			if _, err := t.kinds.isGateway(t.Context(), testPeer, n); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s of %s: %v, want InvalidArgument", n.ID, n.Cluster, err)
			}
		}
	})
}

func TestASecondPartitionIsAnotherService(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		for _, partition := range []string{"one", "two"} {
			_, _ = t.kinds.isGateway(t.Context(), testPeer, xds.Node{ID: "edge-1", Cluster: "edge", Metadata: map[string]string{"partition": partition}})
		}
		if n := t.catalog.asked.Load(); n != 2 {
			t.Errorf("asked %d times, want 2", n)
		}
	})
}

// A caller whose questions wait for their turn must not make others wait with the same question.
func TestAQuestionDoesNotWaitForThatOfAnotherPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := func(ctx context.Context, n xds.Node) (Kind, error) {
			if n.Cluster == "edge" {
				return Gateway, nil
			}
			<-ctx.Done()
			return NotRegistered, context.Cause(ctx)
		}
		k := newKinds(ask, newBackground(slog.New(slog.DiscardHandler)))
		var callers sync.WaitGroup
		for _, name := range []string{"slow-1", "slow-2", "edge"} {
			callers.Go(func() {
				_, _ = k.isGateway(t.Context(), netip.MustParsePrefix("192.0.2.66/32"), xds.Node{ID: name, Cluster: name})
			})
			synctest.Wait()
		}
		begin := time.Now()
		is, err := k.isGateway(t.Context(), testPeer, xds.Node{ID: "edge", Cluster: "edge"})
		if took := time.Since(begin); err != nil || !is || took > 0 {
			t.Errorf("after %v: %v, %v; want a gateway at once", took, is, err)
		}
		callers.Wait()
	})
}
