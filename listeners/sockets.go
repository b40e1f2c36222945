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

// socketsKey tells Envoys apart that have listeners of their own.
type socketsKey struct {
	node, serviceID string
	shape           shapeKey
}

// sockets are the listeners of one instance. They are immutable.
type sockets struct {
	madeOf    madeOf
	listeners ordered.Map[*listenerv3.Listener]
	// clusters are those of the shape, with the instance's own among them where it
	// has any.
	clusters ordered.Map[*clusterv3.Cluster]
	buckets  ordered.Map[*typev3.TokenBucket]
	withheld []string
	problems []problem.Problem
}

// next gives the listeners of a newer snapshot. Those before the first
// are nil.
func (s *sockets) next(shape *shape, in *gateway.Instance) *sockets {
	snapshot := shape.env.snapshot
	from := madeOf{instance: in, balancer: snapshot.BalancerOf(in), ports: shape.ports, clusters: shape.clusters, settings: [...]settings.Layer{snapshot.FileAll, snapshot.ProxyDefaults, snapshot.FileGateway}}
	if s != nil && s.madeOf.same(from) {
		return s
	}
	now := &sockets{madeOf: from, clusters: shape.clusters}
	now.problems = strayPorts(snapshot, in)
	inst := instanceOf(snapshot, in)
	for _, p := range shape.ports {
		now.port(shape.env, inst, p)
	}
	slices.Sort(now.withheld)
	return now
}

// madeOf is everything that listeners follow from, beside their key.
type madeOf struct {
	instance *gateway.Instance
	balancer *gateway.Balancer // in front of it
	ports    []compiledPort    // with the shape's environment
	clusters ordered.Map[*clusterv3.Cluster]
	settings [3]settings.Layer // of the snapshot
}

// same looks at pointers only: false says nothing.
func (m madeOf) same(other madeOf) bool {
	return m.instance == other.instance && m.balancer == other.balancer && identical(m.ports, other.ports) && m.clusters == other.clusters &&
		reflect.DeepEqual(m.settings, other.settings)
}

// port adds the listeners of one port, or withholds them. What several
// listeners need together is added with all of them or not at all.
func (s *sockets) port(env environment, inst instance, p compiledPort) {
	made, err := socketsOfPort(env, inst, p)
	if err == nil {
		for _, l := range made.listeners {
			s.listeners = s.listeners.With(l.Name, l)
		}
		for _, c := range made.clusters {
			s.clusters = s.clusters.With(c.Name, c)
		}
		for name, b := range made.buckets {
			s.buckets = s.buckets.With(name, b)
		}
		s.withheld = append(s.withheld, made.withheld...)
		s.problems = append(s.problems, made.problems...)
		return
	}
	s.withheld = append(s.withheld, listenerNames(inst, p.port)...)
	if !errors.Is(err, errUnknown) {
		s.problems = append(s.problems, problemOf(p.port, err))
	}
}

// portSockets are what an instance has of a port.
type portSockets struct {
	listeners []*listenerv3.Listener
	clusters  []*clusterv3.Cluster
	buckets   map[string]*typev3.TokenBucket
	withheld  []string
	problems  []problem.Problem
}

func socketsOfPort(env environment, inst instance, p compiledPort) (portSockets, error) {
	if p.err != nil {
		return portSockets{}, p.err
	}
	l, problems, err := listeningOn(env, inst, p.port)
	if err != nil {
		return portSockets{}, err
	}
	made := portSockets{problems: problems, clusters: l.logs.Collectors, buckets: l.logs.TokenBuckets}
	for _, address := range inst.addresses {
		listener, err := listenerOf(l, address)
		if err != nil {
			made.withheld = append(made.withheld, listenerName(p.port, address))
			made.problems = append(made.problems, problemOf(p.port, err))
			continue
		}
		made.listeners = append(made.listeners, listener)
	}
	if l.relays() && len(made.listeners) > 0 {
		relay, err := relayOf(l)
		if err != nil {
			return portSockets{}, err
		}
		made.listeners = append(made.listeners, relay.listener)
		made.clusters = append(made.clusters, relay.cluster)
	} else if len(made.withheld) > 0 && !p.http() {
		made.withheld = append(made.withheld, relayName(p.port))
	}
	return made, nil
}

// strayPorts says which listeners settings speak of that the gateway does not
// have: a port that is mistyped leaves the listener that was meant without its
// policy. What is said of every gateway may speak of another one's.
func strayPorts(s *gateway.Snapshot, in *gateway.Instance) []problem.Problem {
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
