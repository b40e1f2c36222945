package cutover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/usherproxy/usher/internal/envoyadmin"
	"github.com/usherproxy/usher/internal/resourcediff"
)

// listener is a listener's configuration: its port, and what follows "filter_chains".
func listenerJSON(port int, more string) string {
	return fmt.Sprintf(`{"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "http:10.0.0.1:%d",
		"address": {"socket_address": {"address": "10.0.0.1", "port_value": %d}}, "filter_chains": [{}]%s}`, port, port, more)
}

// withMode is the end of a listener with a mode.
func withMode(m mode) string {
	if m == off {
		return ""
	}
	return fmt.Sprintf(`, "access_log": [{"name": "Usher Listener Log"}], "listener_filters": [{"name": %q, "typed_config":
		{"@type": "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol", "stat_prefix": "a", "allow_requests_without_proxy_protocol": %t}}]`,
		proxyFilter, m == permissive)
}

const clusterJSON = `{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "web", "type": "EDS",
	"eds_cluster_config": {"service_name": "web-eds"}, "connect_timeout": "%s"}`

// endpointsJSON are the endpoints of the cluster, with the health of the only one.
const endpointsJSON = `{"@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name": "web-eds", "endpoints": [
	{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "10.0.0.9", "port_value": 1}}}%s}]}]}`

// config is what an xDS server sends.
type config struct {
	listeners []string
	cluster   string
	health    string // that follows the address of the endpoint, which no Envoy shows
}

// plain has one listener with a mode.
func plain(m mode) config {
	return config{listeners: []string{listenerJSON(8080, withMode(m))}, cluster: fmt.Sprintf(clusterJSON, "5s")}
}

// resources returns the configuration as a client of the xDS server gets it.
func (c config) resources(t *testing.T) resourcediff.Resources {
	t.Helper()
	r := resourcediff.Resources{}
	for _, text := range append(slices.Clone(c.listeners), c.cluster, fmt.Sprintf(endpointsJSON, c.health)) {
		var packed anypb.Any
		var named struct {
			Name    string
			Cluster string `json:"cluster_name"`
		}
		err := errors.Join(protojson.Unmarshal([]byte(text), &packed), json.Unmarshal([]byte(text), &named))
		if err == nil {
			err = r.Add(named.Name+named.Cluster, &packed)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// fakeEnvoy is an admin interface.
type fakeEnvoy struct {
	server *httptest.Server

	mu     sync.Mutex
	down   bool // nothing answers
	state  string
	config config
	stats  map[string]int
	inner  bool              // it has an internal listener, without a port
	errors map[string]string // the listeners that it refuses
	raw    map[string]string // answers in the place of others, by path
	hangs  string            // it does not answer at this path
	posts  []string
	onPost func(e *fakeEnvoy, path string)
	onGet  func(e *fakeEnvoy, path string)
}

// healthy are the statistics of an Envoy with one listener and no connections.
func healthy() map[string]int {
	return map[string]int{
		"listener.10.0.0.1_8080.downstream_cx_active": 0, "listener.10.0.0.1_8080.worker_0.downstream_cx_active": 0, "listener.admin.downstream_cx_active": 1,
		"listener_manager.listener_stopped": 0, "listener_manager.total_listeners_active": 1, "listener_manager.total_listeners_warming": 0,
		"cluster_manager.warming_clusters": 0, "cluster.web.membership_healthy": 2,
		"proxy_proto.a.versions.v2.found": 10, "proxy_proto.a.not_found_allowed": 10,
	}
}

func newFakeEnvoy(t *testing.T, c config) *fakeEnvoy {
	t.Helper()
	e := &fakeEnvoy{state: "LIVE", config: c, stats: healthy(), onGet: func(*fakeEnvoy, string) {}}
	e.onPost = func(e *fakeEnvoy, path string) {
		if path == "/drain_listeners" {
			e.stats["listener_manager.listener_stopped"] = 1
		}
	}
	e.server = httptest.NewServer(e)
	t.Cleanup(e.server.Close)
	return e
}

// set changes it.
func (e *fakeEnvoy) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

// ServeHTTP implements http.Handler.
func (e *fakeEnvoy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.Method == http.MethodGet {
		e.onGet(e, r.URL.Path)
	}
	if r.URL.Path == e.hangs {
		<-r.Context().Done()
		return
	}
	if r.Method == http.MethodPost {
		e.posts = append(e.posts, r.URL.Path)
		e.onPost(e, r.URL.Path)
		return
	}
	if e.down {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	if text, ok := e.raw[r.URL.Path]; ok {
		fmt.Fprint(w, text)
		return
	}
	var answer any
	switch r.URL.Path {
	case "/server_info":
		answer = map[string]any{"version": "c0ffee/1.40.0/Clean/RELEASE/BoringSSL", "state": e.state, "node": map[string]any{"id": "edge-1", "cluster": "edge"}}
	case "/listeners":
		answer = e.addresses()
	case "/config_dump":
		answer = e.dump()
	case "/stats":
		var all []map[string]any
		for name, value := range e.stats {
			all = append(all, map[string]any{"name": name, "value": value})
		}
		answer = map[string]any{"stats": all}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (e *fakeEnvoy) addresses() any {
	statuses := []any{}
	for _, text := range e.config.listeners {
		var listener map[string]any
		_ = json.Unmarshal([]byte(text), &listener)
		statuses = append(statuses, map[string]any{"name": listener["name"], "local_address": listener["address"]})
	}
	if e.inner {
		statuses = append(statuses, map[string]any{"name": "inner", "local_address": map[string]any{"envoy_internal_address": map[string]any{}}})
	}
	return map[string]any{"listener_statuses": statuses}
}

func (e *fakeEnvoy) dump() any {
	var listeners []any
	for _, text := range e.config.listeners {
		listeners = append(listeners, map[string]any{"active_state": map[string]any{"listener": json.RawMessage(text)}})
	}
	for name, details := range e.errors {
		listeners = append(listeners, map[string]any{"error_state": map[string]any{"details": details, "failed_configuration": map[string]any{"name": name}}})
	}
	clusters := []any{map[string]any{"cluster": json.RawMessage(e.config.cluster)}}
	return map[string]any{"configs": []any{map[string]any{"dynamic_listeners": listeners, "dynamic_active_clusters": clusters}}}
}

// posted returns the POST requests that came.
func (e *fakeEnvoy) posted() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.posts)
}

// fakeTarget is an xDS server.
type fakeTarget struct {
	resources resourcediff.Resources
	unready   error
	err       error
}

func (*fakeTarget) String() string                { return "Usher" }
func (f *fakeTarget) Ready(context.Context) error { return f.unready }
func (*fakeTarget) Hint() string                  { return "with -grpc-addr" }
func (f *fakeTarget) Fetch(context.Context, *corev3.Node, int) (resourcediff.Resources, error) {
	return maps.Clone(f.resources), f.err
}

// story is a cutover on fakes.
type story struct {
	t        *testing.T
	old, new *fakeEnvoy
	target   *fakeTarget
	options  Options
	sysctl   string // its content; "-" for no file
	out      strings.Builder
}

// newStory is a cutover from off to permissive that succeeds: the new Envoy runs as soon as the command has started it.
func newStory(t *testing.T) *story {
	t.Helper()
	s := &story{t: t, old: newFakeEnvoy(t, plain(off)), new: newFakeEnvoy(t, plain(permissive)), sysctl: "1\n"}
	s.serve(off, permissive)
	s.old.inner = true
	dir := t.TempDir()
	started := filepath.Join(dir, "started")
	s.new.down = true
	s.new.onGet = func(e *fakeEnvoy, _ string) {
		_, err := os.Stat(started)
		e.down = err != nil
	}
	s.options = Options{
		Old: envoyadmin.New(s.old.server.URL), New: envoyadmin.New(s.new.server.URL),
		Start: &Command{Line: "touch " + started}, Timeout: time.Minute, Watch: 20 * time.Millisecond, Sysctl: filepath.Join(dir, "sysctl"),
	}
	return s
}

// hurry makes the new Envoy run from the beginning, and every wait end after some looks.
func (s *story) hurry() {
	s.new.down, s.new.onGet, s.options.Timeout = false, func(*fakeEnvoy, string) {}, 250*time.Millisecond
}

// serve gives the old Envoy and the target one listener each, with these modes.
func (s *story) serve(before, after mode) {
	s.t.Helper()
	s.old.config, s.new.config = plain(before), plain(after)
	s.target = &fakeTarget{resources: plain(after).resources(s.t)}
}

// run runs the cutover.
func (s *story) run(ctx context.Context) error {
	s.t.Helper()
	if s.sysctl != "-" {
		if err := os.WriteFile(s.options.Sysctl, []byte(s.sysctl), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	s.options.Target, s.options.Out = s.target, &s.out
	err := s.options.Run(ctx)
	s.out.WriteString("\n")
	if err != nil {
		s.out.WriteString("usher: " + err.Error() + "\n")
	}
	return err
}

// hidden replaces what differs from run to run.
func (s *story) hidden(text string) string {
	return strings.NewReplacer(s.old.server.URL, "http://OLD", s.new.server.URL, "http://NEW", filepath.Dir(s.options.Sysctl), "DIR").Replace(text)
}
