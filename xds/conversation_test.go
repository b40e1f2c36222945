package xds

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/stream/v3"
	"github.com/google/go-cmp/cmp"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// model is an Envoy, and the stream server between it and the conversation,
// without a network: what is queued, sent, and applied happens one by one, in
// the order that a test wants.
type model struct {
	t    testing.TB
	sotw bool
	talk *conversation
	subs [NumTypes]*stream.Subscription
	// queue is the stream server's channel, wire what it sent.
	queue, wire []*response
	nonces      int
	// has is what Envoy applied: versions by name.
	has [NumTypes]map[string]string
	// impatient says that order does not count for now.
	impatient bool
	// picky says that Envoy rejects something now and then.
	picky bool
}

func newModel(t testing.TB, sotw bool) *model {
	m := &model{t: t, sotw: sotw, talk: newConversation(sotw)}
	for typ := range m.has {
		m.has[typ] = map[string]string{}
	}
	return m
}

func bothModels(t *testing.T, f func(*testing.T, *model)) {
	t.Run("delta", func(t *testing.T) { f(t, newModel(t, false)) })
	t.Run("sotw", func(t *testing.T) { f(t, newModel(t, true)) })
}

// request says something about a type, as the stream server would hand it on.
func (m *model) request(typ Type, r request, names []string, gone []string) {
	first := m.subs[typ] == nil
	legacy := typ.isFullState()
	switch {
	case first && m.sotw:
		m.subs[typ] = new(stream.NewSotwSubscription(names, legacy))
	case first:
		m.subs[typ] = new(stream.NewDeltaSubscription(names, gone, r.versions, legacy))
	default:
		m.talk.pause(typ)
		if m.sotw {
			m.queue = slices.DeleteFunc(m.queue, func(q *response) bool { return q.topic.typ == typ })
			m.subs[typ].SetResourceSubscription(names)
		} else {
			m.subs[typ].UpdateResourceSubscriptions(names, gone)
			r.again, r.unwanted = names, gone
		}
	}
	r.subscription = *m.subs[typ]
	r.deliver = m.deliver
	m.talk.hear(typ, r)
	m.talk.push()
}

// deliver checks the order at the moment something is queued.
func (m *model) deliver(r *response) {
	m.queue = append(m.queue, r)
	if m.impatient {
		return
	}
	flying := func(types ...Type) bool {
		return slices.ContainsFunc(types, func(t Type) bool { return m.talk.topics[t].inflight != nil })
	}
	typ := r.topic.typ
	if typ >= Listener && flying(Secret, Cluster, Endpoint) {
		m.t.Errorf("%s %v sent while clusters or their like are not acknowledged", typ, r.names())
	}
	if typ < Listener && len(r.removals) > 0 && flying(Listener, Route) {
		m.t.Errorf("%s %v removed while listeners or routes are not acknowledged", typ, r.removals)
	}
}

// send lets the stream server send what it has queued first.
func (m *model) send() *response {
	r := m.queue[0]
	m.queue = m.queue[1:]
	r.seal()
	m.nonces++
	nonce := fmt.Sprint(m.nonces)
	if m.sotw {
		r.sotw.Nonce = nonce
	} else {
		r.delta.Nonce = nonce
	}
	m.wire = append(m.wire, r)
	return r
}

// take lets Envoy take what arrived first, and applies it if it is good.
func (m *model) take(good bool) {
	r := m.wire[0]
	m.wire = m.wire[1:]
	typ := r.topic.typ
	answer := request{nonce: r.nonce()}
	if good {
		m.apply(r)
	} else {
		answer.problem = &statuspb.Status{Message: "no"}
	}
	var names []string
	if m.sotw {
		names = m.wanted(typ)
	}
	m.request(typ, answer, names, nil)
}

func (m *model) apply(r *response) {
	typ := r.topic.typ
	if r.topic.fullState() {
		clear(m.has[typ])
	}
	for _, c := range r.carried() {
		m.has[typ][c.Name()] = c.Version()
	}
	for _, name := range r.removals {
		delete(m.has[typ], name)
	}
}

func (m *model) wanted(typ Type) []string {
	return slices.Sorted(maps.Keys(m.subs[typ].SubscribedResources()))
}

// subscribe asks for names beside those that are asked for already.
func (m *model) subscribe(typ Type, names ...string) {
	if m.sotw && m.subs[typ] != nil {
		names = append(m.wanted(typ), names...)
	}
	m.request(typ, request{}, names, nil)
}

func (m *model) unsubscribe(typ Type, names ...string) {
	for _, name := range names {
		delete(m.has[typ], name)
	}
	if !m.sotw {
		m.request(typ, request{}, nil, names)
		return
	}
	left := slices.DeleteFunc(m.wanted(typ), func(n string) bool { return slices.Contains(names, n) })
	m.request(typ, request{}, left, nil)
}

func (m *model) update(s *Set) {
	m.talk.update(s)
	m.talk.push()
}

// settle lets everything be sent and accepted.
func (m *model) settle() {
	for range 1000 {
		switch {
		case len(m.queue) > 0:
			m.send()
		case len(m.wire) > 0:
			m.take(true)
		default:
			return
		}
	}
	m.t.Fatal("the conversation does not come to an end")
}

// The response was queued before the request that gives the name up was read.
func TestQueuedResourceIsGivenUp(t *testing.T) {
	bothModels(t, func(t *testing.T, m *model) {
		m.update(editions(t, 1))
		m.subscribe(Endpoint, "a", "b")
		m.settle()
		m.update(editions(t, 2))
		if len(m.queue) != 1 {
			t.Fatalf("%d responses queued, want 1", len(m.queue))
		}
		m.unsubscribe(Endpoint, "a")
		if got := m.send().names(); !slices.Equal(got, []string{"b"}) {
			t.Errorf("sent %q, want b only", got)
		}
		m.settle()
		m.subscribe(Endpoint, "a")
		m.settle()
		m.wants(editions(t, 2), Endpoint)
	})
}

// The state-of-the-world server drops what it has queued for a type when it
// reads a request for it.
func TestQueuedResponseIsDropped(t *testing.T) {
	m := newModel(t, true)
	m.update(editions(t, 1))
	m.subscribe(Cluster)
	m.settle()
	m.subscribe(Endpoint, "a")
	m.settle()
	for _, typ := range []Type{Cluster, Endpoint} {
		m.update(editions(t, 2+int(typ)))
		m.subscribe(typ)
		m.settle()
		m.wants(editions(t, 2+int(typ)), Cluster)
		m.wants(editions(t, 2+int(typ)), Endpoint)
	}
}

func TestQueuedRemovalIsDropped(t *testing.T) {
	m := newModel(t, true)
	m.update(editions(t, 1))
	m.subscribe(Cluster)
	m.settle()
	m.subscribe(Endpoint, letters...)
	m.settle()
	m.subscribe(Listener)
	m.settle()
	less := makeSet(t, func(typ Type, name string) int {
		if typ == Cluster && name == "a" {
			return 0
		}
		return 1
	})
	m.update(less)
	if len(m.queue) != 1 || !slices.Equal(m.queue[0].removals, []string{"a"}) {
		t.Fatalf("%d responses queued, want the removal of a", len(m.queue))
	}
	m.subscribe(Cluster)
	m.settle()
	m.wants(less, Cluster)
}

func TestQueuedFirstAnswerIsDropped(t *testing.T) {
	m := newModel(t, true)
	m.subscribe(Listener)
	m.update(NewSet([NumTypes]*Collection{Listener: NewCollection(nil, nil)}))
	if len(m.queue) != 1 {
		t.Fatalf("%d responses queued, want the empty answer", len(m.queue))
	}
	m.subscribe(Listener)
	if len(m.queue) != 1 {
		t.Errorf("%d responses queued, want the empty answer again", len(m.queue))
	}
}

// wants compares what Envoy has of what it asked for with a set.
func (m *model) wants(s *Set, typ Type) {
	m.t.Helper()
	want := map[string]string{}
	for name, r := range s.Collection(typ).All() {
		_, named := m.subs[typ].SubscribedResources()[name]
		if m.subs[typ].IsWildcard() || named {
			want[name] = r.Version()
		}
	}
	if diff := cmp.Diff(want, m.has[typ]); diff != "" {
		m.t.Errorf("%s: %s", typ, diff)
	}
}

// Whatever happens in whatever order, the order of a push is kept, and in the
// end Envoy has what it is to have.
func TestAnyOrderOfEventsEndsWithTheNewestSet(t *testing.T) {
	for seed := range uint64(300) {
		bothModels(t, func(t *testing.T, m *model) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			m.picky = seed%2 == 0
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

// step does something at random; it returns the set if it published one.
func (m *model) step(rnd *rand.Rand) *Set {
	switch n := rnd.IntN(20); {
	case n < 5 && len(m.queue) > 0:
		m.send()
	case n < 10 && len(m.wire) > 0:
		m.take(!m.picky || rnd.IntN(10) > 0)
	case n < 14:
		s := randomSet(m.t, rnd)
		m.update(s)
		return s
	case n < 15:
		m.impatient = true
		m.talk.pushAnyway()
		m.impatient = false
	case n < 17:
		m.subscribeTo(Type(rnd.IntN(NumTypes)), rnd)
	default:
		typ := []Type{Secret, Endpoint, Route}[rnd.IntN(3)]
		if m.subs[typ] != nil && len(m.wire) == 0 && len(m.queue) == 0 {
			m.unsubscribe(typ, letters[rnd.IntN(len(letters))])
		}
	}
	return nil
}

func (m *model) subscribeTo(typ Type, rnd *rand.Rand) {
	if typ.isFullState() {
		m.subscribe(typ)
		return
	}
	m.subscribe(typ, letters[rnd.IntN(len(letters))])
}

// finish asks for everything there is, as an Envoy does that got its clusters
// and listeners, and lets it arrive. What was rejected is offered again only
// because everything changes twice.
func (m *model) finish(last *Set) {
	sets := []*Set{last}
	if m.picky {
		sets = []*Set{editions(m.t, 99), last}
	}
	for _, s := range sets {
		m.update(s)
		for _, typ := range []Type{Cluster, Listener} {
			if m.subs[typ] == nil {
				m.subscribe(typ)
			}
		}
		for _, typ := range []Type{Secret, Endpoint, Route} {
			m.subscribe(typ, letters...)
		}
		m.settle()
	}
	for _, typ := range []Type{Cluster, Listener} {
		m.wants(last, typ)
	}
	for _, typ := range []Type{Secret, Endpoint, Route} {
		for name, r := range last.Collection(typ).All() {
			if m.has[typ][name] != r.Version() {
				m.t.Errorf("%s %s: got version %q, want %q", typ, name, m.has[typ][name], r.Version())
			}
		}
	}
}

var letters = []string{"a", "b", "c", "d"}

// editions gives a set with one edition of every resource.
func editions(t testing.TB, edition int) *Set {
	t.Helper()
	return makeSet(t, func(Type, string) int { return edition })
}

// randomSet gives a set in which a third of the resources is missing.
func randomSet(t testing.TB, rnd *rand.Rand) *Set {
	t.Helper()
	return makeSet(t, func(Type, string) int { return rnd.IntN(6) - 1 })
}

// makeSet asks for the edition of every resource; there are none below 1.
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

// sample makes the smallest resource of a type that names its child.
func sample(t testing.TB, typ Type, name string, edition int) *Resource {
	t.Helper()
	ads := &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{}}
	var m proto.Message
	switch typ {
	case Secret:
		m = &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{
			Secret: &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte{byte(edition)}}},
		}}}
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
	r, err := NewResource(typ, m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
