package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/gateway"
	"github.com/usherproxy/usher/listeners"
	"github.com/usherproxy/usher/xds"
)

// publisher turns snapshots into sets. Within one generation, from one begin to the next, it
// compiles each kind of Envoy once; from one generation to the next a resource
// whose bytes did not change stays the same value, and so does a collection.
type publisher struct {
	metrics  *Metrics
	snapshot *gateway.Snapshot
	current  map[kind]result               // of this generation
	last     map[kind]*xds.Set             // the newest set of every kind ever asked for
	shared   map[resourceKey]*xds.Resource // of the last generation
	fresh    map[resourceKey]*xds.Resource // of this one
}

// kind is what two Envoys have in common when they get the same set.
type kind struct {
	node, serviceID string
	envoy           gateway.Envoy
}

type result struct {
	set      *xds.Set
	problems []gateway.Problem
}

type resourceKey struct {
	typ     xds.Type
	name    string
	version string
}

func (p *publisher) begin(s *gateway.Snapshot) {
	p.snapshot = s
	p.current = map[kind]result{}
	p.shared = p.fresh
	p.fresh = map[resourceKey]*xds.Resource{}
	if p.last == nil {
		p.last = map[kind]*xds.Set{}
	}
}

// candidates gives the registered instances that the node may be: those with
// its service ID and, as far as they tell them apart, its node name and the
// address that it connects from.
func (p *publisher) candidates(n xds.Node) []*gateway.Instance {
	var found []*gateway.Instance
	for _, in := range p.snapshot.Instances {
		if in.ServiceID == n.ID && (n.Metadata["node_name"] == "" || in.Node == n.Metadata["node_name"]) {
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

// set gives the set for an Envoy that is the instance in.
func (p *publisher) set(in *gateway.Instance, n xds.Node) (*xds.Set, []gateway.Problem) {
	e := gateway.Envoy{Major: n.Major, Minor: n.Minor, Patch: n.Patch}
	k := kind{node: in.Node, serviceID: in.ServiceID, envoy: e}
	r, ok := p.current[k]
	if !ok {
		r = p.compile(in, e, p.last[k])
		p.current[k] = r
		p.last[k] = r.set
	}
	return r.set, r.problems
}

// compile gives the set of one kind of Envoy; last is the set before it, nil
// for the first. If nothing changed the result is last itself.
func (p *publisher) compile(in *gateway.Instance, e gateway.Envoy, last *xds.Set) result {
	timer := p.metrics.compileTime()
	res := listeners.Compile(p.snapshot, in, e)
	b := setBuilder{publisher: p, last: last, problems: res.Problems}
	var collections [xds.NumTypes]xds.Collection
	// Listeners first: one that stays as it was keeps what it leads to.
	collections[xds.Listener] = collect(&b, xds.Listener, res.Listeners, res.WithheldListeners)
	collections[xds.Secret] = collect(&b, xds.Secret, res.Secrets, nil)
	collections[xds.Cluster] = collect(&b, xds.Cluster, res.Clusters, nil)
	collections[xds.Endpoint] = collect(&b, xds.Endpoint, res.Endpoints, nil)
	collections[xds.Route] = collect(&b, xds.Route, res.Routes, nil)
	timer()
	if last != nil && !b.changed {
		return result{last, b.problems}
	}
	return result{xds.NewSet(collections), b.problems}
}

// setBuilder collects what one set is made of.
type setBuilder struct {
	publisher *publisher
	last      *xds.Set
	changed   bool
	problems  []gateway.Problem
	// keepsOld is set when a last good resource stays in the set: it may lead
	// to others of the last set, so none of those is left out.
	keepsOld bool
}

// collect encodes the messages of one type. What is withheld, and what turns
// out not to be a valid resource, counts with its last good bytes; without any
// it is named as withheld, so that nobody takes it for removed.
func collect[M proto.Message](b *setBuilder, t xds.Type, messages []M, withheld []string) xds.Collection {
	c := xds.Collection{Known: true, Resources: make(map[string]*xds.Resource, len(messages))}
	withheld = slices.Clone(withheld)
	for _, m := range messages {
		r, err := xds.NewResource(t, m)
		if err != nil {
			name := xds.NameOf(m)
			b.problems = append(b.problems, gateway.Problem{
				Where: fmt.Sprintf("%s %q", t, name),
				What:  fmt.Sprintf("not valid for Envoy, so the last good one stays: %v", err),
			})
			withheld = append(withheld, name)
			continue
		}
		c.Resources[r.Name()] = b.publisher.share(t, r)
	}
	for _, name := range withheld {
		if r := b.lastGood(t, name); r != nil {
			c.Resources[name] = b.publisher.share(t, r)
			b.keepsOld = true
		} else {
			c.Withheld = append(c.Withheld, name)
		}
	}
	if b.keepsOld && t != xds.Listener {
		b.keepOld(t, c)
	}
	return b.keepIfEqual(t, c)
}

// keepOld adds what the last set has and the new one lacks.
func (b *setBuilder) keepOld(t xds.Type, c xds.Collection) {
	for name, r := range b.last.Collection(t).Resources {
		if c.Resources[name] == nil {
			c.Resources[name] = b.publisher.share(t, r)
		}
	}
}

// share gives the value that already has these bytes, if there is one.
func (p *publisher) share(t xds.Type, r *xds.Resource) *xds.Resource {
	k := resourceKey{t, r.Name(), r.Version()}
	for _, known := range []map[resourceKey]*xds.Resource{p.fresh, p.shared} {
		if same := known[k]; same != nil {
			r = same
			break
		}
	}
	p.fresh[k] = r
	return r
}

func (b *setBuilder) lastGood(t xds.Type, name string) *xds.Resource {
	if b.last == nil {
		return nil
	}
	return b.last.Collection(t).Resources[name]
}

// keepIfEqual gives the last set's collection when c has the same content, so
// that streams see at a glance that nothing changed.
func (b *setBuilder) keepIfEqual(t xds.Type, c xds.Collection) xds.Collection {
	slices.Sort(c.Withheld)
	if b.last != nil {
		if old := b.last.Collection(t); equal(old, c) {
			return old
		}
	}
	b.changed = true
	return c
}

// equalSets says whether an Envoy would get the same from both.
func equalSets(a, b *xds.Set) bool {
	for t := range xds.Type(xds.NumTypes) {
		if !equal(a.Collection(t), b.Collection(t)) {
			return false
		}
	}
	return true
}

func equal(a, b xds.Collection) bool {
	if a.Known != b.Known || len(a.Resources) != len(b.Resources) || !slices.Equal(a.Withheld, b.Withheld) {
		return false
	}
	for name, r := range a.Resources {
		if other := b.Resources[name]; other == nil || other.Version() != r.Version() {
			return false
		}
	}
	return true
}
