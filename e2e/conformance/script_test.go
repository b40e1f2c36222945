//go:build e2e

package conformance

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/resourcediff"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
)

const (
	cds = resource.ClusterType
	eds = resource.EndpointType
	lds = resource.ListenerType
	rds = resource.RouteType
)

// The routes and the listener of a script's first port.
const (
	routesName   = "8080"
	listenerName = "http:10.0.1.1:8080"
)

// rule is something that an Envoy can observe of a server.
type rule struct {
	name string
	// better says why Usher does not do what Consul does. Empty: it does, and
	// the script must not ask whom it talks to.
	better string
	run    func(*script)
}

// scriptSuite is the Consul that scripts are played on, and how Ushers start beside it.
type scriptSuite struct {
	consul      *consulServer
	trustDomain string
	usherArgs   []string
	count       int
}

// The sides of a script.
const (
	consulSide = "consul"
	usherSide  = "usher"
)

func startScriptSuite(t *testing.T) *scriptSuite {
	t.Helper()
	return startScriptSuiteOn(t, startConsul(t, loopback(), lab.ConsulNew))
}

// startScriptSuiteOn has a Consul, and Ushers with these arguments.
func startScriptSuiteOn(t *testing.T, consul *consulServer, usherArgs ...string) *scriptSuite {
	t.Helper()
	roots, _, err := consul.client.Connect().CARoots(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &scriptSuite{consul: consul, trustDomain: roots.TrustDomain, usherArgs: usherArgs}
}

// run plays a rule on both sides, with a separate Usher.
func (st *scriptSuite) run(t *testing.T, r rule) {
	for _, side := range []string{consulSide, usherSide} {
		t.Run(side, func(t *testing.T) {
			st.count++
			s := &script{t: t, rule: r, suite: st, side: side, gateway: fmt.Sprintf("gateway-%d", st.count), home: gatewayNode}
			s.addr = s.start(usherPort)
			r.run(s)
		})
	}
}

// start returns the address of a server of the script's side: of another one for
// each port, except that there is one Consul only.
func (s *script) start(port int) string {
	s.t.Helper()
	if s.side == consulSide {
		return s.suite.consul.grpc
	}
	return startUsher(s.t, s.suite.consul, port, s.suite.usherArgs...)
}

// script is one rule on one side. It has a gateway and services of its own, so
// that no other script's changes reach its Envoys.
type script struct {
	t       *testing.T
	rule    rule
	suite   *scriptSuite
	side    string
	addr    string // of the server
	gateway string
	home    string // the node that the gateway is registered on
	// follower is an Envoy that accepts everything. It shows when a change has
	// reached the server, and keeps the server's watch alive.
	follower *envoy
}

// onConsul says which side it is; only a rule with a difference may ask.
func (s *script) onConsul() bool {
	s.t.Helper()
	if s.rule.better == "" {
		s.t.Fatal("a script without a difference asks for its side")
	}
	return s.side == consulSide
}

// service is the name of the service with a letter.
func (s *script) service(letter string) string { return s.gateway + "-" + letter }

// cluster is the name of its cluster.
func (s *script) cluster(letter string) string {
	return fmt.Sprintf("%s.default.dc1.internal.%s", s.service(letter), s.suite.trustDomain)
}

func (s *script) clusters(letters []string) []string {
	var names []string
	for _, letter := range letters {
		names = append(names, s.cluster(letter))
	}
	return names
}

// write writes to Consul.
func (s *script) write(path string, body map[string]any) {
	s.t.Helper()
	if _, err := s.suite.consul.client.Raw().Write(path, body, nil, nil); err != nil {
		s.t.Fatalf("PUT %s: %v", path, err)
	}
}

func (s *script) writeEntry(kind, name string, fields map[string]any) {
	s.t.Helper()
	entry := map[string]any{"Kind": kind, "Name": name}
	maps.Copy(entry, fields)
	s.write("/v1/config", entry)
}

// register registers the gateway.
func (s *script) register(address string) {
	s.t.Helper()
	s.write(registerPath, gatewayRegistration(map[string]any{"ID": s.gateway, "Service": s.gateway, "Address": address}))
}

// instance registers the only instance of a service.
func (s *script) instance(letter, address string) {
	s.t.Helper()
	in := sidecar(s.service(letter), 1, 1, map[string]any{"Address": address})
	s.write(registerPath, in)
	s.write(registerPath, serviceInstance(s.service(letter), in))
}

// addService makes an http service with an instance.
func (s *script) addService(letter string) {
	s.t.Helper()
	s.writeEntry("service-defaults", s.service(letter), map[string]any{"Protocol": "http"})
	s.instance(letter, "10.1.1.1")
}

// expose writes the gateway's entry: the services on one port. What is over is
// laid over the first of them.
func (s *script) expose(letters []string, over map[string]any) {
	s.t.Helper()
	var services []any
	for i, letter := range letters {
		service := map[string]any{"Name": s.service(letter)}
		if i == 0 {
			maps.Copy(service, over)
		}
		services = append(services, service)
	}
	s.writeEntry("ingress-gateway", s.gateway, map[string]any{"Listeners": []any{
		map[string]any{"Port": 8080, "Protocol": "http", "Services": services},
	}})
}

// serve makes a gateway with the services, and waits until the server has all.
func (s *script) serve(letters ...string) {
	s.t.Helper()
	s.register("10.0.1.1")
	s.supply(letters...)
}

// supply makes the services of a gateway that is registered, and waits until the
// server has all.
func (s *script) supply(letters ...string) {
	s.t.Helper()
	for _, letter := range letters {
		s.addService(letter)
	}
	s.expose(letters, nil)
	s.follow()
	s.await("the listener", func(r resources) bool { return len(r[lds]) == 1 && len(r[eds]) == len(letters) })
}

// follow starts the follower.
func (s *script) follow() {
	s.t.Helper()
	follower, stop := connectAs(s.t, s.addr, s.node(), s.suite.consul.token)
	s.t.Cleanup(stop)
	s.follower = follower
}

// await waits until the follower has what it needs and what is asked for.
func (s *script) await(what string, is func(resources) bool) {
	s.t.Helper()
	var last view
	timeout := time.NewTimer(settleDeadline)
	defer timeout.Stop()
	for {
		select {
		case last = <-s.follower.views:
			if last.Missing == "" && is(last.Resources) {
				return
			}
		case <-timeout.C:
			s.t.Fatalf("the follower has not got %s within %v; missing: %q", what, settleDeadline, last.Missing)
		}
	}
}

// awaitText waits until a resource of the follower contains a text.
func (s *script) awaitText(typeURL, name, want string) {
	s.t.Helper()
	s.await(want, func(r resources) bool { return strings.Contains(resourcediff.Text(r[typeURL][name]), want) })
}

// node is how an Envoy of the script's gateway describes itself.
func (s *script) node() *corev3.Node { return node(s.gateway, s.home) }

// dial opens a connection to a server.
func (s *script) dial(addr string) *grpc.ClientConn {
	s.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// connect opens a delta stream that sends only what the script sends.
func (s *script) connect() *fakeenvoy.Envoy { return s.connectWith(fakeenvoy.Options{Node: s.node()}) }

func (s *script) connectWith(o fakeenvoy.Options) *fakeenvoy.Envoy {
	s.t.Helper()
	return fakeenvoy.Connect(s.t, s.dial(s.addr), fakeenvoy.Delta, o)
}

// versions are those of what an Envoy has, by type URL and name.
type versions map[string]map[string]string

// warm brings an Envoy up as a real one comes up: it asks for endpoints before
// it accepts their clusters, and for routes when it has their listener. It gives
// the versions of what came.
func (s *script) warm(e *fakeenvoy.Envoy, letters ...string) versions {
	s.t.Helper()
	got := versions{}
	take := func(typeURL string, names ...string) fakeenvoy.Response {
		s.t.Helper()
		r := e.Expect(typeURL, names...)
		got[typeURL] = r.Versions
		return r
	}
	names := s.clusters(letters)
	e.Subscribe(cds)
	e.Subscribe(lds)
	clusters := take(cds, names...)
	e.Subscribe(eds, names...)
	e.Ack(clusters)
	e.Ack(take(eds, names...))
	e.Ack(take(lds, listenerName))
	e.Subscribe(rds, routesName)
	e.Ack(take(rds, routesName))
	return got
}

// wantNothingElse wants an Envoy that is warm to have nothing under way. A name
// that is asked for again is sent again, so the next responses are those that
// are asked for here, unless something else was due: endpoints come after
// clusters, routes after everything but removals.
func (s *script) wantNothingElse(e *fakeenvoy.Envoy) {
	s.t.Helper()
	e.Subscribe(eds, s.cluster("a"))
	e.ExpectAck(eds, s.cluster("a"))
	e.Subscribe(rds, routesName)
	e.ExpectAck(rds, routesName)
	e.Subscribe(eds, s.cluster("a"))
	e.ExpectAck(eds, s.cluster("a"))
}

// expect is Expect, and wants these names removed.
func (s *script) expect(e *fakeenvoy.Envoy, typeURL string, names, removed []string) fakeenvoy.Response {
	s.t.Helper()
	r := e.Expect(typeURL, names...)
	if !slices.Equal(r.Removed, removed) {
		s.t.Fatalf("received %s that removes %q, want %q", typeURL, r.Removed, removed)
	}
	return r
}
