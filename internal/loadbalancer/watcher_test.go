package loadbalancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/latest"
	"github.com/usherproxy/usher/internal/settings"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// apiServer is as much of one as a Watch asks for: the Service edge in the
// namespace consul, and what it was before, and the ConfigMap record.
type apiServer struct {
	*httptest.Server
	mu      sync.Mutex
	history []*corev1.Service // by resource version - 1; nil: there was none
	refuses bool
	changed chan struct{} // closed at each change
	record  *corev1.ConfigMap
	stall   chan struct{}           // if not nil, nobody learns of the record before it is closed
	meddle  func(*corev1.ConfigMap) // if not nil, called once before something is noted
	missed  func()                  // if not nil, called when somebody asks for a record that is not there
}

func newAPIServer(t *testing.T) *apiServer {
	a := &apiServer{changed: make(chan struct{})}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

// set makes the Service s, or, with nil, deletes it.
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
	refuses, version := a.refuses, len(a.history)
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Path == "/api/v1/namespaces/consul/configmaps/record":
		a.configMap(w, r)
	case r.URL.Path != "/api/v1/namespaces/consul/services" || q.Get("fieldSelector") != "metadata.name=edge":
		http.Error(w, "{}", http.StatusNotFound)
	case refuses:
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "services is forbidden"}`)
	case q.Get("sendInitialEvents") != "": // the client lists instead
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422}`)
	case q.Get("watch") != "":
		a.watch(w, r)
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

// configMap gives and replaces the record; who has not seen its newest version
// is refused.
func (a *apiServer) configMap(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	stall := a.stall
	a.mu.Unlock()
	if stall != nil {
		<-stall
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.record == nil && a.missed != nil {
		a.missed()
	}
	if a.record == nil {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}`)
		return
	}
	if r.Method == http.MethodPut {
		if a.meddle != nil {
			a.meddle(a.record)
			a.meddle = nil
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
	_ = json.NewEncoder(w).Encode(a.record)
}

// noted waits until a version of the Service is noted, and gives that.
func (a *apiServer) noted(t *testing.T, version string) serviceState {
	t.Helper()
	for {
		a.mu.Lock()
		m, changed := decodeState(a.record.Data["consul.edge"]), a.changed
		a.mu.Unlock()
		if m.resourceVersion == version {
			return m
		}
		select {
		case <-changed:
		case <-time.After(30 * time.Second):
			t.Fatalf("version %s was not noted, but %+v", version, m)
		}
	}
}

func (a *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	var seen int
	_, _ = fmt.Sscan(r.URL.Query().Get("resourceVersion"), &seen) // 0 where there is none
	for {
		a.mu.Lock()
		news, refuses, changed := a.history[seen:], a.refuses, a.changed
		a.mu.Unlock()
		if refuses {
			return
		}
		for _, s := range news {
			kind := "MODIFIED"
			if s == nil {
				kind, s = "DELETED", balanced(nil)
				s.ResourceVersion = fmt.Sprint(seen + 1)
			}
			s = s.DeepCopy()
			s.TypeMeta = metav1.TypeMeta{Kind: "Service", APIVersion: "v1"}
			_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": s})
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

// options are those of a Watcher that notes in the ConfigMap of a name, "":
// nowhere.
func (a *apiServer) options(t *testing.T, record string) Options {
	t.Helper()
	o := Options{Grace: 10 * time.Minute, Logger: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry())}
	if record != "" {
		o.Record = types.NamespacedName{Namespace: "consul", Name: record}
	}
	file := t.TempDir() + "/kubeconfig"
	config := clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: a.URL}},
		Contexts:       map[string]*clientcmdapi.Context{"c": {Cluster: "c"}},
		CurrentContext: "c",
	}
	if err := clientcmd.WriteToFile(config, file); err != nil {
		t.Fatal(err)
	}
	var err error
	if o.Client, err = Connect(file); err != nil {
		t.Fatal(err)
	}
	return o
}

// edge is the Service that there is in these tests.
var edge = gateway.KubernetesService{Namespace: "consul", Name: "edge"}

// run runs a Watch of a Service until stop or the test's end, and gives what it
// puts.
func run(t *testing.T, o Options, id gateway.KubernetesService) (said <-chan *gateway.Balancer, stop func()) {
	t.Helper()
	out := make(chan *gateway.Balancer, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		NewWatcher(o).Watch(ctx, id, func(b *gateway.Balancer) { out <- b })
	}()
	stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(stop)
	return out, stop
}

// watching is run with the usual options.
func (a *apiServer) watching(t *testing.T, record string) <-chan *gateway.Balancer {
	t.Helper()
	said, _ := run(t, a.options(t, record), edge)
	return said
}

// await waits until a mode and a problem that says this, or none with "", are
// told.
func await(t *testing.T, said <-chan *gateway.Balancer, mode settings.Mode, problem string) {
	t.Helper()
	var last *gateway.Balancer
	for {
		select {
		case last = <-said:
			got := fmt.Sprint(last.Problems)
			if last.ForPort(8080).Mode == mode && (problem == "") == (len(last.Problems) == 0) && strings.Contains(got, problem) {
				return
			}
		case <-t.Context().Done():
		case <-time.After(30 * time.Second):
			t.Fatalf("mode %q with a problem %q was not told, but %+v", mode, problem, last)
		}
	}
}

func TestWatchFollowsAService(t *testing.T) {
	a := newAPIServer(t)
	a.set(service("true", -60))
	said := a.watching(t, "")
	await(t, said, settings.Strict, "")
	a.set(service("false", 1))
	await(t, said, settings.Off, "") // long ago, by the Service's own times
	a.set(nil)
	await(t, said, settings.Off, "there is no such Service")
	a.set(service("true", 0))
	await(t, said, settings.Strict, "")
	a.refuse(true)
	await(t, said, settings.Strict, "give Usher get, list and watch on it")
	a.refuse(false)
	await(t, said, settings.Strict, "")
	a.Listener.Close() // first, so that nobody connects again
	a.CloseClientConnections()
	await(t, said, settings.Strict, "cannot be reached: ")
}

func TestWatchBeginsWithAnAPIServerThatRefuses(t *testing.T) {
	a := newAPIServer(t)
	a.set(service("true", 0))
	a.refuse(true)
	said := a.watching(t, "")
	await(t, said, "", "the API server refuses: services is forbidden")
	a.refuse(false)
	await(t, said, settings.Strict, "")
}

// A removal leaves no trace in the Service, but in its past; also when nobody
// could be asked at first.
func TestWatchThatBeginsAfterARemoval(t *testing.T) {
	a := newAPIServer(t)
	a.refuse(true)
	a.set(service("true", 0))
	a.set(service("", 0))
	labelled := service("", 0)
	labelled.Labels = map[string]string{"app": "edge"}
	a.set(labelled)
	said := a.watching(t, "")
	await(t, said, "", "the API server refuses")
	a.refuse(false)
	await(t, said, settings.Permissive, "")
}

// What was changed last has moved the annotation's time.
func TestWatchThatBeginsAfterAnotherChange(t *testing.T) {
	now := time.Since(start).Minutes()
	a := newAPIServer(t)
	a.set(service("true", 0))
	a.set(service("true", now))
	await(t, a.watching(t, ""), settings.Strict, "")
}

func TestWatchThatBeginsWithoutAPast(t *testing.T) {
	a := newAPIServer(t)
	a.set(service("", 0))
	await(t, a.watching(t, ""), settings.Off, "")
}

func TestAWatchThatEndsLeavesNothingInTheMetrics(t *testing.T) {
	a := newAPIServer(t)
	a.set(service("true", time.Since(start).Minutes()))
	o := a.options(t, "")
	said, stop := run(t, o, edge)
	await(t, said, settings.Permissive, "")
	if n := len(o.Metrics.graces.list()); n != 2 {
		t.Errorf("%d listeners are in a grace, want 2", n)
	}
	a.refuse(true)
	await(t, said, settings.Permissive, "the API server refuses")
	if n := testutil.ToFloat64(o.Metrics.failing); n != 1 {
		t.Errorf("%v watches fail, want 1", n)
	}
	a.refuse(false)
	await(t, said, settings.Permissive, "")
	stop()
	if n := len(o.Metrics.graces.list()); n != 0 {
		t.Errorf("%d listeners are in a grace after the end, want none", n)
	}
}

// What ends by itself all the time is no trouble.
func TestRequestsThatEndAsTheyShould(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx     context.Context
		err     error
		trouble bool
	}{
		"well":          {t.Context(), nil, false},
		"with trouble":  {t.Context(), errors.New("down"), true},
		"too old":       {t.Context(), apierrors.NewResourceExpired("too old resource version"), false},
		"after the end": {over, errors.New("canceled"), false},
	} {
		e := &serviceWatcher{out: latest.New[serviceEvent]()}
		e.requestDone(c.ctx, c.err)
		if got := e.last.err != nil; got != c.trouble {
			t.Errorf("%s: trouble %v, want %v", name, got, c.trouble)
		}
	}
}
