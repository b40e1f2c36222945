// Package listeners compiles what is known of an ingress gateway into the resources that one of its Envoys gets:
//
//	gateway.Snapshot + gateway.Instance + gateway.Envoy ──Compiler.Compile──> Resources
//
// In Envoy's graph everything of a gateway hangs off its listeners, so one package makes all types. The output
// follows Consul's own xDS for ingress gateways, name by name, so that dashboards, alerts and access logs keep their
// meaning; PROXY protocol is added.
//
// There is no clock, no context and no logger here. What does not depend on the instance is the same message for
// every instance. A cached part has a key with everything that the part depends on.
//
// A listener of the config entry is a "port" here. A "listener" is one of Envoy, which has one for each address of a
// port.
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
	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
)

// Resources are what one Envoy of a gateway gets, by their names.
type Resources struct {
	Listeners    ordered.Map[*listenerv3.Listener]
	Routes       ordered.Map[*routev3.RouteConfiguration]
	Clusters     ordered.Map[*clusterv3.Cluster]
	Endpoints    ordered.Map[*endpointv3.ClusterLoadAssignment]
	Secrets      ordered.Map[*tlsv3.Secret]
	TokenBuckets ordered.Map[*typev3.TokenBucket] // of access logs

	// HeldBackListeners names, in order, the listeners that the gateway should have and that could not be built.
	// Envoy must keep the last valid ones, and with them the routes, clusters, endpoints and secrets that those use,
	// even where the maps above no longer have them.
	HeldBackListeners []string
	// HeldBackEndpoints names, in order, the load assignments of Clusters whose endpoints are not known. Envoy must
	// keep the last valid ones.
	HeldBackEndpoints []string
	// Problems are what an administrator has to correct, besides the snapshot's own.
	Problems []problem.Problem
}

// Compiler compiles the snapshots of one gateway, one after the other. While only endpoints change, it makes only
// their load assignments again. After any other change, it keeps the clusters and load assignments with the same
// keys, and makes everything else again. For that, what did not change in a snapshot must have kept its pointer. The
// zero value is ready. A Compiler belongs to one goroutine.
type Compiler struct {
	Reports evidence.Key // for listeners that report their connections; zero: none does

	snapshot *gateway.Snapshot // the latest

	// What was compiled of that snapshot and of the previous one.
	shared, previousShared       map[sharedKey]*sharedResources
	instances, previousInstances map[instanceKey]*instanceListeners
}

// Compile returns the resources for an Envoy e that runs as the instance in of the gateway s. It is pure:
// whatever was compiled before, the same input gives the same bytes, and neither s nor in is modified. A listener
// that cannot be built as its security settings say is held back, and never built without them. A setting that only
// reports (a TLV, a sink of access logs) is left out with a problem.
func (c *Compiler) Compile(s *gateway.Snapshot, in *gateway.Instance, e gateway.Envoy) *Resources {
	if s != c.snapshot {
		c.snapshot = s
		c.shared, c.previousShared = map[sharedKey]*sharedResources{}, c.shared
		c.instances, c.previousInstances = map[instanceKey]*instanceListeners{}, c.instances
	}
	key := sharedKey{capabilities: envoy.CapabilitiesOf(e.EnvoyVersion), fetchTimeout: fetchTimeoutOf(in)}
	shared := c.shared[key]
	if shared == nil {
		shared = sharedResourcesOf(compileInput{key, s}, c.previousShared[key])
		c.shared[key] = shared
	}
	own := instanceKey{node: in.Node, serviceID: in.ServiceID, shared: key, reports: reporter{c.Reports, e.ReportCluster}}
	listeners := c.instances[own]
	if listeners == nil {
		listeners = listenersOf(shared, in, own.reports, c.previousInstances[own])
		c.instances[own] = listeners
	}
	heldBackEndpoints, unreachable := shared.assignments.report()
	return &Resources{
		Listeners:         listeners.listeners,
		Routes:            listeners.routes,
		Clusters:          listeners.clusters,
		Endpoints:         shared.assignments.endpoints,
		Secrets:           shared.secrets,
		TokenBuckets:      listeners.buckets,
		HeldBackListeners: listeners.heldBack,
		HeldBackEndpoints: heldBackEndpoints,
		Problems:          problemsOf(listeners.problems, shared.problems, unreachable),
	}
}

// problemsOf returns each problem once. Names in them come from outside and may hold anything; a problem is one
// line.
func problemsOf(lists ...[]problem.Problem) []problem.Problem {
	var all []problem.Problem
	seen := map[problem.Problem]bool{}
	for _, p := range slices.Concat(lists...) {
		p.Where, p.What = oneLine(p.Where), oneLine(p.What)
		if !seen[p] {
			seen[p] = true
			all = append(all, p)
		}
	}
	return all
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}
