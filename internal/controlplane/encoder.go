package controlplane

import (
	"log/slog"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/listeners"
	"github.com/usherproxy/usher/xds"
)

// encoder turns snapshots into sets. A generation is the time with one snapshot, from one startGeneration to the
// next. In a generation, the encoder compiles once for all equal Envoys. From one generation to the next, it encodes
// only what has changed.
type encoder struct {
	metrics     *Metrics
	log         *slog.Logger
	newCompiler func(reports evidence.Key) compiler
	reports     evidence.Key // of the compiler
	compiler    compiler
	snapshot    *gateway.Snapshot
	instances   instancesByID         // of the snapshot; never modified
	current     map[envoyKey]compiled // of this generation
	latest      map[envoyKey]compiled // the newest of each key; see setInstances
	earlier     xds.Earlier           // of all keys: an Envoy may come from another Usher, with a key that is new here
	// shared holds what this generation has encoded, for Envoys with other keys that have the same messages.
	shared map[messageMap]*encodedType
}

// compiler is a listeners.Compiler, or a fake one in a test.
type compiler interface {
	Compile(s *gateway.Snapshot, in *gateway.Instance, e gateway.Envoy) *listeners.Resources
}

func newEncoder(metrics *Metrics, log *slog.Logger, newCompiler func(evidence.Key) compiler) encoder {
	return encoder{metrics: metrics, log: log, newCompiler: newCompiler, compiler: newCompiler(evidence.Key{}), latest: map[envoyKey]compiled{}}
}

// envoyKey is equal for Envoys that get the same set.
type envoyKey struct {
	node, serviceID string
	envoy           gateway.Envoy
}

// keyOf returns the key of an Envoy that is the instance in.
func keyOf(in *gateway.Instance, n xds.Node) envoyKey {
	return envoyKey{node: in.Node, serviceID: in.ServiceID, envoy: envoyOf(n)}
}

// compiled is what the Envoys with one key get.
type compiled struct {
	set      *xds.Set
	types    [xds.NumTypes]*encodedType
	problems []problem.Problem
	heldBack []string // listeners that could not be built, or that Envoy would reject
	panicked bool     // the compiler: set is what they had before
}

// startGeneration replaces the snapshot, and the key of reports.
func (e *encoder) startGeneration(s *gateway.Snapshot, reports evidence.Key) {
	if reports != e.reports {
		e.reports, e.compiler = reports, e.newCompiler(reports)
	}
	if e.snapshot == nil || !slices.Equal(e.snapshot.Instances, s.Instances) {
		e.setInstances(s.Instances)
	}
	e.snapshot = s
	e.current = map[envoyKey]compiled{}
	e.shared = map[messageMap]*encodedType{}
}

// setInstances replaces the instances. It drops the latest set of a key if no Envoy used it in the generation before
// and its instance is no longer registered: each instance has a whole set.
func (e *encoder) setInstances(instances []*gateway.Instance) {
	e.instances = instancesByID{}
	registered := map[envoyKey]bool{}
	for _, in := range instances {
		e.instances[in.ServiceID] = append(e.instances[in.ServiceID], in)
		registered[envoyKey{node: in.Node, serviceID: in.ServiceID}] = true
	}
	for k := range e.latest {
		_, used := e.current[k]
		if !used && !registered[envoyKey{node: k.node, serviceID: k.serviceID}] {
			delete(e.latest, k)
		}
	}
}

// setFor returns the set for an Envoy that is the instance in. If the compiler panics, it returns the latest set of
// such Envoys, if there is one, and a problem.
func (e *encoder) resourceSetFor(in *gateway.Instance, n xds.Node) (*xds.Set, []problem.Problem) {
	k := keyOf(in, n)
	c, ok := e.current[k]
	if !ok {
		err := guard.Run(e.log, "compile", func() error {
			c = e.compile(in, k.envoy, e.latest[k])
			return nil
		})
		if err != nil {
			e.compiler = e.newCompiler(e.reports) // the panic may have left the old one in a bad state
			c = e.latest[k]
			c.problems, c.panicked = failureProblem(e.snapshot.ID, err), true
		}
		e.current[k], e.latest[k] = c, c
	}
	return c.set, c.problems
}

// The clusters in an Envoy's bootstrap that take its reports to Usher: the xDS server's, and the one for an Envoy whose
// streams go through consul-dataplane, which passes on nothing but discovery streams.
const (
	agentCluster     = "local_agent"
	dataplaneCluster = "usher_reports"
)

// envoyOf returns what matters of an Envoy besides its instance.
func envoyOf(n xds.Node) gateway.Envoy {
	e := gateway.Envoy{
		EnvoyVersion:  gateway.EnvoyVersion{Major: n.Major, Minor: n.Minor, Patch: n.Patch},
		ReportCluster: agentCluster,
	}
	if n.Forwarded {
		e.ReportCluster = dataplaneCluster
	}
	return e
}

// compile returns what an Envoy gets. before is what it got in the last generation; if nothing has changed, the set
// is the same value.
func (e *encoder) compile(in *gateway.Instance, envoy gateway.Envoy, before compiled) compiled {
	defer prometheus.NewTimer(e.metrics.compileDuration).ObserveDuration()
	res := e.compiler.Compile(e.snapshot, in, envoy)
	now := compiled{problems: slices.Clone(res.Problems)}
	var keepOrphans bool
	// Listeners come first: an invalid one keeps its last valid version, and that keeps the resources that it refers to.
	for _, d := range []desired{
		{typ: xds.Listener, messages: typedMessages[*listenerv3.Listener]{res.Listeners}, heldBack: res.HeldBackListeners},
		{typ: xds.Secret, messages: typedMessages[*tlsv3.Secret]{res.Secrets}},
		{typ: xds.TokenBucket, messages: typedMessages[*typev3.TokenBucket]{res.TokenBuckets}},
		{typ: xds.Cluster, messages: typedMessages[*clusterv3.Cluster]{res.Clusters}},
		{typ: xds.Endpoint, messages: typedMessages[*endpointv3.ClusterLoadAssignment]{res.Endpoints}, heldBack: res.HeldBackEndpoints},
		{typ: xds.Route, messages: typedMessages[*routev3.RouteConfiguration]{res.Routes}},
	} {
		d.keepOrphans = keepOrphans
		t := e.encode(before.types[d.typ], d)
		if d.typ != xds.Endpoint { // endpoints refer to no other resources
			keepOrphans = keepOrphans || t.keepsLastValid()
		}
		now.types[d.typ] = t
		now.problems = append(now.problems, t.problems...)
	}
	now.heldBack = slices.Concat(res.HeldBackListeners, now.types[xds.Listener].invalid)
	if before.set != nil {
		e.earlier = e.earlier.With(before.set.Collection(xds.Cluster), now.types[xds.Cluster].collection)
	}
	now.set = e.resourceSetOf(now.types, before.set)
	return now
}

// encode returns the encoded resources of a type: shared ones if there are any, else it updates those of the last
// generation.
func (e *encoder) encode(before *encodedType, d desired) *encodedType {
	if t := e.shared[d.messages]; t != nil && len(d.heldBack) == 0 && !d.keepOrphans {
		return t
	}
	if before == nil {
		before = &encodedType{collection: xds.NewCollection(nil, nil)}
	}
	t := before.update(d)
	if t.isExact() {
		e.shared[d.messages] = t
	}
	return t
}

// resourceSetOf returns the set of the encoded types: the one before if it has the same collections and the same mark.
func (e *encoder) resourceSetOf(types [xds.NumTypes]*encodedType, before *xds.Set) *xds.Set {
	var collections [xds.NumTypes]*xds.Collection
	for t, encoded := range types {
		collections[t] = encoded.collection
	}
	set := xds.NewSet(collections)
	if e.snapshot.Keep != gateway.KeepNothing {
		set = set.AsRestored(e.snapshot.Restored)
	}
	if e.snapshot.Keep == gateway.KeepConfiguration {
		set = set.WithOwnEndpoints()
	}
	if before != nil && before.SameAs(set) {
		return before
	}
	return set.WithEarlier(e.earlier)
}

// equalSets reports whether an Envoy would get the same from both sets.
func equalSets(a, b *xds.Set) bool {
	for t := range xds.Type(xds.NumTypes) {
		if !a.Collection(t).Equal(b.Collection(t)) {
			return false
		}
	}
	return true
}
