package collect

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/adminport"
	"github.com/usherproxy/usher/internal/doctor"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/probe"
	"github.com/usherproxy/usher/internal/testing/messages"
)

// pages is a server that answers paths. A page with %d in it gets how often it was asked for.
type pages map[string]string

func (p pages) start(t *testing.T) string {
	t.Helper()
	asked := map[string]*atomic.Int64{}
	for path := range p {
		asked[path] = &atomic.Int64{}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, ok := p[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if strings.Contains(page, "%d") {
			page = fmt.Sprintf(page, asked[r.URL.Path].Add(1))
		}
		fmt.Fprint(w, page)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

var envoyPages = pages{
	"/server_info": `{"version": "commit/1.36.2/Clean/RELEASE/BoringSSL", "node": {"id": "edge-1", "cluster": "edge"}}`,
	"/stats":       "control_plane.connected_state: 1\nproxy_proto.not_found_allowed: %d\nsome.histogram: P0(1,2)\n",
}

const metricsPage = `# TYPE usher_reported_connections_total counter
usher_reported_connections_total{gateway="edge",port="8080",type="header"} %d
# TYPE usher_listener_headers_only gauge
usher_listener_headers_only{gateway="edge",port="8080"} 1
usher_listener_headers_only{gateway="edge",port="9090"} 0
`

var usherPages = pages{
	"/status":  `{"usher": {"ready": true}, "gateways": [{"name": "edge", "listeners": [{"port": 8080, "inForce": "off"}]}]}`,
	"/metrics": metricsPage,
}

// options have an Envoy and an Usher, and no Consul.
func options(t *testing.T) Options {
	t.Helper()
	return Options{EnvoyAdmin: envoyPages.start(t), UsherAdmin: strings.TrimPrefix(usherPages.start(t), "http://"), Probe: probe.Options{Timeout: time.Second}}
}

func run(t *testing.T, o Options) *doctor.Facts {
	t.Helper()
	f, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFactsOfEnvoyAndUsher(t *testing.T) {
	o := options(t)
	o.Plan = func(context.Context, gateway.ID, *consul.RegisteredInstance) (*doctor.Plan, error) {
		t.Error("the plan is asked for, although Usher runs and there is no cluster")
		return nil, nil
	}
	f := run(t, o)
	if f.Gateway.Name != "edge" || f.Port != 8080 {
		t.Errorf("gateway %q, port %d, want edge, 8080", f.Gateway, f.Port)
	}
	want := &doctor.Envoy{
		Release: "1.36.2", ServiceID: "edge-1", Gateway: gateway.ID{Name: "edge"}, XDS: true,
		Before: map[string]uint64{connectedState: 1, "proxy_proto.not_found_allowed": 1},
		After:  map[string]uint64{connectedState: 1, "proxy_proto.not_found_allowed": 2},
	}
	if diff := cmp.Diff(want, f.Envoy.Facts); diff != "" {
		t.Errorf("Envoy: -want +got\n%s", diff)
	}
	at := doctor.Reported{GatewayPort: doctor.GatewayPort{Gateway: "edge", Port: 8080}, Type: "header"}
	u := f.Usher.Facts
	if u == nil || !u.Usher.Ready || u.Before[at] != 1 || u.After[at] != 2 || !u.HeadersOnly[at.GatewayPort] || u.HeadersOnly[doctor.GatewayPort{Gateway: "edge", Port: 9090}] {
		t.Errorf("Usher: got %+v", u)
	}
}

// TestReportsOfConnectionsBeforeTheStartAreNotCounted has an Usher that gets a report a moment after doctor was started, of
// connections that had ended before, such as those of usher probe.
func TestReportsOfConnectionsBeforeTheStartAreNotCounted(t *testing.T) {
	var reported time.Time
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/status" {
			reported = time.Now().Add(100 * time.Millisecond)
			fmt.Fprint(w, usherPages["/status"])
			return
		}
		connections := 0
		if time.Now().After(reported) {
			connections = 5
		}
		fmt.Fprintf(w, metricsPage, connections)
	}))
	t.Cleanup(server.Close)
	o := options(t)
	o.UsherAdmin, o.Observe = strings.TrimPrefix(server.URL, "http://"), 400*time.Millisecond
	at := doctor.Reported{GatewayPort: doctor.GatewayPort{Gateway: "edge", Port: 8080}, Type: "header"}
	if u := run(t, o).Usher.Facts; u == nil || u.Before[at] != 5 || u.After[at] != 5 {
		t.Errorf("got %+v", u)
	}
}

func TestAnotherGatewaysEnvoyIsNotLookedAt(t *testing.T) {
	o := options(t)
	o.Gateway.Name = "other"
	if f := run(t, o); f.Envoy.Facts != nil || f.Envoy.Err == nil || f.Envoy.Err.Error() != `it is an Envoy of "edge", and not of gateway "other"` {
		t.Errorf("got %+v", f.Envoy)
	}
}

// TestTheGatewayIsTheEnvoys also in a partition and a namespace of Consul Enterprise.
func TestTheGatewayIsTheEnvoys(t *testing.T) {
	o := options(t)
	o.EnvoyAdmin = pages{
		"/server_info": `{"node": {"id": "edge-1", "cluster": "edge", "metadata": {"namespace": "ns1", "partition": "p1"}}}`,
		"/stats":       envoyPages["/stats"],
	}.start(t)
	if f := run(t, o); f.Gateway.String() != "p1/ns1/edge" {
		t.Errorf("the gateway is %q", f.Gateway)
	}
	o.Gateway = gateway.ID{Name: "edge"}
	if f := run(t, o); f.Envoy.Facts != nil || f.Envoy.Err == nil || f.Envoy.Err.Error() != `it is an Envoy of "p1/ns1/edge", and not of gateway "edge"` {
		t.Errorf("got %+v", f.Envoy)
	}
}

func TestThePlanIsForTheEnvoysInstance(t *testing.T) {
	instances := []consul.RegisteredInstance{{ServiceID: "edge-0"}, {ServiceID: "edge-1"}}
	var got *consul.RegisteredInstance
	c := collector{f: &doctor.Facts{Gateway: gateway.ID{Name: "edge"}}, o: Options{
		Plan: func(_ context.Context, _ gateway.ID, in *consul.RegisteredInstance) (*doctor.Plan, error) {
			got = in
			return &doctor.Plan{}, nil
		},
	}}
	c.f.Consul.Facts = &consul.Inspection{Entry: &gateway.Entry{}, Instances: instances}
	c.plan(t.Context())
	if got == nil || got.ServiceID != "edge-0" || c.f.Plan.Facts == nil {
		t.Errorf("without an Envoy the plan is for %+v, want edge-0", got)
	}
	c.f.Envoy.Facts = &doctor.Envoy{ServiceID: "edge-1"}
	if c.plan(t.Context()); got.ServiceID != "edge-1" {
		t.Errorf("the plan is for %+v, want edge-1", got)
	}
	got, c.f.Consul.Facts.Instances = nil, nil
	if c.plan(t.Context()); got != nil {
		t.Errorf("without an instance, there is a plan for %+v", got)
	}
}

func TestTheListenerIsProbedAlsoThroughTheBalancer(t *testing.T) {
	o := options(t)
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	o.Probe.Target = strings.TrimPrefix(server.URL, "http://")
	o.Balancer = o.Probe.Target
	f := run(t, o)
	if f.Listener.Facts == nil || f.Balancer.Facts == nil || f.Listener.Facts.Target != o.Probe.Target {
		t.Errorf("got %+v and %+v", f.Listener, f.Balancer)
	}
	o.Balancer = "balancer"
	if _, err := Run(t.Context(), o); err == nil || !strings.HasPrefix(err.Error(), "--balancer: ") {
		t.Errorf("got the error %v", err)
	}
}

func TestCertificateIsReadAlsoIfItIsNotTrusted(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.EnableHTTP2 = true // as gRPC
	server.StartTLS()
	defer server.Close()
	got, err := certificate(t.Context(), server.URL)
	if err != nil {
		t.Fatal(err)
	}
	leaf := server.Certificate()
	if want := (&doctor.Certificate{Names: []string{"example.com", "*.example.com", "127.0.0.1", "::1"}, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}); !cmp.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// cluster returns a client of an API server with these Deployments.
func cluster(t *testing.T, deployments string) rest.Interface {
	t.Helper()
	client, err := kubeapi.Connect(kubeconfig(t, pages{"/apis/apps/v1/deployments": deployments}.start(t)))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestChart(t *testing.T) {
	for image, tooOld := range map[string]bool{"hashicorp/consul-k8s-control-plane:1.2.1": true, "hashicorp/consul-k8s-control-plane:1.9.0": false, "own/image:latest": false} {
		got, err := chart(t.Context(), cluster(t, `{"items": [{"spec": {"template": {"spec": {"containers": [{"image": "`+image+`"}]}}}}]}`))
		if err != nil || got.Image != image || (got.TooOld != "") != tooOld {
			t.Errorf("%s: got %+v (%v), too old should be %v", image, got, err, tooOld)
		}
	}
}

// TestMessages provokes every reason for missing facts.
func TestMessages(t *testing.T) {
	broken := pages{"/server_info": "{", "/status": "{", "/metrics": "}", "/": ""}.start(t)
	var lines []string
	add := func(err error) {
		t.Helper()
		if err == nil {
			t.Fatal("no error")
		}
		lines = append(lines, strings.ReplaceAll(err.Error(), strings.TrimPrefix(broken, "http://"), "ADDRESS"))
	}
	_, _, err := readConnections(t.Context(), adminport.New(broken, adminport.Usher))
	add(err)
	none := run(t, Options{EnvoyAdmin: broken, UsherAdmin: broken, Probe: probe.Options{Timeout: time.Second}})
	add(none.Envoy.Err)
	add(none.Usher.Err)
	_, err = certificate(t.Context(), broken)
	add(err)
	_, err = chart(t.Context(), cluster(t, `{"items": []}`))
	add(err)
	o := options(t)
	o.Gateway.Name = "other"
	add(run(t, o).Envoy.Err)
	o.Probe.Target, o.Balancer = "127.0.0.1:1", "balancer"
	_, err = Run(t.Context(), o)
	add(err)
	synctest.Test(t, func(t *testing.T) {
		waits, cancel := inTime(t.Context())
		defer cancel()
		<-waits.Done()
		add(context.Cause(waits))
	})
	messages.Check(t, lines, "fmt.Errorf", "errors.New", "Source")
}
