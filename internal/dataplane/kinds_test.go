package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/xds"
)

// fakeCatalog answers which services are gateways. All others are registered as something else, unless they are absent.
type fakeCatalog struct {
	mu       sync.Mutex
	gateways map[string]bool
	absent   bool
	err      error
	asked    atomic.Int32
	delay    time.Duration
}

func (c *fakeCatalog) set(err error, gateways ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err, c.gateways = err, map[string]bool{}
	for _, name := range gateways {
		c.gateways[name] = true
	}
}

func (c *fakeCatalog) kindOf(ctx context.Context, n xds.Node) (Kind, error) {
	c.asked.Add(1)
	select {
	case <-time.After(c.delay):
	case <-ctx.Done():
		return NotRegistered, context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.gateways[n.Cluster]:
		return Gateway, c.err
	case c.absent:
		return NotRegistered, c.err
	}
	return Other, c.err
}

// setAbsent makes the catalog lose everything but its gateways.
func (c *fakeCatalog) setAbsent(absent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.absent = absent
}

var errNoConsul = errors.New("consul does not answer")

// kindsTest asks for kinds in a synctest bubble.
type kindsTest struct {
	*testing.T
	catalog *fakeCatalog
	kinds   *kinds
}

func testKinds(t *testing.T, f func(t kindsTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &fakeCatalog{}
		f(kindsTest{t, c, newKinds(c.kindOf, newBackground(slog.New(slog.DiscardHandler)))})
	})
}

var testPeer = netip.MustParsePrefix("192.0.2.1/32")

func (t kindsTest) want(service string, want bool) {
	t.Helper()
	got, err := t.kinds.isGateway(t.Context(), testPeer, xds.Node{ID: service + "-1", Cluster: service})
	if err != nil || got != want {
		t.Errorf("%s is a gateway: %v, %v, want %v", service, got, err, want)
	}
}

func (t kindsTest) wantUnknown(service string) {
	t.Helper()
	if _, err := t.kinds.isGateway(t.Context(), testPeer, xds.Node{ID: service + "-1", Cluster: service}); status.Code(err) != codes.Unavailable {
		t.Errorf("%s: %v, want Unavailable", service, err)
	}
}

func TestAKindIsRememberedForAShortTime(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil, "edge")
		for range 3 {
			t.want("edge", true)
			t.want("web", false)
		}
		if n := t.catalog.asked.Load(); n != 2 {
			t.Errorf("asked %d times, want once for each service", n)
		}
		t.catalog.set(nil, "edge", "web")
		time.Sleep(kindTime)
		t.want("web", true)
	})
}

func TestAnUnknownKindFailsClosed(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(errNoConsul)
		t.wantUnknown("edge")
		t.catalog.set(nil, "edge")
		t.want("edge", true)
	})
}

func TestKindsStayKnownWhileConsulDoesNotAnswer(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil, "edge")
		t.want("edge", true)
		t.want("web", false)
		t.catalog.set(errNoConsul)
		time.Sleep(otherTime - time.Second)
		t.want("edge", true)
		t.want("web", false)
		t.wantUnknown("new")
		time.Sleep(24 * time.Hour)
		t.want("edge", true)
	})
}

// Another proxy may be registered as a gateway while Consul does not answer.
func TestAnotherProxyStaysOneForAWhile(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil)
		t.want("web", false)
		t.catalog.set(errNoConsul)
		time.Sleep(otherTime)
		t.wantUnknown("web")
		t.catalog.set(nil)
		t.want("web", false)
	})
}

// An answer that refuses a node is an answer: Consul must not serve it later, while there is none.
func TestAnotherProxyThatIsRefusedIsForgotten(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil)
		t.want("web", false)
		time.Sleep(kindTime)
		t.catalog.set(status.Error(codes.InvalidArgument, "it is registered as an ingress gateway, and not as one of web"))
		_, err := t.kinds.isGateway(t.Context(), testPeer, xds.Node{ID: "web-1", Cluster: "web"})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v, want InvalidArgument", err)
		}
		t.catalog.set(errNoConsul)
		t.wantUnknown("web")
	})
}

// While the pods of a gateway are replaced, the catalog may have none of them for a moment.
func TestAGatewayThatTheCatalogLosesStaysOneForAWhile(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil, "edge")
		t.want("edge", true)
		t.catalog.set(nil)
		t.catalog.setAbsent(true)
		time.Sleep(kindTime)
		t.want("edge", true)
		time.Sleep(gatewayTime)
		t.wantUnknown("edge")
		t.catalog.set(nil, "edge")
		t.want("edge", true)
	})
}

func TestCallersShareAQuestion(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil, "edge")
		t.catalog.delay = time.Second
		var callers sync.WaitGroup
		for range 100 {
			callers.Go(func() { t.want("edge", true) })
		}
		callers.Wait()
		if n := t.catalog.asked.Load(); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
	})
}

// A caller that leaves does not take the answer from those that wait for the same.
func TestACallerThatLeavesDoesNotEndTheQuestion(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil, "edge")
		t.catalog.delay = time.Second
		ctx, leave := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		callers.Go(func() {
			if _, err := t.kinds.isGateway(ctx, testPeer, xds.Node{ID: "edge-1", Cluster: "edge"}); status.Code(err) != codes.Canceled {
				t.Errorf("the caller that left got %v", err)
			}
		})
		synctest.Wait()
		callers.Go(func() { t.want("edge", true) })
		leave()
		callers.Wait()
	})
}

func TestASilentConsulDelaysAKnownGatewayLittle(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil, "edge")
		t.want("edge", true)
		time.Sleep(kindTime)
		t.catalog.delay = time.Hour
		begin := time.Now()
		t.want("edge", true)
		if took := time.Since(begin); took != askAgainTime {
			t.Errorf("it took %v, want %v", took, askAgainTime)
		}
		begin = time.Now()
		t.wantUnknown("web")
		if took := time.Since(begin); took != askTime {
			t.Errorf("it took %v, want %v", took, askTime)
		}
	})
}

// A caller who asks about a gateway before it is registered must not make Usher remember that it is none: Consul would serve
// it, and without the filters that Usher adds.
func TestAMissingRegistrationIsNotRemembered(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.setAbsent(true)
		t.wantUnknown("edge")
		t.catalog.set(nil, "edge")
		t.want("edge", true)
	})
}

func TestAPanicInAQuestionIsNoAnswer(t *testing.T) {
	k := newKinds(func(context.Context, xds.Node) (Kind, error) { panic("a damaged answer") }, newBackground(slog.New(slog.DiscardHandler)))
	if is, err := k.isGateway(t.Context(), testPeer, xds.Node{ID: "edge-1", Cluster: "edge"}); err == nil || is {
		t.Errorf("got %v, %v; want an error", is, err)
	}
}

// A node keeps its answer for its own cluster only.
func TestAGatewayThatNamesAnotherClusterIsAskedAbout(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil, "edge")
		t.want("edge", true)
		_, _ = t.kinds.isGateway(t.Context(), testPeer, xds.Node{ID: "edge-1", Cluster: "web"})
		if n := t.catalog.asked.Load(); n != 2 {
			t.Errorf("asked %d times, want 2", n)
		}
	})
}

func TestOnlyAFewQuestionsRunAtTheSameTime(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.delay = time.Hour
		var callers sync.WaitGroup
		ask := func(peers, each int) {
			for i := range peers * each {
				peer := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i % peers)}), 32)
				callers.Go(func() {
					_, err := t.kinds.isGateway(t.Context(), peer, xds.Node{ID: strconv.Itoa(i), Cluster: "x"})
					if status.Code(err) != codes.Unavailable {
						t.Errorf("%v, want Unavailable", err)
					}
				})
			}
			synctest.Wait()
		}
		ask(1, 20)
		if n := t.catalog.asked.Load(); n != maxQuestionsPerPeer {
			t.Errorf("asked %d questions for one peer, want %d", n, maxQuestionsPerPeer)
		}
		ask(10, 20)
		if n := t.catalog.asked.Load(); n != maxQuestions {
			t.Errorf("asked %d questions, want %d", n, maxQuestions)
		}
		callers.Wait()
	})
}

// Callers who invent names displace neither a gateway nor another proxy: what is not registered is not remembered.
func TestInventedNamesDisplaceNothing(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil, "edge")
		t.want("edge", true)
		t.want("web", false)
		for i := range maxNodes + 1 {
			n := xds.Node{ID: strconv.Itoa(i), Cluster: "edge"}
			_, _ = t.kinds.remember(NotRegistered, keyOf(n, n.ID, ""), keyOf(n, n.ID), n)
			_, _ = t.kinds.remember(GatewayByName, keyOf(n, n.ID, ""), keyOf(n, n.Cluster), n)
		}
		t.catalog.set(errNoConsul)
		time.Sleep(kindTime)
		t.want("edge", true)
		t.want("web", false)
	})
}

// The catalog finds names in any case, which must not make a gateway several.
func TestCaseDoesNotMatterInTheMemory(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil, "edge", "EDGE")
		t.want("edge", true)
		t.want("EDGE", true)
		if n := t.kinds.gateways.Len(); n != 1 {
			t.Errorf("%d gateways are remembered, want 1", n)
		}
	})
}

func TestASecondNamespaceIsAnotherService(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		for _, namespace := range []string{"one", "two"} {
			_, _ = t.kinds.isGateway(t.Context(), testPeer, xds.Node{ID: "edge-1", Cluster: "edge", Metadata: map[string]string{"namespace": namespace}})
		}
		if n := t.catalog.asked.Load(); n != 2 {
			t.Errorf("asked %d times, want 2", n)
		}
	})
}
