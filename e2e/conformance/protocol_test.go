//go:build e2e

package conformance

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
)

// TestSameProtocolAsConsul plays the same script on Consul's and on Usher's
// delta server for each rule. No script waits for nothing to happen: what must
// not be sent would come before the answer to the next question.
func TestSameProtocolAsConsul(t *testing.T) {
	st := startScriptSuite(t)
	for _, r := range slices.Concat(rules, rareRules, secretRules) {
		t.Run(r.name, func(t *testing.T) { st.run(t, r) })
	}
}

var rules = []rule{
	{name: "listeners-wait-for-clusters", run: listenersWaitForClusters},
	{name: "listeners-wait-for-endpoints", run: listenersWaitForEndpoints},
	{name: "removals-come-last", run: removalsComeLast},
	{name: "endpoints-follow-their-cluster", run: endpointsFollowTheirCluster},
	{name: "routes-follow-their-listener", run: routesFollowTheirListener},
	{name: "one-response-in-flight", run: oneResponseInFlight},
	{name: "version-is-a-hash", run: versionIsAHash},
	{name: "nothing-is-resent-to-who-is-current", run: nothingIsResentToWhoIsCurrent},
	{name: "only-what-changed-is-resent", run: onlyWhatChangedIsResent},
	{name: "first-answers-are-empty", run: firstAnswersAreEmpty},
	{name: "gateway-comes-later", run: gatewayComesLater},
	{name: "gateway-is-deregistered", run: gatewayIsDeregistered},
	{name: "rejection-stops-nothing-else", run: rejectionStopsNothingElse},
	{name: "name-asked-for-again", run: nameAskedForAgain},
	{name: "name-given-up", run: nameGivenUp},
	{name: "name-that-does-not-exist", run: nameThatDoesNotExist},
	{name: "name-that-comes-into-being", run: nameThatComesIntoBeing},
	{name: "type-not-served", run: typeNotServed},
	{name: "type-not-named", run: typeNotNamed},
	{name: "another-user-agent", run: anotherUserAgent},
	{
		name:   "names-without-an-answer",
		better: "a response without resources is not sent",
		run:    namesWithoutAnAnswer,
	},
	{
		name:   "names-are-not-resent",
		better: "an Envoy that says that it has the current version needs no other copy",
		run:    namesAreNotResent,
	},
	{
		name:   "clusters-wait-for-routes",
		better: "a cluster stays until Envoy has accepted the routes that no longer need it",
		run:    clustersWaitForRoutes,
	},
	{
		name:   "listeners-wait-for-unasked-endpoints",
		better: "a listener is of no use before the endpoints it leads to have been asked for",
		run:    listenersWaitForUnaskedEndpoints,
	},
	{
		name:   "rejected-is-not-offered-again",
		better: "the same bytes would be rejected again",
		run:    rejectedIsNotOfferedAgain,
	},
	{
		name:   "everything-by-a-star",
		better: "the protocol says that * asks for everything",
		run:    everythingByAStar,
	},
	{
		name:   "no-node",
		better: "a client that does not say who it is learns so, instead of waiting for ever",
		run:    noNode,
	},
	{
		name:   "no-cluster-in-the-node",
		better: "Usher reads Consul from outside and finds the gateway by its service name; every bootstrap of Consul's has it",
		run:    noClusterInTheNode,
	},
	{
		name:   "old-envoy",
		better: "what an ingress gateway needs is in every Envoy since 1.22",
		run:    oldEnvoy,
	},
	{
		name:   "state-of-the-world",
		better: "Envoys whose bootstrap says GRPC and not DELTA_GRPC are served as well",
		run:    stateOfTheWorld,
	},
}

func listenersWaitForClusters(s *script) {
	s.serve("a")
	e := s.connect()
	e.Subscribe(cds)
	e.Subscribe(lds)
	clusters := e.Expect(cds, s.cluster("a"))
	e.Subscribe(eds, s.cluster("a"))
	e.ExpectAck(eds, s.cluster("a"))
	// Endpoints are accepted, clusters are not.
	e.Subscribe(eds, s.cluster("a"))
	e.ExpectAck(eds, s.cluster("a"))
	e.Ack(clusters)
	e.ExpectAck(lds, listenerName)
	e.Subscribe(rds, routesName)
	e.ExpectAck(rds, routesName)
}

func listenersWaitForEndpoints(s *script) {
	s.serve("a", "b")
	e := s.connect()
	s.warm(e, "a", "b")
	s.instance("a", "10.1.1.2")
	endpoints := e.Expect(eds, s.cluster("a"))
	s.expose([]string{"a", "b"}, setHeader("one"))
	s.awaitText(rds, routesName, "one")
	both := setHeader("one")
	both["MaxConnections"] = 7
	s.expose([]string{"a", "b"}, both)
	// This change comes later than that of the routes.
	clusters := e.Expect(cds, s.cluster("a"))
	e.Ack(endpoints)
	e.ExpectAck(eds, s.cluster("a"))
	e.Ack(clusters)
	e.ExpectAck(rds, routesName)
}

// setHeader is a service with a header that shows in its routes only.
func setHeader(value string) map[string]any {
	return map[string]any{"RequestHeaders": map[string]any{"Set": map[string]any{"x-marker": value}}}
}

// redirect sends the requests for one service to another.
func (s *script) redirect(from, to string) {
	s.t.Helper()
	s.writeEntry("service-resolver", s.service(from), map[string]any{"Redirect": map[string]any{"Service": s.service(to)}})
}

// redirected brings an Envoy to the point where a cluster is new, accepted, has
// its endpoints, and the routes that lead to it are on their way.
func redirected(s *script) (e *fakeenvoy.Envoy, routes fakeenvoy.Response) {
	s.t.Helper()
	s.serve("a")
	s.addService("b")
	e = s.connect()
	s.warm(e, "a")
	s.redirect("a", "b")
	clusters := s.expect(e, cds, s.clusters([]string{"b"}), nil)
	e.Subscribe(eds, s.cluster("b"))
	endpoints := e.Expect(eds, s.cluster("b"))
	e.Ack(clusters)
	e.Ack(endpoints)
	return e, e.Expect(rds, routesName)
}

func removalsComeLast(s *script) {
	e, routes := redirected(s)
	e.Ack(routes)
	e.Ack(s.expect(e, cds, nil, s.clusters([]string{"a"})))
	// The endpoints of the old cluster go without a word.
	e.Subscribe(eds, s.cluster("b"))
	s.expect(e, eds, s.clusters([]string{"b"}), nil)
}

func clustersWaitForRoutes(s *script) {
	e, routes := redirected(s)
	if s.onConsul() {
		s.expect(e, cds, nil, s.clusters([]string{"a"}))
		return
	}
	e.Subscribe(eds, s.cluster("b"))
	e.ExpectAck(eds, s.cluster("b"))
	e.Ack(routes)
	s.expect(e, cds, nil, s.clusters([]string{"a"}))
}

func endpointsFollowTheirCluster(s *script) {
	s.serve("a")
	e := s.connect()
	before := s.warm(e, "a")
	s.expose([]string{"a"}, map[string]any{"MaxConnections": 7})
	e.ExpectAck(cds, s.cluster("a"))
	again := e.ExpectAck(eds, s.cluster("a"))
	s.wantVersion(again, before)
	s.wantNothingElse(e)
}

func routesFollowTheirListener(s *script) {
	s.addService("a")
	write := func(certificate string) {
		s.writeEntry("ingress-gateway", s.gateway, map[string]any{"Listeners": []any{map[string]any{
			"Port": 8080, "Protocol": "http", "Services": []any{map[string]any{"Name": s.service("a")}},
			"TLS": map[string]any{"SDS": map[string]any{"ClusterName": "sds", "CertResource": certificate}},
		}}})
	}
	write("one")
	s.register("10.0.1.1")
	s.follow()
	s.awaitText(lds, listenerName, "one")
	e := s.connect()
	before := s.warm(e, "a")
	write("two")
	e.ExpectAck(lds, listenerName)
	again := e.ExpectAck(rds, routesName)
	s.wantVersion(again, before)
	s.wantNothingElse(e)
}

// wantVersion wants what came to be what was there before.
func (s *script) wantVersion(r fakeenvoy.Response, before versions) {
	s.t.Helper()
	for name, version := range r.Versions {
		if was := before[r.Type][name]; version != was {
			s.t.Errorf("%s has the version %s, want %s as before", name, version, was)
		}
	}
}

func oneResponseInFlight(s *script) {
	s.serve("a")
	e := s.connect()
	s.warm(e, "a")
	s.expose([]string{"a"}, setHeader("one"))
	first := e.Expect(rds, routesName)
	s.awaitText(rds, routesName, "one")
	s.expose([]string{"a"}, setHeader("two"))
	s.awaitText(rds, routesName, "two")
	// This change comes after the second one of the routes.
	s.instance("a", "10.1.1.2")
	e.ExpectAck(eds, s.cluster("a"))
	e.Ack(first)
	e.ExpectAck(rds, routesName)
	s.wantNothingElse(e)
}

func versionIsAHash(s *script) {
	s.serve("a")
	e := s.connect()
	check := func(r fakeenvoy.Response) {
		s.t.Helper()
		sum := sha256.Sum256(r.Bodies[0])
		if got, want := r.Versions[r.Names[0]], hex.EncodeToString(sum[:]); got != want {
			s.t.Errorf("%s has the version %q, want the SHA-256 of its bytes, %s", r.Names[0], got, want)
		}
	}
	e.Subscribe(cds)
	clusters := e.Expect(cds, s.cluster("a"))
	e.Subscribe(eds, s.cluster("a"))
	e.Ack(clusters)
	check(clusters)
	check(e.ExpectAck(eds, s.cluster("a")))
	e.Subscribe(lds)
	check(e.ExpectAck(lds, listenerName))
	e.Subscribe(rds, routesName)
	check(e.ExpectAck(rds, routesName))
}

// reconnect connects an Envoy that has something from an earlier stream, to
// another server where there is one.
func (s *script) reconnect(has versions) *fakeenvoy.Envoy {
	s.t.Helper()
	return fakeenvoy.Connect(s.t, s.dial(s.start(coldPort)), fakeenvoy.Delta, fakeenvoy.Options{Node: s.node(), Has: has})
}

// nothingIsResentToWhoIsCurrent wants empty answers: an Envoy that has just
// started waits for one.
func nothingIsResentToWhoIsCurrent(s *script) {
	s.serve("a")
	has := s.warm(s.connect(), "a")
	delete(has, eds)
	e := s.reconnect(has)
	e.Subscribe(cds)
	e.Ack(s.expect(e, cds, nil, nil))
	e.Subscribe(lds)
	e.Ack(s.expect(e, lds, nil, nil))
	e.Subscribe(eds, s.cluster("a"))
	e.ExpectAck(eds, s.cluster("a"))
}

// namesAreNotResent asks as Envoy does when it connects again: it names all that
// it wants, and says which versions it has.
func namesAreNotResent(s *script) {
	s.serve("a")
	e := s.reconnect(s.warm(s.connect(), "a"))
	e.Subscribe(eds, s.cluster("a"))
	if s.onConsul() {
		e.ExpectAck(eds, s.cluster("a"))
	}
	e.Subscribe(rds, routesName)
	if s.onConsul() {
		e.ExpectAck(rds, routesName)
	}
	e.Subscribe(cds)
	e.Ack(s.expect(e, cds, nil, nil))
}

func onlyWhatChangedIsResent(s *script) {
	s.serve("a", "b")
	e := s.connect()
	has := s.warm(e, "a", "b")
	e.Disconnect()
	has[cds]["gone"] = "1"
	has[lds]["gone"] = "1"
	s.expose([]string{"a", "b"}, map[string]any{"MaxConnections": 7})
	s.awaitText(cds, s.cluster("a"), "max_connections")
	e = s.connectWith(fakeenvoy.Options{Node: s.node(), Has: has})
	e.Subscribe(cds)
	e.Subscribe(lds)
	clusters := s.expect(e, cds, s.clusters([]string{"a"}), nil)
	e.Subscribe(eds, s.cluster("a"))
	endpoints := e.Expect(eds, s.cluster("a"))
	e.Ack(clusters)
	e.Ack(endpoints)
	e.Ack(s.expect(e, lds, nil, []string{"gone"}))
	e.Ack(s.expect(e, cds, nil, []string{"gone"}))
}

// firstAnswersAreEmpty has a gateway without listeners.
func firstAnswersAreEmpty(s *script) {
	s.register("10.0.1.1")
	e := s.connect()
	e.Subscribe(cds)
	e.Ack(s.expect(e, cds, nil, nil))
	e.Subscribe(lds)
	e.Ack(s.expect(e, lds, nil, nil))
}

// gatewayComesLater waits in silence, and nothing is answered until it is known
// what there is.
func gatewayComesLater(s *script) {
	e := s.connect()
	e.Subscribe(cds)
	other := s.connectWith(fakeenvoy.Options{Node: node(s.gateway+"-other", gatewayNode)})
	other.Subscribe(cds)
	s.write(registerPath, gatewayRegistration(map[string]any{"ID": s.gateway + "-other", "Service": s.gateway + "-other"}))
	other.ExpectAck(cds)
	s.register("10.0.1.1")
	e.Ack(s.expect(e, cds, nil, nil))
	e.Subscribe(lds)
	e.Ack(s.expect(e, lds, nil, nil))
}

// gatewayIsDeregistered wants nothing to be taken from a running Envoy; when the
// gateway is back at another address, the same stream sends it.
func gatewayIsDeregistered(s *script) {
	s.serve("a")
	e := s.connect()
	s.warm(e, "a")
	s.write("/v1/catalog/deregister", map[string]any{"Node": gatewayNode, "ServiceID": s.gateway})
	s.wantNothingElse(e)
	s.register("10.0.1.2")
	e.Ack(s.expect(e, lds, []string{"http:10.0.1.2:8080"}, []string{listenerName}))
	e.ExpectAck(rds, routesName)
	s.wantNothingElse(e)
}

func rejectionStopsNothingElse(s *script) {
	s.serve("a")
	e := s.connect()
	s.warm(e, "a")
	s.expose([]string{"a"}, setHeader("one"))
	e.Nack(e.Expect(rds, routesName), "no")
	// Not sent again at once, and endpoints go on.
	s.instance("a", "10.1.1.2")
	endpoints := e.Expect(eds, s.cluster("a"))
	// The next change of what was rejected is sent.
	s.expose([]string{"a"}, setHeader("two"))
	s.awaitText(rds, routesName, "two")
	e.Ack(endpoints)
	e.ExpectAck(rds, routesName)
	s.wantNothingElse(e)
}

func rejectedIsNotOfferedAgain(s *script) {
	s.serve("a")
	e := s.connect()
	s.warm(e, "a")
	s.expose([]string{"a"}, setHeader("one"))
	e.Nack(e.Expect(rds, routesName), "no")
	s.instance("a", "10.1.1.2")
	e.ExpectAck(eds, s.cluster("a"))
	if s.onConsul() {
		e.Nack(e.Expect(rds, routesName), "no")
	}
	s.instance("a", "10.1.1.3")
	e.ExpectAck(eds, s.cluster("a"))
	if s.onConsul() {
		e.Nack(e.Expect(rds, routesName), "no")
	}
}

func nameAskedForAgain(s *script) {
	s.serve("a", "b")
	e := s.connect()
	before := s.warm(e, "a", "b")
	for _, letter := range []string{"a", "b"} {
		e.Subscribe(eds, s.cluster(letter))
		s.wantVersion(e.ExpectAck(eds, s.cluster(letter)), before)
	}
	e.Subscribe(rds, routesName)
	s.wantVersion(e.ExpectAck(rds, routesName), before)
}

func nameGivenUp(s *script) {
	s.serve("a", "b")
	e := s.connect()
	s.warm(e, "a", "b")
	e.Unsubscribe(eds, s.cluster("b"))
	s.instance("b", "10.1.1.2")
	s.awaitText(eds, s.cluster("b"), "10.1.1.2")
	s.instance("a", "10.1.1.2")
	e.Ack(s.expect(e, eds, s.clusters([]string{"a"}), nil))
	s.wantNothingElse(e)
	e.Subscribe(eds, s.cluster("b"))
	e.ExpectAck(eds, s.cluster("b"))
}

// nameThatDoesNotExist asks when other names of the types have been answered.
func nameThatDoesNotExist(s *script) {
	s.serve("a")
	e := s.connect()
	s.warm(e, "a")
	e.Subscribe(eds, "nothing")
	e.Subscribe(rds, "nothing")
	s.wantNothingElse(e)
}

func nameThatComesIntoBeing(s *script) {
	s.serve("a")
	s.addService("b")
	e := s.connect()
	s.warm(e, "a")
	e.Subscribe(eds, s.cluster("b"))
	s.wantNothingElse(e)
	s.redirect("a", "b")
	clusters := e.Expect(cds, s.cluster("b"))
	e.ExpectAck(eds, s.cluster("b"))
	e.Ack(clusters)
	e.ExpectAck(rds, routesName)
}

// namesWithoutAnAnswer asks for names that do not exist before any other name of
// the type.
func namesWithoutAnAnswer(s *script) {
	s.serve("a")
	e := s.connect()
	e.Subscribe(eds, "nothing")
	if s.onConsul() {
		e.Ack(s.expect(e, eds, nil, nil))
	}
	e.Subscribe(rds, "nothing")
	if s.onConsul() {
		e.Ack(s.expect(e, rds, nil, nil))
	}
	e.Subscribe(eds, s.cluster("a"))
	e.ExpectAck(eds, s.cluster("a"))
	e.Subscribe(rds, routesName)
	e.ExpectAck(rds, routesName)
}

func listenersWaitForUnaskedEndpoints(s *script) {
	s.serve("a")
	e := s.connect()
	e.Subscribe(cds)
	e.Subscribe(lds)
	e.ExpectAck(cds, s.cluster("a"))
	if s.onConsul() {
		e.ExpectAck(lds, listenerName)
	}
	e.Subscribe(eds, s.cluster("a"))
	e.ExpectAck(eds, s.cluster("a"))
	if !s.onConsul() {
		e.ExpectAck(lds, listenerName)
	}
}

func everythingByAStar(s *script) {
	s.serve("a")
	e := s.connect()
	e.Subscribe(cds, "*")
	if s.onConsul() {
		s.expect(e, cds, nil, nil)
		return
	}
	e.ExpectAck(cds, s.cluster("a"))
}

func typeNotServed(s *script) {
	s.serve("a")
	e := s.connect()
	e.Subscribe("type.googleapis.com/envoy.service.runtime.v3.Runtime", "runtime")
	s.warm(e, "a")
	s.wantNothingElse(e)
}

func typeNotNamed(s *script) {
	s.serve("a")
	e := s.connect()
	e.Subscribe("")
	e.ExpectEnd(codes.InvalidArgument)
}

func noNode(s *script) {
	s.serve("a")
	e := s.connectWith(fakeenvoy.Options{Anonymous: true})
	e.Subscribe(cds)
	if s.onConsul() {
		e.Subscribe("")
	}
	e.ExpectEnd(codes.InvalidArgument)
}

func noClusterInTheNode(s *script) {
	s.serve("a")
	n := s.node()
	n.Cluster = ""
	e := s.connectWith(fakeenvoy.Options{Node: n})
	e.Subscribe(cds)
	if s.onConsul() {
		e.ExpectAck(cds, s.cluster("a"))
		return
	}
	e.ExpectEnd(codes.InvalidArgument)
}

// release is an Envoy's version in its node.
func release(minor uint32) *corev3.Node_UserAgentBuildVersion {
	return &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
		Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: minor},
	}}
}

func oldEnvoy(s *script) {
	s.serve("a")
	for _, minor := range []uint32{22, 31} {
		n := s.node()
		n.UserAgentVersionType = release(minor)
		e := s.connectWith(fakeenvoy.Options{Node: n})
		if s.onConsul() {
			e.Subscribe(cds)
			e.ExpectEnd(codes.InvalidArgument)
			continue
		}
		s.warm(e, "a")
	}
}

func anotherUserAgent(s *script) {
	s.serve("a")
	n := s.node()
	n.UserAgentName, n.UserAgentVersionType = "another client", nil
	s.warm(s.connectWith(fakeenvoy.Options{Node: n}), "a")
}

func stateOfTheWorld(s *script) {
	s.serve("a")
	e := fakeenvoy.Connect(s.t, s.dial(s.addr), fakeenvoy.SotW, fakeenvoy.Options{Node: s.node()})
	if s.onConsul() {
		e.Subscribe(cds)
		e.ExpectEnd(codes.Unknown)
		return
	}
	e.Subscribe(cds)
	clusters := e.Expect(cds, s.cluster("a"))
	e.Subscribe(eds, s.cluster("a"))
	e.Ack(clusters)
	e.ExpectAck(eds, s.cluster("a"))
	e.Subscribe(lds)
	e.ExpectAck(lds, listenerName)
	e.Subscribe(rds, routesName)
	e.ExpectAck(rds, routesName)
}
