package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/testing/golden"
	"github.com/usherproxy/usher/listeners"
	"github.com/usherproxy/usher/xds"
)

// TestEnterprise follows a gateway of Consul Enterprise from Consul's HTTP API
// to Envoy's resources. There is no such Consul to run here: what it answers is
// written down in testdata/enterprise, in the form of Consul's own answers with
// the fields that only Enterprise fills. Every question that is not written down
// there, with its namespace and partition, is a failure, and so is an answer
// that nobody asks for.
func TestEnterprise(t *testing.T) {
	golden.Run(t, "testdata/enterprise", func(t *testing.T, in []byte) map[string]any {
		var c recorded
		if err := yaml.Unmarshal(in, &c); err != nil {
			t.Fatal(err)
		}
		api := &recording{t: t, answers: c.Answers, asked: map[string]bool{}}
		server := httptest.NewServer(api)
		defer server.Close()
		client, err := consul.NewClient(consul.Config{
			HTTPAddr: server.URL,
			Getenv:   func(name string) string { return c.Environment[name] },
		})
		if err != nil {
			t.Fatal(err)
		}
		id, err := GatewayOf(xds.Node{ID: "edge", Cluster: "edge", Metadata: c.Node})
		if err != nil {
			t.Fatal(err)
		}
		if err := consul.NewAuthorizer(client, consul.AuthorizerOptions{}).Authorize(t.Context(), consul.Caller{}, id); err != nil {
			t.Error(err)
		}
		s := firstSnapshot(t, client, id)
		api.wantAllAsked()
		r := new(listeners.Compiler).Compile(s, s.Instances[0], gateway.Envoy{})
		return map[string]any{
			"listeners": golden.List(r.Listeners.Values()),
			"routes":    golden.List(r.Routes.Values()),
			"clusters":  golden.List(r.Clusters.Values()),
			"endpoints": golden.List(r.Endpoints.Values()),
			"problems":  slices.Concat(s.Problems, r.Problems),
		}
	})
}

// recorded is the content of a case.
type recorded struct {
	Environment map[string]string // Usher's
	Node        map[string]string // the metadata of the Envoy's node
	// Answers are what Consul answers to a path with its parameters, but for
	// those that are the same on every cluster. A body stands after the path.
	Answers map[string]any
}

func firstSnapshot(t *testing.T, client *consul.Client, id gateway.ID) *gateway.Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	first := make(chan *gateway.Snapshot, 1)
	done := make(chan error, 1)
	go func() {
		done <- consul.NewWatcher(client, consul.WatcherOptions{HealthTimeout: 10 * time.Second}).Watch(ctx, id, func(s *gateway.Snapshot) {
			select {
			case first <- s:
			default:
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	select {
	case s := <-first:
		return s
	case <-ctx.Done():
		t.Fatal("no snapshot within 10 s")
		return nil
	}
}

// recording answers as Consul did, and blocks for ever where a question waits
// for a change.
type recording struct {
	t       *testing.T
	answers map[string]any

	mu    sync.Mutex
	asked map[string]bool
}

// ServeHTTP implements http.Handler.
func (r *recording) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Query().Has("index") {
		<-req.Context().Done()
		return
	}
	question := r.questionOf(req)
	answer, known := r.answers[question]
	if !known {
		r.t.Errorf("asked %s", question)
		http.Error(w, "not recorded", http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	r.asked[question] = true
	r.mu.Unlock()
	body, err := json.Marshal(answer)
	if err != nil {
		r.t.Error(err)
	}
	w.Header().Set("X-Consul-Index", "1")
	_, _ = w.Write(body) // the client may have gone
}

// questionOf gives the path, with the parameters that say what is asked and not
// how, and the body.
func (r *recording) questionOf(req *http.Request) string {
	var params []string
	for key, values := range req.URL.Query() {
		if key != "stale" && key != "merge-central-config" {
			params = append(params, key+"="+strings.Join(values, ","))
		}
	}
	slices.Sort(params)
	question := req.URL.Path
	if len(params) > 0 {
		question += "?" + strings.Join(params, "&")
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		r.t.Error(err)
	}
	if len(body) > 0 {
		question += " " + string(bytes.TrimSpace(body))
	}
	return question
}

func (r *recording) wantAllAsked() {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, question := range slices.Sorted(maps.Keys(r.answers)) {
		if !r.asked[question] {
			r.t.Errorf("not asked: %s", question)
		}
	}
}
