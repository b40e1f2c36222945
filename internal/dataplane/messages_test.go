package dataplane

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/testing/messages"
	"github.com/usherproxy/usher/xds"
)

// TestMessages provokes every error of this package.
func TestMessages(t *testing.T) {
	var lines []string
	add := func(t *testing.T, err error) {
		t.Helper()
		if err == nil {
			t.Fatal("no error")
		}
		lines = append(lines, status.Convert(err).Message())
	}
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, echo, xds.Options{})
		conn := h.dial()
		add(t, h.open(t.Context(), conn, watchServersMethod).RecvMsg(new(frame)))
		add(t, h.open(t.Context(), conn, "/example.Service/Method").RecvMsg(new(frame)))
		for _, method := range []string{featuresMethod, paramsMethod} {
			answered := h.open(t.Context(), conn, method)
			_ = answered.SendMsg(frame("\xff"))
			add(t, answered.RecvMsg(new(frame)))
		}
		empty := h.open(t.Context(), conn, adsMethod)
		_ = empty.CloseSend()
		add(t, empty.RecvMsg(new(frame)))
		long := h.connect(conn, strings.Repeat("x", 513))
		long.Subscribe(xds.Cluster.URL())
		add(t, long.End())
		twice := h.open(t.Context(), conn, adsMethod)
		_ = twice.SendMsg(frame("\x0a\x00\x0a\x00")) // two nodes
		add(t, twice.RecvMsg(new(frame)))

		h.catalog.set(errNoConsul)
		unknown := h.connect(conn, "web")
		unknown.Subscribe(xds.Cluster.URL())
		add(t, unknown.End())
		add(t, h.server.consul.unreachable("connection refused"))
		h.server.admission.limits.Calls = -1
		add(t, h.open(t.Context(), conn, watchServersMethod).RecvMsg(new(frame)))
		add(t, errShuttingDown)
	})
	synctest.Test(t, func(t *testing.T) {
		c := &fakeCatalog{delay: time.Hour}
		k := newKinds(c.kindOf, newBackground(nil))
		_, err := k.question(t.Context(), askTime, testPeer, xds.Node{})
		add(t, err)
		for range maxQuestionsPerPeer {
			if _, err := k.limit.Acquire(t.Context(), testPeer); err != nil {
				t.Fatal(err)
			}
		}
		_, err = k.question(t.Context(), askTime, testPeer, xds.Node{})
		add(t, err)
		_, err = k.remember(NotRegistered, "", "", xds.Node{ID: "web-1", Metadata: map[string]string{"node_name": "n1"}})
		add(t, err)
	})
	inBubble(t, silentConsul, func(t *testing.T, h *harness) {
		proxy := h.watchedStream(h.dial())
		h.catalog.set(nil, "web")
		time.Sleep(recheckTime)
		add(t, proxy.End())
	})
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, flood, xds.Options{})
		stream := h.unreadCall()
		time.Sleep(sendTime + time.Second)
		var err error
		for err == nil {
			err = stream.RecvMsg(new(frame))
		}
		add(t, err)
	})
	add(t, sendReports(t, 0))
	add(t, sendReports(t, 2))
	add(t, sendReport(t, newHarness(t, silentConsul, xds.Options{}).dial(), "right"))
	// These have no other cause than a bug.
	lines = append(lines, "the connection to usher's xDS server: …", "internal error in usher; its log has the stack")
	messages.Check(t, lines, "errors.New", "fmt.Errorf", "fmt.Sprintf", "status.Error", "status.Errorf")
}

// sendReports ends a call for a report with another number of messages than one.
func sendReports(t *testing.T, messages int) error {
	t.Helper()
	h := newHarness(t, silentConsul, xds.Options{Reports: &reports{}})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-envoy-original-path", xds.ReportMethod, "proof", "right")
	call := h.open(ctx, h.dial(), adsMethod)
	for range messages {
		if err := call.SendMsg(frame{}); err != nil {
			t.Fatal(err)
		}
	}
	_ = call.CloseSend()
	return call.RecvMsg(new(frame))
}
