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
	"slices"
	"strings"
	"unicode"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
)

// Resources are what one Envoy of a gateway gets, by their names.
type Resources struct {
	Listeners ordered.Map[*listenerv3.Listener]
	Routes    ordered.Map[*routev3.RouteConfiguration]
	Clusters  ordered.Map[*clusterv3.Cluster]
	Endpoints ordered.Map[*endpointv3.ClusterLoadAssignment]
	Secrets   ordered.Map[*tlsv3.Secret]
	// TokenBuckets are those of access logs: how many entries there may be a
	// second.
	TokenBuckets ordered.Map[*typev3.TokenBucket]

	// WithheldListeners names, in order, the listeners that the gateway should
	// have and that could not be built. Envoy must keep the last good ones, and
	// with them the routes, clusters, endpoints and secrets that those use, even
	// where the maps above no longer have them.
	WithheldListeners []string
	// WithheldEndpoints names, in order, the load assignments of Clusters whose
	// instances are not known. Envoy must keep the last good ones.
	WithheldEndpoints []string
	// Problems says what an operator has to mend, in addition to the snapshot's
	// own problems.
	Problems []problem.Problem
}

// Compile gives the resources for an Envoy of release e that runs as the
// instance in of the gateway s. It is pure: the same input gives the same
// bytes, and neither s nor in is modified. A listener that cannot be built the
// way its settings ask for is withheld, never built without them.
func Compile(s *gateway.Snapshot, in *gateway.Instance, e gateway.EnvoyVersion) *Resources {
	return new(Compiler).Compile(s, in, e)
}

// environment is what all parts of a compile may depend on.
type environment struct {
	snapshot *gateway.Snapshot
	envoy    envoy.Capabilities
	fetch    envoy.FetchTimeout
}

// problemsOf gives each problem once. Names in them come from outside and may
// hold anything; a problem is one line.
func problemsOf(lists ...[]problem.Problem) []problem.Problem {
	var out []problem.Problem
	seen := map[problem.Problem]bool{}
	for _, p := range slices.Concat(lists...) {
		p = problem.Problem{Where: oneLine(p.Where), What: oneLine(p.What)}
		if !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out
}

// named gives messages by their names. Where two have the same name the first
// one counts.
func named[M interface {
	comparable
	GetName() string
}](list []M) ordered.Map[M] {
	return ordered.By(list, M.GetName)
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}
