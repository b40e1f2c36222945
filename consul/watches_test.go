package consul

import (
	"context"
	"errors"
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
	"github.com/usherproxy/usher/internal/problem"
)

// logRecorder is a log handler that records the lines: "watch started health:web",
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

// take returns what was logged since the last call, sorted: queries that start
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

// next returns the next snapshot that satisfies f.
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
		t.Errorf("%d types of watches are counted, want 10", n)
	}
	if n := testutil.ToFloat64(metrics.watches.WithLabelValues("health")); n != 0 {
		t.Errorf("%v health watches are counted at the end, want none", n)
	}
}

// What stops does not answer: that is no end of an outage.
func TestAnOutageIsLoggedOnceAndNotAsOverWhenItsWatchesStop(t *testing.T) {
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
		for _, line := range log.take() {
			if strings.HasPrefix(line, "INFO") {
				t.Errorf("when the watches stop, the log has %q", line)
			}
		}
	})
}

// TestTheProblemIsOfTheWatchesThatFailNow checks that the problem of watches that fail in one way does not stay that of the
// one that failed first.
func TestTheProblemIsOfTheWatchesThatFailNow(t *testing.T) {
	away := func(text string) error { return &callError{outcome: outcomeUnreachable, err: errors.New(text)} }
	health := func(name string) query { return serviceQuery(inspectedInstancesType, gateway.ServiceName{Name: name}) }
	roots := query{queryType: rootsType}
	type step struct {
		q       query
		was, is error
		c       failureContext
		want    string // the problems
	}
	answered := failureContext{hasAnswer: true}
	const (
		never    = "; it has never answered, so Usher serves nothing"
		none     = "; there is no last valid answer"
		last     = "; Usher uses the last valid answer"
		unlisted = "not reported again"
	)
	for name, steps := range map[string][]step{
		"the heartbeat fails second": {
			{roots, nil, away("a"), failureContext{}, "degraded it does not answer: a" + none},
			{heartbeat, nil, away("b"), failureContext{}, "outage it does not answer: b" + never},
			{roots, away("a"), nil, answered, unlisted},
			{heartbeat, away("b"), nil, answered, ""},
		},
		"the heartbeat answers first": {
			{heartbeat, nil, away("b"), failureContext{}, "outage it does not answer: b" + never},
			{roots, nil, away("a"), failureContext{}, unlisted},
			{heartbeat, away("b"), nil, answered, "degraded it does not answer: a" + none},
			{heartbeat, nil, away("c"), answered, unlisted},
			{roots, away("a"), nil, answered, "degraded it does not answer: c" + last},
		},
		"the first of two recovers": {
			{health("a"), nil, errors.New("500"), answered, "degraded query registered-instances:a it fails: 500" + last},
			{health("b"), nil, errors.New("500"), answered, unlisted},
			{health("a"), errors.New("500"), nil, answered, "degraded query registered-instances:b it fails: 500" + last},
			{health("b"), errors.New("500"), errors.New("501"), answered, "degraded query registered-instances:b it fails: 501" + last},
			{health("b"), errors.New("501"), nil, failureContext{stopped: true}, ""},
		},
		"one without an answer comes first": {
			{health("a"), nil, errors.New("500"), answered, "degraded query registered-instances:a it fails: 500" + last},
			{health("b"), nil, errors.New("500"), failureContext{}, "degraded query registered-instances:b it fails: 500" + none},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := &watchManager{failures: map[failureType]*failure{}}
			reported := unlisted
			m.client = &Client{targets: newTargets([]*target{{}}), logger: slog.New(slog.DiscardHandler), report: func(_ string, problems []problem.Problem) {
				reported = ""
				for _, p := range problems {
					_, query, _ := strings.Cut(p.Where, ": ")
					what, _, _ := strings.Cut(p.What, "; check that Consul")
					reported += strings.Join(strings.Fields(p.Severity.String()+" "+query+" "+what), " ")
				}
			}}
			for i, s := range steps {
				reported = unlisted
				m.logFailure(s.q, s.was, s.is, s.c)
				if reported != s.want {
					t.Errorf("step %d: got %q, want %q", i, reported, s.want)
				}
			}
		})
	}
}

// TestOneStateIsOneLineAndOneProblem has three types of queries fail with one error, and end one after the other.
func TestOneStateIsOneLineAndOneProblem(t *testing.T) {
	log := &logRecorder{}
	client := newTestClient(t, Config{Logger: slog.New(log)})
	var reported []problem.Problem
	client.report = func(_ string, problems []problem.Problem) { reported = problems }
	m := newWatchManager(client, time.Minute)
	queries := []query{{queryType: meshType}, {queryType: rootsType}, servicesQuery}
	broken := &callError{outcome: outcomeFailed, status: 500, err: errors.New("consul answered 500: something broke")}
	had := failureContext{hasAnswer: true}
	for _, q := range queries {
		m.logFailure(q, nil, broken, had)
	}
	if len(reported) != 1 || !strings.HasSuffix(reported[0].Where, "and queries of 2 other types") {
		t.Errorf("the problems are %v, want one", reported)
	}
	m.logFailure(query{queryType: proxyDefaultsType}, nil, &callError{outcome: outcomeFailed, err: errors.New("another")}, had)
	if len(reported) != 2 {
		t.Errorf("the problems are %v, want two", reported)
	}
	for _, q := range queries {
		m.logFailure(q, broken, nil, had)
	}
	begins, ends := 0, 0
	for _, line := range log.take() {
		if strings.HasPrefix(line, "WARN") {
			begins++
		}
		if strings.HasPrefix(line, "INFO") {
			ends++
		}
	}
	if begins != 2 || ends != 1 || len(reported) != 1 {
		t.Errorf("%d lines about two states and %d about the end of one; problems %v", begins, ends, reported)
	}
}
