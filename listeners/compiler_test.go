package listeners

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/golden"
	"github.com/usherproxy/usher/internal/testing/orderedcmp"
)

// resourcesAsMaps lets go-cmp look into resources.
var resourcesAsMaps = cmp.Options{
	orderedcmp.Entries[*listenerv3.Listener](),
	orderedcmp.Entries[*routev3.RouteConfiguration](),
	orderedcmp.Entries[*clusterv3.Cluster](),
	orderedcmp.Entries[*endpointv3.ClusterLoadAssignment](),
	orderedcmp.Entries[*tlsv3.Secret](),
	orderedcmp.Entries[*typev3.TokenBucket](),
}

func equalResources(a, b *Resources) bool {
	return cmp.Equal(a, b, resourcesAsMaps, cmp.Comparer(proto.Equal))
}

// diffResources shows what differs, field by field. It returns "" if nothing does, which is much faster to find out.
func diffResources(a, b *Resources) string {
	if equalResources(a, b) {
		return ""
	}
	return cmp.Diff(a, b, resourcesAsMaps, protocmp.Transform())
}

// Whatever a Compiler has compiled before, it gives what Compile gives.
func TestCompilerGivesWhatCompileGives(t *testing.T) {
	var cases []*gateway.Snapshot
	for _, name := range golden.Cases(t, testdata) {
		s, _, err := parseFixture(golden.Input(t, testdata, name))
		if err != nil {
			t.Fatal(err)
		}
		cases = append(cases, s)
	}
	for seed := range uint64(100) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		var c Compiler
		s := cases[rnd.IntN(len(cases))]
		for range 8 {
			s = changed(rnd, s, cases)
			for _, in := range s.Instances {
				e := []gateway.EnvoyVersion{{}, {Major: 1, Minor: 22}}[rnd.IntN(2)]
				if diff := diffResources(compile(s, in, e), c.Compile(s, in, gateway.Envoy{EnvoyVersion: e})); diff != "" {
					t.Fatalf("seed %d: as Compile -, the Compiler +:\n%s", seed, diff)
				}
			}
		}
	}
}

// changed returns a snapshot in which a part is gone, or is that of another one.
func changed(rnd *rand.Rand, s *gateway.Snapshot, others []*gateway.Snapshot) *gateway.Snapshot {
	next, other := *s, others[rnd.IntN(len(others))]
	switch rnd.IntN(14) {
	case 0:
		return other
	case 1, 2, 3:
		next.Endpoints = ordered.From(withoutOne(rnd, maps.Collect(s.Endpoints.All())))
	case 4:
		next.Chains = withoutOne(rnd, s.Chains)
	case 5:
		next.MeshGateways = other.MeshGateways
	case 6:
		next.Mesh, next.Roots, next.Leaf, next.DownstreamLeaf = other.Mesh, other.Roots, other.Leaf, other.DownstreamLeaf
	case 7:
		next.FileAll, next.ProxyDefaults, next.FileGateway, next.Instances = other.FileAll, other.ProxyDefaults, other.FileGateway, other.Instances
	case 8:
		next.Entry, next.Services = other.Entry, other.Services
	case 9:
		next.DownstreamLeaf = other.DownstreamLeaf
	case 10:
		next.Balancers = withoutOne(rnd, s.Balancers)
	case 11:
		next.Peers = withoutOne(rnd, s.Peers)
	case 12:
		next.DualStack = !s.DualStack
	case 13:
		next.NormalizePath = !s.NormalizePath
	}
	return &next
}

// withoutOne returns a copy in which a value is gone, or stands under another key
// too.
func withoutOne[K comparable, V any](rnd *rand.Rand, m map[K]V) map[K]V {
	out := maps.Clone(m)
	for k, v := range m {
		for other := range m {
			if rnd.IntN(2) == 0 {
				out[other] = v
				return out
			}
		}
		delete(out, k)
		return out
	}
	return out
}

func TestChangedInstanceTouchesOneLoadAssignment(t *testing.T) {
	const n = 20
	s := manyServices(t, n)
	var c Compiler
	before := c.Compile(s, s.Instances[0], gateway.Envoy{})
	next := *s
	id := "service-0007.default.default.dc1"
	next.Endpoints = next.Endpoints.With(id, &gateway.Endpoints{Endpoints: slices.Clone(s.Endpoints.Get(id).Endpoints)})
	next.Endpoints.Get(id).Endpoints[0].Port++
	after := c.Compile(&next, s.Instances[0], gateway.Envoy{})

	for name, kept := range map[string]bool{
		"listeners": before.Listeners == after.Listeners,
		"routes":    before.Routes == after.Routes,
		"clusters":  before.Clusters == after.Clusters,
		"secrets":   before.Secrets == after.Secrets,
	} {
		if !kept {
			t.Errorf("the %s were made again", name)
		}
	}
	touched := slices.Collect(after.Endpoints.ChangedSince(before.Endpoints))
	if want := []string{"service-0007.default.dc1.internal." + s.Roots.TrustDomain}; !slices.Equal(touched, want) {
		t.Errorf("made again: %q, want %q", touched, want)
	}
}

func TestChangedChainTouchesItsClusters(t *testing.T) {
	s := manyServices(t, 20)
	var c Compiler
	before := c.Compile(s, s.Instances[0], gateway.Envoy{})
	next := *s
	next.Chains = maps.Clone(s.Chains)
	row := s.Services[7].Service
	chain := *s.Chains[row]
	chain.Targets = maps.Clone(chain.Targets)
	for id, target := range chain.Targets {
		other := *target
		other.SNI = "other.example.com"
		chain.Targets[id] = &other
	}
	next.Chains[row] = &chain
	after := c.Compile(&next, s.Instances[0], gateway.Envoy{})
	touched := slices.Collect(after.Clusters.ChangedSince(before.Clusters))
	if len(touched) != 1 || before.Endpoints != after.Endpoints {
		t.Errorf("made again: the clusters %q, want 1; endpoints kept: %v", touched, before.Endpoints == after.Endpoints)
	}
}

func TestInstancesShareWhatIsNotTheirs(t *testing.T) {
	s := manyServices(t, 3)
	other := *s.Instances[0]
	other.Node, other.Address = "other", "10.9.9.9"
	s.Instances = append(s.Instances, &other)
	var c Compiler
	a, b := c.Compile(s, s.Instances[0], gateway.Envoy{}), c.Compile(s, &other, gateway.Envoy{})
	if a.Routes != b.Routes || a.Clusters != b.Clusters || a.Endpoints != b.Endpoints {
		t.Error("two instances have routes, clusters or endpoints of their own")
	}
	if equalResources(a, b) {
		t.Error("two instances with addresses of their own have the same listeners")
	}
}

// Unknown facts never remove a listener. Each listener of the complete snapshot is
// there or held back. A listener that is not held back is unchanged, and all that it
// refers to is there.
func TestWhatIsNotKnownTakesNothingAway(t *testing.T) {
	eachCase(t, func(t *testing.T, in []byte) {
		s, _ := mustParse(t, in)
		for seed := range uint64(20) {
			less := unread(rand.New(rand.NewPCG(seed, 0)), s)
			for _, in := range s.Instances {
				all, r := compile(s, in, gateway.EnvoyVersion{}), compile(less, in, gateway.EnvoyVersion{})
				checkResources(t, r)
				checkNothingLost(t, all, r)
			}
		}
	})
}

func checkNothingLost(t *testing.T, all, r *Resources) {
	t.Helper()
	for name, l := range all.Listeners.All() {
		if now := r.Listeners.Get(name); now != nil && !proto.Equal(l, now) {
			t.Errorf("listener %s is another one", name)
		} else if now == nil && !slices.Contains(r.HeldBackListeners, name) {
			t.Errorf("listener %s is gone", name)
		}
	}
	for _, name := range all.HeldBackListeners {
		if !slices.Contains(r.HeldBackListeners, name) {
			t.Errorf("listener %s is no longer held back", name)
		}
	}
	if len(r.HeldBackListeners) == 0 && (all.Routes.Len() != r.Routes.Len() || all.Clusters.Len() != r.Clusters.Len()) {
		t.Error("routes or clusters are gone, and no listener that leads to them is held back")
	}
	for name, a := range all.Endpoints.All() {
		if now := r.Endpoints.Get(name); now != nil && !proto.Equal(a, now) {
			t.Errorf("load assignment %s is another one", name)
		} else if now == nil && r.Clusters.Get(name) != nil && !slices.Contains(r.HeldBackEndpoints, name) {
			t.Errorf("load assignment %s is gone", name)
		}
	}
	for name, c := range r.Clusters.All() {
		if was := all.Clusters.Get(name); was != nil && len(r.HeldBackListeners) == 0 && !proto.Equal(was, c) {
			t.Errorf("cluster %s is another one", name)
		}
	}
}

// unread returns a snapshot that lacks random facts that a source can fail to read.
func unread(rnd *rand.Rand, s *gateway.Snapshot) *gateway.Snapshot {
	next := *s
	next.Chains = some(rnd, s.Chains)
	next.Endpoints = ordered.From(some(rnd, maps.Collect(s.Endpoints.All())))
	next.MeshGateways = some(rnd, s.MeshGateways)
	next.Peers = some(rnd, s.Peers)
	return &next
}

// some returns a copy without some of the values.
func some[K comparable, V any](rnd *rand.Rand, m map[K]V) map[K]V {
	out := maps.Clone(m)
	for k := range m {
		if rnd.IntN(3) == 0 {
			delete(out, k)
		}
	}
	return out
}

// The instances in a cluster peer tell how their cluster is called.
func TestPeersNameTheirClusters(t *testing.T) {
	s, _, err := parseFixture(golden.Input(t, testdata, "peer-tcp"))
	if err != nil {
		t.Fatal(err)
	}
	const id = "web.default.default.external.cluster-02"
	s.Peers = map[string]*gateway.Roots{"cluster-02": {PEMs: []string{"the root of the peer"}}}
	s.Chains[gateway.ServiceName{Name: "db"}].Targets["db.default.default.external.cluster-02"].ID = id
	var c Compiler
	before := *s
	before.Endpoints = before.Endpoints.With(id, &gateway.Endpoints{})
	c.Compile(&before, s.Instances[0], gateway.Envoy{})
	if diff := diffResources(compile(s, s.Instances[0], gateway.EnvoyVersion{}), c.Compile(s, s.Instances[0], gateway.Envoy{})); diff != "" {
		t.Errorf("as Compile -, the Compiler +:\n%s", diff)
	}
}

// A listener without a service makes no port, and corrects a setting for its port nevertheless.
func TestNewListenerWithoutServicesCorrectsASetting(t *testing.T) {
	s := oneService("http")
	s.Services = nil
	s.FileGateway.Settings.Listeners = map[int]settings.Listener{9999: {}}
	var c Compiler
	if r := c.Compile(s, s.Instances[0], gateway.Envoy{}); len(r.Problems) != 1 {
		t.Fatalf("a setting for another port: problems %q, want one", r.Problems)
	}
	next, entry := *s, *s.Entry
	entry.Listeners = append(slices.Clone(entry.Listeners), gateway.Listener{Port: 9999})
	next.Entry = &entry
	if r := c.Compile(&next, s.Instances[0], gateway.Envoy{}); len(r.Problems) != 0 {
		t.Errorf("the listener is there: problems %q", r.Problems)
	}
}
