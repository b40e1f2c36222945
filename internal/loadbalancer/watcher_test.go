package loadbalancer

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/apiserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// apiServer is as much of an API server as a Watch needs: the Service edge in the
// namespace consul with its history, and the ConfigMap record.
type apiServer struct {
	*httptest.Server
	mu        sync.Mutex
	history   []*corev1.Service // by resource version - 1; nil: it did not exist
	refuses   bool
	changed   chan struct{} // closed at each change
	record    *corev1.ConfigMap
	reads     int                     // of the record
	stall     chan struct{}           // if not nil, requests for the record wait until it is closed
	beforePut func(*corev1.ConfigMap) // if not nil, called once before the record is replaced
	onMissing func()                  // if not nil, called at a request for a record that does not exist
	// fault, if not nil, answers requests for the Service and returns true, or returns false.
	fault func(w http.ResponseWriter, isWatch bool) bool
	cuts  int // how often all watches were cut off
}

func newAPIServer(t *testing.T) *apiServer {
	a := &apiServer{changed: make(chan struct{})}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

// set creates or replaces the Service, or, with nil, deletes it.
func (a *apiServer) set(s *corev1.Service) {
	a.change(func() {
		if s != nil {
			s = s.DeepCopy()
			s.ResourceVersion = fmt.Sprint(len(a.history) + 1)
		}
		a.history = append(a.history, s)
	})
}

func (a *apiServer) refuse(yes bool) { a.change(func() { a.refuses = yes }) }

func (a *apiServer) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	a.mu.Lock()
	refuses, version, fault, cuts := a.refuses, len(a.history), a.fault, a.cuts
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Path == "/api/v1/namespaces/consul/configmaps/record":
		a.configMap(w, r)
	case r.URL.Path != "/api/v1/namespaces/consul/services" || q.Get("fieldSelector") != "metadata.name=edge":
		http.Error(w, "{}", http.StatusNotFound)
	case fault != nil && fault(w, q.Get("watch") != ""):
	case refuses:
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "services is forbidden"}`)
	case q.Get("watch") != "":
		a.watch(w, r, cuts)
	case q.Get("resourceVersionMatch") == "Exact":
		var at int
		_, _ = fmt.Sscan(q.Get("resourceVersion"), &at) // 0 where there is none
		a.list(w, at)
	default:
		a.list(w, version)
	}
}

func (a *apiServer) list(w http.ResponseWriter, version int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := corev1.ServiceList{TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: fmt.Sprint(version)}}
	if version > 0 && a.history[version-1] != nil {
		list.Items = append(list.Items, *a.history[version-1])
	}
	_ = json.NewEncoder(w).Encode(list)
}

// configMap returns and replaces the record; it refuses to replace another version than
// the newest one.
func (a *apiServer) configMap(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	stall := a.stall
	a.mu.Unlock()
	if stall != nil {
		<-stall
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.record == nil && a.onMissing != nil {
		a.onMissing()
	}
	if a.record == nil {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}`)
		return
	}
	a.reads++
	if r.Method == http.MethodPut {
		a.reads--
		if a.beforePut != nil {
			a.beforePut(a.record)
			a.beforePut = nil
		}
		var next corev1.ConfigMap
		if err := json.NewDecoder(r.Body).Decode(&next); err != nil || next.Generation != a.record.Generation {
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409}`)
			return
		}
		next.Generation++
		a.record = &next
		close(a.changed)
		a.changed = make(chan struct{})
	}
	answer := *a.record
	answer.Name = "record"
	_ = json.NewEncoder(w).Encode(answer)
}

// waitRecorded waits until the state of this version of the Service is recorded, and returns it.
func (a *apiServer) waitRecorded(t *testing.T, version string) serviceState {
	t.Helper()
	for {
		a.mu.Lock()
		state, changed := decodeState(a.record.Data["consul.edge"]), a.changed
		a.mu.Unlock()
		if state.ResourceVersion == version {
			return state
		}
		select {
		case <-changed:
		case <-time.After(30 * time.Second):
			t.Fatalf("version %s was not recorded, but %+v", version, state)
		}
	}
}

// watch answers until the watches are cut off again. cuts is how often they were when the request came.
func (a *apiServer) watch(w http.ResponseWriter, r *http.Request, cuts int) {
	var seen int
	_, _ = fmt.Sscan(r.URL.Query().Get("resourceVersion"), &seen) // 0 where there is none
	for {
		a.mu.Lock()
		events, over, changed := a.history[min(seen, len(a.history)):], a.refuses || a.cuts != cuts, a.changed
		a.mu.Unlock()
		if over {
			return
		}
		for _, s := range events {
			event := "MODIFIED"
			if s == nil {
				event, s = "DELETED", balanced(nil)
				s.ResourceVersion = fmt.Sprint(seen + 1)
			}
			s = s.DeepCopy()
			s.TypeMeta = metav1.TypeMeta{Kind: "Service", APIVersion: "v1"}
			_ = json.NewEncoder(w).Encode(map[string]any{"type": event, "object": s})
			seen++
		}
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// options are those of a Watcher with the record in the ConfigMap of this name, or, with "",
// without a record.
func (a *apiServer) options(t *testing.T, record string) Options {
	t.Helper()
	o := Options{Grace: 10 * time.Minute, Logger: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry())}
	if record != "" {
		o.Record = types.NamespacedName{Namespace: "consul", Name: record}
	}
	var err error
	if o.Client, err = kubeapi.Connect(apiserver.KubeconfigFor(t, a.URL)); err != nil {
		t.Fatal(err)
	}
	return o
}

// edge is the Service of these tests.
var edge = gateway.KubernetesService{Namespace: "consul", Name: "edge"}

// run runs a Watch of a Service until stop or the test's end, and returns what it puts.
func run(t *testing.T, o Options, id gateway.KubernetesService) (published <-chan *gateway.Balancer, stop func()) {
	t.Helper()
	out := make(chan *gateway.Balancer, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		NewWatcher(o).Watch(ctx, gateway.ID{Name: "edge"}, id, func(b *gateway.Balancer) { out <- b })
	}()
	stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(stop)
	return out, stop
}

// watchEdge is run with the options of the API server.
func (a *apiServer) watchEdge(t *testing.T, record string) <-chan *gateway.Balancer {
	t.Helper()
	published, _ := run(t, a.options(t, record), edge)
	return published
}

// await waits until a mode and a problem with this text, or none with "", are published.
func await(t *testing.T, published <-chan *gateway.Balancer, mode settings.Mode, problem string) {
	t.Helper()
	var last *gateway.Balancer
	for {
		select {
		case last = <-published:
			got := fmt.Sprint(last.Problems)
			if last.ForPort(8080).Mode == mode && (problem == "") == (len(last.Problems) == 0) && strings.Contains(got, problem) {
				return
			}
		case <-t.Context().Done():
		case <-time.After(30 * time.Second):
			t.Fatalf("mode %q with a problem %q was not published, but %+v", mode, problem, last)
		}
	}
}

func TestWatchFollowsAService(t *testing.T) {
	a := newAPIServer(t)
	a.set(service("true", -60))
	published := a.watchEdge(t, "")
	await(t, published, settings.Strict, "")
	a.set(service("false", 1))
	await(t, published, settings.Off, "") // long ago, by the Service's own times
	a.set(nil)
	await(t, published, settings.Off, "Consul's catalog names this Service")
	a.set(service("true", 2))
	await(t, published, settings.Strict, "")
	a.refuse(true)
	await(t, published, settings.Strict, "give Usher get, list and watch on this Service")
	a.refuse(false)
	await(t, published, settings.Strict, "")
	a.Listener.Close() // first, so no client connects again
	a.CloseClientConnections()
	await(t, published, settings.Strict, "cannot be reached: ")
}

func TestWatchStartsWhileTheAPIServerRefuses(t *testing.T) {
	a := newAPIServer(t)
	a.set(service("true", 0))
	a.refuse(true)
	published := a.watchEdge(t, "")
	await(t, published, "", "the API server refuses access: services is forbidden")
	a.refuse(false)
	await(t, published, settings.Strict, "")
}

// A removal leaves no trace in the Service, but in its history; also when the API server
// refuses at first.
func TestWatchStartsAfterARemoval(t *testing.T) {
	a := newAPIServer(t)
	a.refuse(true)
	a.set(service("true", 0))
	a.set(service("", 0))
	labelled := service("", 0)
	labelled.Labels = map[string]string{"app": "edge"}
	a.set(labelled)
	published := a.watchEdge(t, "")
	await(t, published, "", "the API server refuses")
	a.refuse(false)
	await(t, published, settings.Permissive, "")
}

// An unrelated change has moved the annotation's time.
func TestWatchStartsAfterAnUnrelatedChange(t *testing.T) {
	now := time.Since(start).Minutes()
	a := newAPIServer(t)
	a.set(service("true", 0))
	a.set(service("true", now))
	await(t, a.watchEdge(t, ""), settings.Strict, "")
}

func TestWatchStartsWithoutHistory(t *testing.T) {
	a := newAPIServer(t)
	a.set(service("", 0))
	await(t, a.watchEdge(t, ""), settings.Off, "")
}

// gracePeriods returns the end of each grace period.
func gracePeriods(o Options) map[gateway.KubernetesService]map[int]time.Time {
	o.Metrics.mu.Lock()
	defer o.Metrics.mu.Unlock()
	return maps.Clone(o.Metrics.graceEnds)
}

func TestEndedWatchLeavesNothingInTheMetrics(t *testing.T) {
	a := newAPIServer(t)
	a.set(service("true", time.Since(start).Minutes()))
	o := a.options(t, "")
	published, stop := run(t, o, edge)
	await(t, published, settings.Permissive, "")
	if n := len(gracePeriods(o)[edge]); n != 2 {
		t.Errorf("%d listeners are in a grace period, want 2", n)
	}
	a.refuse(true)
	await(t, published, settings.Permissive, "the API server refuses")
	if n := testutil.ToFloat64(o.Metrics.failing); n != 1 {
		t.Errorf("%v watches fail, want 1", n)
	}
	a.refuse(false)
	await(t, published, settings.Permissive, "")
	stop()
	if n := len(gracePeriods(o)); n != 0 {
		t.Errorf("%d listeners are in a grace period after the end, want none", n)
	}
}
