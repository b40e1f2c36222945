package consul

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/gateway"
)

// journal is a log handler that keeps what is logged: "watch started health:web",
// "WARN message".
type logRecorder struct {
	mu    sync.Mutex
	lines []string
}

// Enabled implements slog.Handler.
func (j *logRecorder) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (j *logRecorder) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "query" && r.Level == slog.LevelDebug {
			line = r.Message + " " + strings.ReplaceAll(a.Value.String(), " ns=default partition=default", "")
		}
		return true
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
	return nil
}

// WithAttrs implements slog.Handler.
func (j *logRecorder) WithAttrs([]slog.Attr) slog.Handler { return j }

// WithGroup implements slog.Handler.
func (j *logRecorder) WithGroup(string) slog.Handler { return j }

// take gives what was logged since the last call, sorted: queries that start
// together have no order.
func (j *logRecorder) take() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := j.lines
	j.lines = nil
	slices.Sort(lines)
	return lines
}

// watching is a gateway being watched, until stop.
type testWatch struct {
	snapshots chan *gateway.Snapshot
	stop      func()
}

// start watches a gateway.
func start(t *testing.T, w *Watcher, name string) *testWatch {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	out := &testWatch{snapshots: make(chan *gateway.Snapshot, 100)}
	go func() {
		done <- w.Watch(ctx, gateway.ID{Name: name}, func(s *gateway.Snapshot) { out.snapshots <- s })
	}()
	out.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(out.stop)
	return out
}

// next gives the next snapshot that satisfies f.
func (w *testWatch) next(t *testing.T, f func(*gateway.Snapshot) bool) *gateway.Snapshot {
	t.Helper()
	end := time.After(10 * time.Second)
	for {
		select {
		case s := <-w.snapshots:
			if f(s) {
				return s
			}
		case <-end:
			t.Fatal("no such snapshot within 10 s")
		}
	}
}

func anyOne(*gateway.Snapshot) bool { return true }

func TestGatewaysShareTheQueriesTheyHaveInCommon(t *testing.T) {
	c := newFakeGateway(t, "web", "api")
	c.set("/v1/config/ingress-gateway", reply{body: `[
		{"Name": "gateway", "Listeners": [{"Port": 8080, "Protocol": "http", "Services": [{"Name": "web"}, {"Name": "api"}]}]},
		{"Name": "second", "Listeners": [{"Port": 8080, "Protocol": "http", "Services": [{"Name": "web"}]}]}
	]`})
	c.set("/v1/catalog/gateway-services/second", servicesAnswer("web"))
	c.set("/v1/health/service/second", instanceOf("second"))
	c.set("/v1/agent/connect/ca/leaf/second", reply{body: `{"CertPEM": "c", "PrivateKeyPEM": "k"}`})
	for _, s := range []string{"web", "api"} {
		c.set("/v1/discovery-chain/"+s, chainTo(s))
		c.set("/v1/health/connect/"+s, reply{body: "[]"})
	}
	log := &logRecorder{}
	metrics := NewMetrics(prometheus.NewRegistry())
	client := c.client(t, log)
	client.metrics = metrics
	w := NewWatcher(client, WatcherOptions{})

	first := start(t, w, "gateway")
	first.next(t, anyOne)
	wantEqual(t, []string{
		"watch started agent", "watch started discovery-chain:api", "watch started discovery-chain:web", "watch started gateway-services:gateway",
		"watch started health:api", "watch started health:web", "watch started ingress-gateway", "watch started instances:gateway",
		"watch started leaf:gateway", "watch started mesh", "watch started proxy-defaults", "watch started roots",
	}, log.take())

	second := start(t, w, "second")
	second.next(t, anyOne)
	wantEqual(t, []string{"watch started gateway-services:second", "watch started instances:second", "watch started leaf:second"}, log.take())
	if n := testutil.ToFloat64(metrics.watches.WithLabelValues("health")); n != 2 {
		t.Errorf("%v health watches are counted, want 2", n)
	}

	// api is taken from the gateway.
	c.set("/v1/config/ingress-gateway", reply{body: `[
		{"Name": "gateway", "Listeners": [{"Port": 8080, "Protocol": "http", "Services": [{"Name": "web"}]}]},
		{"Name": "second", "Listeners": [{"Port": 8080, "Protocol": "http", "Services": [{"Name": "web"}]}]}
	]`})
	c.set("/v1/catalog/gateway-services/gateway", servicesAnswer("web"))
	first.next(t, func(s *gateway.Snapshot) bool { return len(s.Services) == 1 })
	wantEqual(t, []string{"watch stopped discovery-chain:api", "watch stopped health:api"}, log.take())

	first.stop()
	wantEqual(t, []string{"watch stopped gateway-services:gateway", "watch stopped instances:gateway", "watch stopped leaf:gateway"}, log.take())

	second.stop()
	wantEqual(t, []string{
		"watch stopped agent", "watch stopped discovery-chain:web", "watch stopped gateway-services:second", "watch stopped health:web", "watch stopped ingress-gateway",
		"watch stopped instances:second", "watch stopped leaf:second", "watch stopped mesh", "watch stopped proxy-defaults", "watch stopped roots",
	}, log.take())
	if n := testutil.CollectAndCount(metrics.watches); n != 10 {
		t.Errorf("%d kinds of watches are counted, want 10", n)
	}
	if n := testutil.ToFloat64(metrics.watches.WithLabelValues("health")); n != 0 {
		t.Errorf("%v health watches are counted at the end, want none", n)
	}
}

func TestAnOutageIsLoggedOnceAndSoIsItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logRecorder{}
		client := newTestClient(t, Config{Logger: slog.New(log)})
		h := newWatchManager(client, time.Minute)
		q := []query{{queryType: rootsType}, {queryType: meshType}, {queryType: proxyDefaultsType}}
		client.watchHTTP.Transport = silent{}
		l := h.subscribe()
		subscribeAlso(l, q...)
		time.Sleep(10 * time.Minute)
		warnings := 0
		for _, line := range log.take() {
			if strings.HasPrefix(line, "WARN") {
				warnings++
			}
		}
		if warnings != 1 {
			t.Errorf("%d warnings while nothing answers, want 1", warnings)
		}
		l.close()
		infos := 0
		for _, line := range log.take() {
			if strings.HasPrefix(line, "INFO") {
				infos++
			}
		}
		if infos != 1 {
			t.Errorf("%d lines at the end, want 1", infos)
		}
	})
}
