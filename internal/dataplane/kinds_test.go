package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/xds"
)

// fakeCatalog answers which services are gateways.
type fakeCatalog struct {
	mu       sync.Mutex
	gateways map[string]bool
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

func (c *fakeCatalog) isGateway(ctx context.Context, n xds.Node) (bool, error) {
	c.asked.Add(1)
	select {
	case <-time.After(c.delay):
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gateways[n.Cluster], c.err
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
		f(kindsTest{t, c, newKinds(c.isGateway, slog.New(slog.DiscardHandler))})
	})
}

func (t kindsTest) want(service string, want bool) {
	t.Helper()
	got, err := t.kinds.isGateway(t.Context(), xds.Node{Cluster: service})
	if err != nil || got != want {
		t.Errorf("%s is a gateway: %v, %v, want %v", service, got, err, want)
	}
}

func (t kindsTest) wantUnknown(service string) {
	t.Helper()
	if _, err := t.kinds.isGateway(t.Context(), xds.Node{Cluster: service}); status.Code(err) != codes.Unavailable {
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
		time.Sleep(24 * time.Hour)
		t.want("edge", true)
		t.want("web", false)
		t.wantUnknown("new")
	})
}

// While the pods of a gateway are replaced, the catalog may have none of them for a moment.
func TestAGatewayThatTheCatalogLosesStaysOneForAWhile(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil, "edge")
		t.want("edge", true)
		t.catalog.set(nil)
		time.Sleep(kindTime)
		t.want("edge", true)
		time.Sleep(gatewayTime)
		t.want("edge", false)
		t.catalog.set(nil, "edge")
		time.Sleep(kindTime)
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
			if _, err := t.kinds.isGateway(ctx, xds.Node{Cluster: "edge"}); status.Code(err) != codes.Canceled {
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

func TestOnlyAFewQuestionsRunAtTheSameTime(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.delay = time.Hour
		var callers sync.WaitGroup
		for i := range 20 {
			callers.Go(func() { t.wantUnknown(string(rune('a' + i))) })
		}
		synctest.Wait()
		if n := t.catalog.asked.Load(); n != maxQuestions {
			t.Errorf("asked %d questions, want %d", n, maxQuestions)
		}
		callers.Wait()
	})
}

// Invented names do not displace a gateway.
func TestInventedNamesDoNotDisplaceAGateway(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		t.catalog.set(nil, "edge")
		t.want("edge", true)
		for i := range maxOthers + 1 {
			t.kinds.remember(string(rune(i)), false)
		}
		t.catalog.set(errNoConsul)
		time.Sleep(kindTime)
		t.want("edge", true)
	})
}

func TestASecondNamespaceIsAnotherService(t *testing.T) {
	testKinds(t, func(t kindsTest) {
		for _, namespace := range []string{"one", "two"} {
			_, _ = t.kinds.isGateway(t.Context(), xds.Node{Cluster: "edge", Metadata: map[string]string{"namespace": namespace}})
		}
		if n := t.catalog.asked.Load(); n != 2 {
			t.Errorf("asked %d times, want 2", n)
		}
	})
}
