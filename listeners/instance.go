package listeners

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// instanceKey is different for Envoys that have listeners of their own.
type instanceKey struct {
	node, serviceID string
	shared          sharedKey
	reports         reporter
}

// instanceListeners are the listeners of one instance. They are immutable.
type instanceListeners struct {
	inputs    listenerInputs
	listeners ordered.Map[*listenerv3.Listener]
	routes    ordered.Map[*routev3.RouteConfiguration] // the shared ones, and those of this instance
	clusters  ordered.Map[*clusterv3.Cluster]          // the same
	buckets   ordered.Map[*typev3.TokenBucket]
	heldBack  []string
	problems  []problem.Problem
}

// listenerInputs are everything that listeners depend on, besides their key.
type listenerInputs struct {
	instance *gateway.Instance
	balancer *gateway.Balancer // in front of it
	entry    *gateway.Entry
	ports    []compiledPort    // made again with all other shared resources
	settings [3]settings.Layer // of the snapshot
}

// equal compares pointers, apart from the small settings: false may be wrong.
func (i listenerInputs) equal(other listenerInputs) bool {
	return i.instance == other.instance && i.balancer == other.balancer && i.entry == other.entry &&
		samePointer(i.ports, other.ports) && reflect.DeepEqual(i.settings, other.settings)
}

// listenersOf returns the listeners of an instance: the previous ones, if there are any, unless their inputs differ.
func listenersOf(shared *sharedResources, in *gateway.Instance, reports reporter, previous *instanceListeners) *instanceListeners {
	s := shared.input.snapshot
	inputs := listenerInputs{
		instance: in, balancer: s.BalancerOf(in), entry: s.Entry, ports: shared.ports,
		settings: [...]settings.Layer{s.FileAll, s.ProxyDefaults, s.FileGateway},
	}
	if previous != nil && previous.inputs.equal(inputs) {
		return previous
	}
	l := &instanceListeners{inputs: inputs, routes: shared.routes, clusters: shared.clusters, problems: unknownPorts(s, in)}
	inst := instance{registered: in, addresses: bindAddresses(in, s.DualStack), reports: reports}
	for _, p := range shared.ports {
		if err := l.addPort(shared.input, inst, p); err != nil {
			l.heldBack = append(l.heldBack, listenerNames(inst, p.port)...)
			if !errors.Is(err, errUnknown) {
				l.problems = append(l.problems, problemOf(p.port, err))
			}
		}
	}
	slices.Sort(l.heldBack)
	return l
}

// addPort adds the listeners of one port. What several listeners need together is added with all of them or, with an
// error, not at all.
func (l *instanceListeners) addPort(input compileInput, inst instance, p compiledPort) error {
	if p.err != nil {
		return p.err
	}
	params, problems, err := newListenerParams(input, inst, p)
	if err != nil {
		return err
	}
	var listeners []*listenerv3.Listener
	var heldBack []string
	for _, address := range inst.addresses {
		listener, err := listenerOf(params, address)
		if err != nil {
			heldBack = append(heldBack, listenerName(p.port, address))
			problems = append(problems, problemOf(p.port, err))
			continue
		}
		listeners = append(listeners, listener)
	}
	clusters := params.logs.Collectors
	if params.usesLoopback() && len(listeners) > 0 {
		listener, cluster, err := newLoopback(params)
		if err != nil {
			return err
		}
		listeners, clusters = append(listeners, listener), append(clusters, cluster)
	} else if len(heldBack) > 0 && !p.http() {
		heldBack = append(heldBack, loopbackName(p.port))
	}
	for _, listener := range listeners {
		l.listeners = l.listeners.With(listener.Name, listener)
	}
	for _, cluster := range clusters {
		l.clusters = l.clusters.With(cluster.Name, cluster)
	}
	if len(listeners) > 0 && slices.ContainsFunc(params.servedDownstreams(), downstreams.untrusted) {
		for _, routes := range p.untrustedRoutes {
			l.routes = l.routes.With(routes.Name, routes)
		}
	}
	for name, bucket := range params.logs.TokenBuckets {
		l.buckets = l.buckets.With(name, bucket)
	}
	l.heldBack, l.problems = append(l.heldBack, heldBack...), append(l.problems, problems...)
	return nil
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
			problems = append(problems, layer.PlaceOfListener(port).Problem(fmt.Sprintf(
				"the ingress-gateway entry of gateway %s has no listener on this port; correct the port, or remove it", s.ID)))
		}
	}
	return problems
}

// problemOf returns the problem of a port.
func problemOf(p port, err error) problem.Problem {
	if of, ok := errors.AsType[settingsError](err); ok {
		return of.problem
	}
	return problem.Problem{Where: p.where(), What: err.Error()}
}

// instance is what listeners depend on of one instance of the gateway.
type instance struct {
	registered *gateway.Instance
	addresses  []string // bound by each listener, without duplicates
	reports    reporter
}

// fetchTimeoutOf reads xds_fetch_timeout_ms; Consul ignores a negative one.
func fetchTimeoutOf(in *gateway.Instance) envoy.FetchTimeout {
	if t := in.Config.FetchTimeout; t != nil && *t >= 0 {
		return envoy.FetchTimeout{IsSet: true, Duration: *t}
	}
	return envoy.FetchTimeout{}
}

// bindAddresses returns the addresses that every listener of an instance binds, sorted and without duplicates: the
// instance's own unless it says not to, its tagged ones if it says so, and the ones that it lists
// (https://developer.hashicorp.com/consul/docs/reference/proxy/envoy#gateway-options). Their ports are not those of
// the gateway's listeners and have no meaning.
func bindAddresses(in *gateway.Instance, dualStack bool) []string {
	all, loopback := "0.0.0.0", "127.0.0.1"
	if dualStack {
		all, loopback = "::", "::1"
	}
	var addresses []string
	if !in.Config.NoDefaultBind {
		addresses = append(addresses, cmp.Or(in.Address, all))
	}
	if in.Config.BindTaggedAddresses {
		for _, a := range in.TaggedAddresses {
			addresses = append(addresses, cmp.Or(a.Address, loopback))
		}
	}
	for _, a := range in.Config.BindAddresses {
		addresses = append(addresses, cmp.Or(a.Address, loopback))
	}
	slices.Sort(addresses)
	return slices.Compact(addresses)
}

// listenerName returns Consul's name of a port's listener on an address. The address is part of it because Envoy
// cannot give a listener another address.
func listenerName(p port, address string) string {
	head := p.protocol
	if !p.http() && len(p.services) > 0 {
		head = displayName(p.services[0].service.Service)
	}
	return head + ":" + net.JoinHostPort(address, strconv.Itoa(p.number))
}

// PortOf returns the port in the name of a listener.
func PortOf(name string) string { return name[strings.LastIndexByte(name, ':')+1:] }

// listenerNames returns the names of a port's listeners: one for each address, and that of the loopback listener
// which a tcp port may have.
func listenerNames(in instance, p port) []string {
	var names []string
	for _, a := range in.addresses {
		names = append(names, listenerName(p, a))
	}
	if !p.http() {
		names = append(names, loopbackName(p))
	}
	return names
}
