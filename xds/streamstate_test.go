package xds

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// fakeClient is an Envoy and its streamState, without a network. Responses are sent and applied one by one, in the order
// that a test chooses.
type fakeClient struct {
	t     testing.TB
	sotw  bool
	state *streamState
	// inflight are the responses that have not arrived yet.
	inflight []*response
	// nonces are the latest that arrived, by type.
	nonces [NumTypes]string
	// asked and names are the subscriptions.
	asked [NumTypes]bool
	names [NumTypes]map[string]bool
	// applied are the versions that Envoy has, by name.
	applied [NumTypes]map[string]string
	// ackTimedOut is true while the order does not count.
	ackTimedOut bool
	// sendsNACKs is true if Envoy rejects some responses.
	sendsNACKs bool
}

func newFakeClient(t testing.TB, sotw bool) *fakeClient {
	m := &fakeClient{t: t, sotw: sotw, state: newStreamState(sotw)}
	for typ := range m.applied {
		m.applied[typ], m.names[typ] = map[string]string{}, map[string]bool{}
	}
	return m
}

func forBothClients(t *testing.T, f func(*testing.T, *fakeClient)) {
	t.Run("delta", func(t *testing.T) { f(t, newFakeClient(t, false)) })
	t.Run("sotw", func(t *testing.T) { f(t, newFakeClient(t, true)) })
}

// request sends a request that subscribes to some names and unsubscribes from others.
func (m *fakeClient) request(typ Type, r request, names, removed []string) {
	m.asked[typ] = true
	for _, name := range names {
		m.names[typ][name] = true
	}
	for _, name := range removed {
		delete(m.names[typ], name)
	}
	r.subscribe, r.unsubscribe = names, removed
	if m.sotw {
		r.subscribe, r.unsubscribe, r.nonce = m.subscribed(typ), nil, m.nonces[typ]
	}
	m.state.handleRequest(typ, r)
	m.push()
}

func (m *fakeClient) push() {
	before := m.unacknowledged()
	m.state.push()
	m.transmit(before)
}

// unacknowledged reports for which types a response awaits its ACK.
func (m *fakeClient) unacknowledged() (types [NumTypes]bool) {
	for t := range types {
		types[t] = m.state.types[t].awaitingACK != nil
	}
	return types
}

// transmit sends the pending responses, and checks their order.
func (m *fakeClient) transmit(inflight [NumTypes]bool) {
	for r := m.state.next(); r != nil; r = m.state.next() {
		if !m.ackTimedOut && r.typ >= Listener && (inflight[Secret] || inflight[Cluster] || inflight[Endpoint]) {
			m.t.Errorf("%s %v sent while their dependencies are not acknowledged", r.typ, r.resources)
		}
		if !m.ackTimedOut && r.typ < Listener && len(r.removals) > 0 && (inflight[Listener] || inflight[Route]) {
			m.t.Errorf("%s %v removed while listeners or routes are not acknowledged", r.typ, r.removals)
		}
		inflight[r.typ] = true
		m.inflight = append(m.inflight, r)
	}
}

// answerNext delivers the first response. Envoy applies it if it is good, and answers.
func (m *fakeClient) answerNext(good bool) {
	r := m.inflight[0]
	m.inflight = m.inflight[1:]
	m.nonces[r.typ] = r.nonce
	answer := request{nonce: r.nonce}
	if good {
		m.apply(r)
	} else {
		answer.errorDetail = &statuspb.Status{Message: "no"}
	}
	m.request(r.typ, answer, nil, nil)
}

func (m *fakeClient) apply(r *response) {
	if m.sotw && r.typ.isFullState() {
		clear(m.applied[r.typ])
	}
	for _, c := range r.resources {
		m.applied[r.typ][c.Name()] = c.Version()
	}
	for _, name := range r.removals {
		delete(m.applied[r.typ], name)
	}
}

func (m *fakeClient) subscribed(typ Type) []string { return slices.Sorted(maps.Keys(m.names[typ])) }

// subscribe adds names to the subscription.
func (m *fakeClient) subscribe(typ Type, names ...string) { m.request(typ, request{}, names, nil) }

func (m *fakeClient) unsubscribe(typ Type, names ...string) {
	for _, name := range names {
		delete(m.applied[typ], name)
	}
	m.request(typ, request{}, nil, names)
}

func (m *fakeClient) update(s *Set) {
	m.state.set = s
	m.push()
}

// exchangeAll delivers and accepts responses until there are no more.
func (m *fakeClient) exchangeAll() {
	for range 1000 {
		if len(m.inflight) == 0 {
			return
		}
		m.answerNext(true)
	}
	m.t.Fatal("there is always another response")
}

// The response was sent before the unsubscription arrived.
func TestResourceIsUnsubscribedWhileItIsSent(t *testing.T) {
	forBothClients(t, func(t *testing.T, m *fakeClient) {
		m.update(editions(t, 1))
		m.subscribe(Endpoint, "a", "b")
		m.exchangeAll()
		m.update(editions(t, 2))
		m.unsubscribe(Endpoint, "a")
		m.exchangeAll()
		delete(m.applied[Endpoint], "a") // Envoy ignores it
		m.subscribe(Endpoint, "a")
		m.exchangeAll()
		m.expect(editions(t, 2), Endpoint)
	})
}

// expect compares what Envoy has and subscribes to with a set.
func (m *fakeClient) expect(s *Set, typ Type) {
	m.t.Helper()
	want := map[string]string{}
	for name, r := range s.Collection(typ).All() {
		if typ.isFullState() || m.names[typ][name] {
			want[name] = r.Version()
		}
	}
	if diff := cmp.Diff(want, m.applied[typ]); diff != "" {
		m.t.Errorf("%s: %s", typ, diff)
	}
}

// In any order of events, the push order is kept, and in the end Envoy has the newest set.
func TestAnyOrderOfEventsEndsWithTheNewestSet(t *testing.T) {
	for seed := range uint64(300) {
		forBothClients(t, func(t *testing.T, m *fakeClient) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			m.sendsNACKs = seed%2 == 0
			last := editions(t, 1)
			m.update(last)
			for range 120 {
				if s := m.step(rnd); s != nil {
					last = s
				}
			}
			m.finish(last)
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		})
	}
}

// step does something at random. It returns the set if it publishes one.
func (m *fakeClient) step(rnd *rand.Rand) *Set {
	switch n := rnd.IntN(20); {
	case n < 10 && len(m.inflight) > 0:
		m.answerNext(!m.sendsNACKs || rnd.IntN(10) > 0)
	case n < 14:
		s := randomSet(m.t, rnd)
		m.update(s)
		return s
	case n < 15:
		m.ackTimedOut = true
		m.state.pushUnordered()
		m.transmit(m.unacknowledged())
		m.ackTimedOut = false
	case n < 17:
		m.subscribeTo(Type(rnd.IntN(NumTypes)), rnd)
	default:
		typ := []Type{Secret, Endpoint, Route}[rnd.IntN(3)]
		if m.asked[typ] && len(m.inflight) == 0 {
			m.unsubscribe(typ, letters[rnd.IntN(len(letters))])
		}
	}
	return nil
}

func (m *fakeClient) subscribeTo(typ Type, rnd *rand.Rand) {
	if typ.isFullState() {
		m.subscribe(typ)
		return
	}
	m.subscribe(typ, letters[rnd.IntN(len(letters))])
}

// finish subscribes to everything, as an Envoy does that has its clusters and listeners, and delivers it. A rejected
// resource is sent again only because everything changes twice.
func (m *fakeClient) finish(last *Set) {
	sets := []*Set{last}
	if m.sendsNACKs {
		sets = []*Set{editions(m.t, 99), last}
	}
	for _, s := range sets {
		m.update(s)
		for _, typ := range []Type{Cluster, Listener} {
			if !m.asked[typ] {
				m.subscribe(typ)
			}
		}
		for _, typ := range []Type{Secret, Endpoint, Route} {
			m.subscribe(typ, letters...)
		}
		m.exchangeAll()
	}
	for _, typ := range []Type{Cluster, Listener} {
		m.expect(last, typ)
	}
	for _, typ := range []Type{Secret, Endpoint, Route} {
		for name, r := range last.Collection(typ).All() {
			if m.applied[typ][name] != r.Version() {
				m.t.Errorf("%s %s: got version %q, want %q", typ, name, m.applied[typ][name], r.Version())
			}
		}
	}
}

var letters = []string{"a", "b", "c", "d"}

// editions returns a set with one edition of every resource.
func editions(t testing.TB, edition int) *Set {
	t.Helper()
	return makeSet(t, func(Type, string) int { return edition })
}

// randomSet returns a set without a third of the resources.
func randomSet(t testing.TB, rnd *rand.Rand) *Set {
	t.Helper()
	return makeSet(t, func(Type, string) int { return rnd.IntN(6) - 1 })
}

// makeSet calls edition for every resource. A resource with an edition below 1 is left out.
func makeSet(t testing.TB, edition func(Type, string) int) *Set {
	t.Helper()
	if samples == nil {
		makeSamples(t)
	}
	var all [NumTypes]*Collection
	for typ := range Type(NumTypes) {
		resources := map[string]*Resource{}
		for _, name := range letters {
			if n := edition(typ, name); n > 0 {
				resources[name] = samples[sampleKey{typ, name, n}]
			}
		}
		all[typ] = NewCollection(resources, nil)
	}
	return NewSet(all)
}

// samples are made once: thousands of sets share them.
var samples map[sampleKey]*Resource

type sampleKey struct {
	typ     Type
	name    string
	edition int
}

func makeSamples(t testing.TB) {
	t.Helper()
	samples = map[sampleKey]*Resource{}
	for typ := range Type(NumTypes) {
		for _, name := range letters {
			for edition := range 100 {
				samples[sampleKey{typ, name, edition}] = sample(t, typ, name, edition)
			}
		}
	}
}

// sample returns the smallest resource of a type that names its child.
func sample(t testing.TB, typ Type, name string, edition int) *Resource {
	t.Helper()
	ads := &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{}}
	var m proto.Message
	switch typ {
	case Secret:
		m = &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{
			Secret: &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte{byte(edition)}}},
		}}}
	case TokenBucket:
		m = &typev3.TokenBucket{MaxTokens: uint32(edition + 1), FillInterval: durationpb.New(time.Second)}
	case Cluster:
		m = &clusterv3.Cluster{
			Name: name, ConnectTimeout: &durationpb.Duration{Seconds: int64(edition + 1)},
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads},
		}
	case Endpoint:
		m = &endpointv3.ClusterLoadAssignment{ClusterName: name, Policy: &endpointv3.ClusterLoadAssignment_Policy{
			OverprovisioningFactor: wrapperspb.UInt32(uint32(edition + 1)),
		}}
	case Listener:
		manager, err := anypb.New(&hcmv3.HttpConnectionManager{
			StatPrefix: fmt.Sprint("edition ", edition),
			RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{
				Rds: &hcmv3.Rds{RouteConfigName: name, ConfigSource: ads},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		m = &listenerv3.Listener{Name: name, FilterChains: []*listenerv3.FilterChain{{
			Filters: []*listenerv3.Filter{{Name: "http", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: manager}}},
		}}}
	default:
		m = &routev3.RouteConfiguration{Name: name, MaxDirectResponseBodySizeBytes: wrapperspb.UInt32(uint32(edition + 1))}
	}
	r, err := NewResource(typ, name, m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
