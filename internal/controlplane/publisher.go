package controlplane

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/listeners"
	"github.com/usherproxy/usher/xds"
)

// publisher turns snapshots into sets. Within one generation, from one begin to the next, it
// makes what each kind of Envoy gets once; from one generation to the next it makes anew what a
// change has touched.
type publisher struct {
	metrics     *Metrics
	log         *slog.Logger
	newCompiler func() compiler
	compiler    compiler
	snapshot    *gateway.Snapshot
	// instances are those of the snapshot, by their service IDs.
	instances map[string][]*gateway.Instance
	current   map[kind]result // of this generation
	last      map[kind]result // the newest of every kind; see register
	// shared is what was made in this generation of messages that several kinds
	// may have.
	shared map[messages]*made
}

// compiler is a listeners.Compiler, or a fake of a test.
type compiler interface {
	Compile(s *gateway.Snapshot, in *gateway.Instance, e gateway.EnvoyVersion) *listeners.Resources
}

func newCompiler() compiler { return new(listeners.Compiler) }

func newPublisher(metrics *Metrics, log *slog.Logger, newCompiler func() compiler) publisher {
	return publisher{metrics: metrics, log: log, newCompiler: newCompiler, compiler: newCompiler()}
}

// kind is what two Envoys have in common when they get the same set.
type kind struct {
	node, serviceID string
	envoy           gateway.EnvoyVersion
}

// result is what one kind of Envoy gets.
type result struct {
	set      *xds.Set
	made     [xds.NumTypes]*made
	problems []problem.Problem
}

func (p *publisher) begin(s *gateway.Snapshot) {
	if p.snapshot == nil || !slices.Equal(p.snapshot.Instances, s.Instances) {
		p.register(s.Instances)
	}
	p.snapshot = s
	p.current = map[kind]result{}
	p.shared = map[messages]*made{}
	if p.last == nil {
		p.last = map[kind]result{}
	}
}

// register takes over the instances, and drops what kinds had that nobody has
// asked for since the generation before, and whose instance is no longer
// registered: instances come and go, and each has a whole set.
func (p *publisher) register(instances []*gateway.Instance) {
	p.instances = map[string][]*gateway.Instance{}
	registered := map[kind]bool{}
	for _, in := range instances {
		p.instances[in.ServiceID] = append(p.instances[in.ServiceID], in)
		registered[kind{node: in.Node, serviceID: in.ServiceID}] = true
	}
	for k := range p.last {
		_, asked := p.current[k]
		if !asked && !registered[kind{node: k.node, serviceID: k.serviceID}] {
			delete(p.last, k)
		}
	}
}

// candidates gives the registered instances that the node may be: those with
// its service ID and, as far as they tell them apart, its node name and the
// address that it connects from.
func (p *publisher) candidates(n xds.Node) []*gateway.Instance {
	var found []*gateway.Instance
	for _, in := range p.instances[n.ID] {
		if n.Metadata["node_name"] == "" || in.Node == n.Metadata["node_name"] {
			found = append(found, in)
		}
	}
	if len(found) < 2 {
		return found
	}
	var near []*gateway.Instance
	for _, in := range found {
		if hasAddress(in, n.Peer) {
			near = append(near, in)
		}
	}
	if len(near) > 0 {
		return near
	}
	return found
}

func hasAddress(in *gateway.Instance, a netip.Addr) bool {
	is := func(s string) bool {
		own, err := netip.ParseAddr(s)
		return err == nil && own.Unmap() == a.Unmap()
	}
	if is(in.NodeAddress) || is(in.Address) {
		return true
	}
	for _, tagged := range in.TaggedAddresses {
		if is(tagged.Address) {
			return true
		}
	}
	return false
}

// ambiguous says why an Envoy cannot be served, and what to do.
func ambiguous(n xds.Node, candidates []*gateway.Instance) error {
	var nodes []string
	for _, in := range candidates {
		nodes = append(nodes, fmt.Sprintf("%q", in.Node))
	}
	return status.Errorf(codes.FailedPrecondition,
		"gateway %q has instances with the service ID %q and different settings on the nodes %s, and neither the Envoy's %s nor its node metadata tells which one it is: "+
			"add node_name to the metadata (\"usher bootstrap --node-name\", \"consul connect envoy -node-name\")",
		n.Cluster, n.ID, strings.Join(nodes, ", "), describePeer(n.Peer))
}

func describePeer(a netip.Addr) string {
	if !a.IsValid() {
		return "unix socket"
	}
	return "address " + a.String()
}

// set returns the set for an Envoy that is the instance in. If the compiler panics,
// set returns the last set of this kind of Envoy, if there is one, and a problem.
func (p *publisher) set(in *gateway.Instance, n xds.Node) (*xds.Set, []problem.Problem) {
	e := gateway.EnvoyVersion{Major: n.Major, Minor: n.Minor, Patch: n.Patch}
	k := kind{node: in.Node, serviceID: in.ServiceID, envoy: e}
	r, ok := p.current[k]
	if !ok {
		last := p.last[k]
		err := guard.Run(p.log, "compile", func() error {
			r = p.compile(in, e, last)
			return nil
		})
		if err != nil {
			p.compiler = p.newCompiler() // the panic may have left the old one in a bad state
			r = last
			r.problems = panicProblem(p.snapshot.ID, err)
		}
		p.current[k], p.last[k] = r, r
	}
	return r.set, r.problems
}

// compile gives what one kind of Envoy gets. last is what it got before; if
// nothing changed, the set is the same.
func (p *publisher) compile(in *gateway.Instance, e gateway.EnvoyVersion, last result) result {
	timer := p.metrics.compileTime()
	defer timer()
	res := p.compiler.Compile(p.snapshot, in, e)
	now := result{problems: slices.Clone(res.Problems)}
	var keep bool
	// Listeners first: one that stays as it was keeps what it leads to.
	for _, w := range []wanted{
		{typ: xds.Listener, messages: list[*listenerv3.Listener]{res.Listeners}, withheld: res.HeldBackListeners},
		{typ: xds.Secret, messages: list[*tlsv3.Secret]{res.Secrets}},
		{typ: xds.TokenBucket, messages: list[*typev3.TokenBucket]{res.TokenBuckets}},
		{typ: xds.Cluster, messages: list[*clusterv3.Cluster]{res.Clusters}},
		{typ: xds.Endpoint, messages: list[*endpointv3.ClusterLoadAssignment]{res.Endpoints}, withheld: res.HeldBackEndpoints},
		{typ: xds.Route, messages: list[*routev3.RouteConfiguration]{res.Routes}},
	} {
		w.keep = keep
		m := p.make(last.made[w.typ], w)
		if w.typ != xds.Endpoint { // endpoints refer to no other resources
			keep = keep || m.keepsOld()
		}
		now.made[w.typ] = m
		now.problems = append(now.problems, m.problems...)
	}
	now.set = setOf(now.made, last.set)
	return now
}

// make makes what is wanted, unless another kind of Envoy has it already.
func (p *publisher) make(last *made, w wanted) *made {
	plain := len(w.withheld) == 0 && !w.keep
	if m := p.shared[w.messages]; plain && m != nil {
		return m
	}
	if last == nil {
		last = nothing()
	}
	m := last.next(w)
	if m.plain() {
		p.shared[w.messages] = m
	}
	return m
}

// setOf gives the last set if it has the same collections.
func setOf(types [xds.NumTypes]*made, last *xds.Set) *xds.Set {
	var collections [xds.NumTypes]*xds.Collection
	changed := last == nil
	for t, m := range types {
		collections[t] = m.collection
		changed = changed || last.Collection(xds.Type(t)) != m.collection
	}
	if !changed {
		return last
	}
	return xds.NewSet(collections)
}

// equalSets says whether an Envoy would get the same from both.
func equalSets(a, b *xds.Set) bool {
	for t := range xds.Type(xds.NumTypes) {
		if !a.Collection(t).Equal(b.Collection(t)) {
			return false
		}
	}
	return true
}
