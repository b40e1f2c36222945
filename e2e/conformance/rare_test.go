//go:build e2e

package conformance

import (
	"google.golang.org/grpc/codes"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
)

// rareRules are about rare cases: an input that goes away for good, or that
// Consul keeps, and what Envoys of gateways do not ask for.
var rareRules = []rule{
	{name: "last-listener-removed", run: lastListenerRemoved},
	{name: "entry-deleted", run: entryDeleted},
	{
		name:   "defaults-removed",
		better: "an entry that says nothing of limits sets none",
		run:    defaultsRemoved,
	},
	{
		name:   "tagged-address-moves",
		better: "listeners are where the registration says",
		run:    taggedAddressMoves,
	},
	{
		name:   "cluster-asked-for-by-name",
		better: "a name that is asked for is sent, whatever else is asked for",
		run:    clusterAskedForByName,
	},
	{
		name:   "another-kind-of-proxy",
		better: "a gap, on purpose: Usher serves ingress gateways",
		run:    anotherKindOfProxy,
	},
}

func lastListenerRemoved(s *script) {
	takeAllAway(s, func() {
		s.writeEntry("ingress-gateway", s.gateway, map[string]any{"Listeners": []any{}})
	})
}

func entryDeleted(s *script) {
	takeAllAway(s, func() {
		if _, err := s.suite.consul.client.ConfigEntries().Delete("ingress-gateway", s.gateway, nil); err != nil {
			s.t.Fatal(err)
		}
	})
}

// takeAllAway has an Envoy lose its only listener, and get it back on the same
// stream.
func takeAllAway(s *script, take func()) {
	s.t.Helper()
	s.serve("a")
	e := s.connect()
	s.warm(e, "a")
	take()
	// Its routes go without a word, as do the endpoints.
	e.Ack(s.expect(e, lds, nil, []string{listenerName}))
	e.Ack(s.expect(e, cds, nil, s.clusters([]string{"a"})))
	e.Unsubscribe(eds, s.cluster("a"))
	e.Unsubscribe(rds, routesName)
	s.expose([]string{"a"}, nil)
	clusters := e.Expect(cds, s.cluster("a"))
	e.Subscribe(eds, s.cluster("a"))
	endpoints := e.Expect(eds, s.cluster("a"))
	e.Ack(clusters)
	e.Ack(endpoints)
	e.ExpectAck(lds, listenerName)
	e.Subscribe(rds, routesName)
	e.ExpectAck(rds, routesName)
	s.wantNothingElse(e)
}

func defaultsRemoved(s *script) {
	listeners := []any{map[string]any{"Port": 8080, "Protocol": "http", "Services": []any{map[string]any{"Name": s.service("a")}}}}
	s.serve("a")
	s.writeEntry("ingress-gateway", s.gateway, map[string]any{"Listeners": listeners, "Defaults": map[string]any{"MaxConnections": 7}})
	s.awaitText(cds, s.cluster("a"), "max_connections")
	e := s.connect()
	s.warm(e, "a")
	s.writeEntry("ingress-gateway", s.gateway, map[string]any{"Listeners": listeners})
	if !s.onConsul() {
		e.ExpectAck(cds, s.cluster("a"))
		e.ExpectAck(eds, s.cluster("a"))
		return
	}
	// This change comes later, and no cluster with it.
	s.expose([]string{"a"}, setHeader("one"))
	s.awaitText(rds, routesName, "one")
	e.ExpectAck(rds, routesName)
	s.wantNothingElse(e)
}

// taggedAddressMoves has a listener on the address that the registration calls
// "lan", and no other.
func taggedAddressMoves(s *script) {
	register := func(lan string, headersKB int) {
		s.write(registerPath, gatewayRegistration(map[string]any{
			"ID": s.gateway, "Service": s.gateway, "Address": "10.0.1.1",
			"TaggedAddresses": map[string]any{"lan": map[string]any{"Address": lan, "Port": 8443}},
			"Proxy": map[string]any{"Config": map[string]any{
				"envoy_gateway_bind_tagged_addresses": true, "envoy_gateway_no_default_bind": true,
				"max_request_headers_kb": headersKB,
			}},
		}))
	}
	register("10.0.1.1", 60)
	s.supply("a")
	e := s.connect()
	s.warm(e, "a")
	register("10.0.1.2", 60)
	if s.onConsul() {
		// This change comes later, and no listener with it.
		s.instance("a", "10.1.1.2")
		e.ExpectAck(eds, s.cluster("a"))
		s.wantNothingElse(e)
		register("10.0.1.2", 61)
	}
	e.Ack(s.expect(e, lds, []string{"http:10.0.1.2:8080"}, []string{listenerName}))
	e.ExpectAck(rds, routesName)
	s.wantNothingElse(e)
}

// anotherKindOfProxy has the sidecar of a service ask, beside a gateway.
func anotherKindOfProxy(s *script) {
	s.serve("a")
	n := node(s.service("a")+"-1-sidecar-proxy", serviceNode)
	n.Cluster = s.service("a")
	e := s.connectWith(fakeenvoy.Options{Node: n})
	e.Subscribe(cds)
	if s.onConsul() {
		e.ExpectAck(cds, "local_app")
		return
	}
	s.warm(s.connect(), "a")
	e.Subscribe("")
	e.ExpectEnd(codes.InvalidArgument)
}

// clusterAskedForByName names a cluster after it has asked for all of them.
func clusterAskedForByName(s *script) {
	s.serve("a", "b")
	e := s.connect()
	before := s.warm(e, "a", "b")
	e.Subscribe(cds, s.cluster("a"))
	if !s.onConsul() {
		s.wantVersion(e.ExpectAck(cds, s.cluster("a")), before)
		s.wantVersion(e.ExpectAck(eds, s.cluster("a")), before)
	}
	s.wantNothingElse(e)
}
