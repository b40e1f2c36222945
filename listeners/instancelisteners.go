package listeners

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// instanceKey is different for Envoys that have listeners of their own.
type instanceKey struct {
	node, serviceID string
	shared          sharedKey
}

// instanceListeners are the listeners of one instance. They are immutable.
type instanceListeners struct {
	inputs    listenerInputs
	listeners ordered.Map[*listenerv3.Listener]
	clusters  ordered.Map[*clusterv3.Cluster] // the shared ones, and those of this instance
	buckets   ordered.Map[*typev3.TokenBucket]
	heldBack  []string
	problems  []problem.Problem
}

// listenerInputs are everything that listeners depend on, beside their key.
type listenerInputs struct {
	instance *gateway.Instance
	balancer *gateway.Balancer // in front of it
	ports    []compiledPort    // with the environment of the shared resources
	clusters ordered.Map[*clusterv3.Cluster]
	settings [3]settings.Layer // of the snapshot
}

// equal compares pointers: false may be wrong.
func (i listenerInputs) equal(other listenerInputs) bool {
	return i.instance == other.instance && i.balancer == other.balancer &&
		samePointer(i.ports, other.ports) && i.clusters == other.clusters && reflect.DeepEqual(i.settings, other.settings)
}

// update returns the listeners of a newer snapshot. The first have no last ones.
func (l *instanceListeners) update(shared *sharedResources, in *gateway.Instance) *instanceListeners {
	s := shared.env.snapshot
	inputs := listenerInputs{
		instance: in, balancer: s.BalancerOf(in), ports: shared.ports, clusters: shared.clusters,
		settings: [...]settings.Layer{s.FileAll, s.ProxyDefaults, s.FileGateway},
	}
	if l != nil && l.inputs.equal(inputs) {
		return l
	}
	now := &instanceListeners{inputs: inputs, clusters: shared.clusters, problems: unknownPorts(s, in)}
	inst := instanceOf(s, in)
	for _, p := range shared.ports {
		now.addPort(shared.env, inst, p)
	}
	slices.Sort(now.heldBack)
	return now
}

// addPort adds the listeners of one port, or holds them back. What several listeners need together is added with all
// of them or not at all.
func (l *instanceListeners) addPort(env environment, inst instance, p compiledPort) {
	built, err := buildPort(env, inst, p)
	if err != nil {
		l.heldBack = append(l.heldBack, listenerNames(inst, p.port)...)
		if !errors.Is(err, errUnknown) {
			l.problems = append(l.problems, problemOf(p.port, err))
		}
		return
	}
	for _, listener := range built.listeners {
		l.listeners = l.listeners.With(listener.Name, listener)
	}
	for _, cluster := range built.clusters {
		l.clusters = l.clusters.With(cluster.Name, cluster)
	}
	for name, bucket := range built.buckets {
		l.buckets = l.buckets.With(name, bucket)
	}
	l.heldBack = append(l.heldBack, built.heldBack...)
	l.problems = append(l.problems, built.problems...)
}

// portListeners are what an instance has of a port.
type portListeners struct {
	listeners []*listenerv3.Listener
	clusters  []*clusterv3.Cluster
	buckets   map[string]*typev3.TokenBucket
	heldBack  []string
	problems  []problem.Problem
}

func buildPort(env environment, inst instance, p compiledPort) (portListeners, error) {
	if p.err != nil {
		return portListeners{}, p.err
	}
	l, problems, err := newListenerParams(env, inst, p.port)
	if err != nil {
		return portListeners{}, err
	}
	built := portListeners{problems: problems, clusters: l.logs.Collectors, buckets: l.logs.TokenBuckets}
	for _, address := range inst.addresses {
		listener, err := listenerOf(l, address)
		if err != nil {
			built.heldBack = append(built.heldBack, listenerName(p.port, address))
			built.problems = append(built.problems, problemOf(p.port, err))
			continue
		}
		built.listeners = append(built.listeners, listener)
	}
	if l.usesLoopback() && len(built.listeners) > 0 {
		loopback, err := newLoopback(l)
		if err != nil {
			return portListeners{}, err
		}
		built.listeners = append(built.listeners, loopback.listener)
		built.clusters = append(built.clusters, loopback.cluster)
	} else if len(built.heldBack) > 0 && !p.http() {
		built.heldBack = append(built.heldBack, loopbackName(p.port))
	}
	return built, nil
}

// unknownPorts are the problems of settings for listeners that the gateway does not have. A mistyped port leaves the
// intended listener without its settings. The layers of all gateways may name the ports of another one.
func unknownPorts(s *gateway.Snapshot, in *gateway.Instance) []problem.Problem {
	if s.Entry == nil {
		return nil
	}
	var problems []problem.Problem
	for _, layer := range []settings.Layer{in.Registration, s.FileGateway} {
		for _, port := range slices.Sorted(maps.Keys(layer.Settings.Listeners)) {
			if slices.ContainsFunc(s.Entry.Listeners, func(l gateway.Listener) bool { return l.Port == port }) {
				continue
			}
			problems = append(problems, problem.Problem{
				Where: fmt.Sprintf("gateway %s: usher.listeners.%d", s.ID, port),
				What:  "the ingress-gateway entry has no listener on this port; correct the port, or remove it",
			})
		}
	}
	return problems
}

func problemOf(p port, err error) problem.Problem {
	return problem.Problem{Where: p.where(), What: err.Error()}
}
