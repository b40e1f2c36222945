// Package listeners compiles what is known of an ingress gateway into the
// resources that one of its Envoys gets:
//
//	gateway.Snapshot + gateway.Instance + gateway.Envoy ──Compile──> Resources
//
// Everything of a gateway hangs off its listeners in Envoy's graph, so one
// package makes all kinds, one file each. The output follows Consul's own xDS
// for ingress gateways, name by name, so that dashboards, alerts and access
// logs keep their meaning; what is added is the PROXY protocol.
//
// Compile is a function: no clock, no context, no logger, no state. What does
// not depend on the instance comes out byte-identical for every instance, and
// the functions that make such a part take the whole key of the part as their
// argument and nothing else.
package listeners

import (
	"cmp"
	"slices"
	"strings"
	"unicode"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/usherproxy/usher/gateway"
)

// Resources are what one Envoy of a gateway gets. Each slice is sorted by name
// and has no name twice.
type Resources struct {
	Listeners []*listenerv3.Listener
	Routes    []*routev3.RouteConfiguration
	Clusters  []*clusterv3.Cluster
	Endpoints []*endpointv3.ClusterLoadAssignment
	Secrets   []*tlsv3.Secret

	// WithheldListeners names, in order, the listeners that the gateway should
	// have and that could not be built. Envoy must keep the last good ones, and
	// with them the routes, clusters, endpoints and secrets that those use, even
	// where the slices above no longer have them.
	WithheldListeners []string
	// Problems says what an operator has to mend, in addition to the snapshot's
	// own problems.
	Problems []gateway.Problem
}

// Compile gives the resources for an Envoy of release e that runs as the
// instance in of the gateway s. It is pure: the same input gives the same
// bytes, and neither s nor in is modified. A listener that cannot be built the
// way its settings ask for is withheld, never built without them.
func Compile(s *gateway.Snapshot, in *gateway.Instance, e gateway.Envoy) *Resources {
	c := &collector{}
	c.secrets(s)
	env := environment{
		snapshot: s,
		dialect:  dialectOf(e),
		fetch:    fetchTimeoutOf(in),
	}
	inst := instanceOf(s, in)
	c.problems(inst.problems...)
	for _, p := range portsOf(s) {
		c.port(env, inst, p)
	}
	return c.resources()
}

// environment is what all parts of a compile may depend on.
type environment struct {
	snapshot *gateway.Snapshot
	dialect  dialect
	fetch    fetchTimeout
}

// collector gathers the parts. Where two parts have the same name the first
// one counts, and ports come in ascending order: a cluster that two listeners
// share has the settings of the listener with the lowest port.
type collector struct {
	out       Resources
	clusters  map[string]bool
	endpoints map[string]bool
	seen      map[gateway.Problem]bool
}

// port adds everything of one port, or withholds its listeners.
func (c *collector) port(env environment, inst instance, p port) {
	shared, err := compilePort(env, p)
	if err != nil {
		c.withheld(listenerNames(inst, p)...)
		c.problems(gateway.Problem{Where: p.where(), What: err.Error()})
		return
	}
	c.shared(shared)
	for _, address := range inst.addresses {
		if inst.unknown {
			c.withheld(listenerName(p, address))
			continue
		}
		l, err := listenerOf(env, inst, p, address)
		if err != nil {
			c.withheld(listenerName(p, address))
			c.problems(gateway.Problem{Where: p.where(), What: err.Error()})
			continue
		}
		c.out.Listeners = append(c.out.Listeners, l)
	}
}

func (c *collector) withheld(names ...string) {
	c.out.WithheldListeners = append(c.out.WithheldListeners, names...)
}

func (c *collector) shared(parts portParts) {
	c.out.Routes = append(c.out.Routes, parts.routes...)
	for _, cl := range parts.clusters {
		if !c.clusters[cl.Name] {
			set(&c.clusters, cl.Name)
			c.out.Clusters = append(c.out.Clusters, cl)
		}
	}
	for _, a := range parts.assignments {
		if !c.endpoints[a.ClusterName] {
			set(&c.endpoints, a.ClusterName)
			c.out.Endpoints = append(c.out.Endpoints, a)
		}
	}
	c.problems(parts.problems...)
}

// problems adds each problem once. Names in them come from outside and may hold
// anything; a problem is one line.
func (c *collector) problems(found ...gateway.Problem) {
	for _, p := range found {
		p = gateway.Problem{Where: oneLine(p.Where), What: oneLine(p.What)}
		if !c.seen[p] {
			set(&c.seen, p)
			c.out.Problems = append(c.out.Problems, p)
		}
	}
}

func (c *collector) secrets(s *gateway.Snapshot) {
	c.out.Secrets = secretsOf(s.Leaf, s.Roots)
}

func (c *collector) resources() *Resources {
	r := &c.out
	slices.SortFunc(r.Listeners, byName[*listenerv3.Listener])
	slices.SortFunc(r.Routes, byName[*routev3.RouteConfiguration])
	slices.SortFunc(r.Clusters, byName[*clusterv3.Cluster])
	slices.SortFunc(r.Endpoints, func(a, b *endpointv3.ClusterLoadAssignment) int {
		return cmp.Compare(a.GetClusterName(), b.GetClusterName())
	})
	slices.SortFunc(r.Secrets, byName[*tlsv3.Secret])
	slices.Sort(r.WithheldListeners)
	return r
}

func byName[T interface{ GetName() string }](a, b T) int {
	return cmp.Compare(a.GetName(), b.GetName())
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

func set[K comparable](m *map[K]bool, key K) {
	if *m == nil {
		*m = map[K]bool{}
	}
	(*m)[key] = true
}
