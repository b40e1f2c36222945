package listeners

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// port is what the gateway serves on one port: a listener of its entry, and the services of gateway-services that
// belong to it, at least one.
type port struct {
	gateway  gateway.ID
	number   int
	protocol string
	listener *gateway.Listener // nil: the entry has none on this port
	services []portService
	// entryServices are the listener's settings for services by name; "*" is the name of a wildcard.
	entryServices map[gateway.ServiceName]*gateway.ListenerService
}

// portService is one service of a port.
type portService struct {
	service  gateway.Service
	settings *gateway.ListenerService // nil: the listener does not name the service
	chain    *gateway.Chain           // nil if it is not known
}

// portResources are what all instances of the gateway share of a port.
type portResources struct {
	routes []*routev3.RouteConfiguration
	// untrustedRoutes are for untrusted downstreams, by the name of the routes that all others have.
	untrustedRoutes map[string]*routev3.RouteConfiguration
	clusters        []*clusterv3.Cluster
	targets         []edsCluster // those whose endpoints come in a load assignment
	problems        []problem.Problem
}

// portsOf returns the ports that have a service, in ascending order. As with Consul, a listener without any is left
// out.
func portsOf(s *gateway.Snapshot) []port {
	if s.Entry == nil {
		return nil
	}
	byNumber := map[int]*port{}
	for _, svc := range s.Services {
		p := byNumber[svc.Port]
		if p == nil {
			p = newPort(s, svc)
			byNumber[svc.Port] = p
		}
		p.services = append(p.services, portService{svc, p.settingsFor(svc.Service), s.Chains[svc.Service]})
	}
	var ports []port
	for _, number := range slices.Sorted(maps.Keys(byNumber)) {
		ports = append(ports, *byNumber[number])
	}
	return ports
}

func newPort(s *gateway.Snapshot, svc gateway.Service) *port {
	p := &port{gateway: s.ID, number: svc.Port, protocol: svc.Protocol}
	for i := range s.Entry.Listeners {
		if l := &s.Entry.Listeners[i]; l.Port == svc.Port {
			p.listener, p.protocol, p.entryServices = l, l.Protocol, entryServicesOf(l)
			break
		}
	}
	p.protocol = gateway.NormalProtocol(p.protocol)
	return p
}

// entryServicesOf returns the listener's settings for services by name. Of two for one name the first counts.
func entryServicesOf(l *gateway.Listener) map[gateway.ServiceName]*gateway.ListenerService {
	byName := map[gateway.ServiceName]*gateway.ListenerService{}
	for i := range l.Services {
		c := &l.Services[i]
		name := gateway.ServiceName{Name: c.Name, Namespace: c.Namespace, Partition: c.Partition}.OrDefaults()
		if byName[name] == nil {
			byName[name] = c
		}
	}
	return byName
}

// settingsFor returns the listener's settings for a service: those under its own name, or else those of the wildcard
// in the same namespace.
func (p *port) settingsFor(name gateway.ServiceName) *gateway.ListenerService {
	name = name.OrDefaults()
	wildcard := gateway.ServiceName{Name: "*", Namespace: name.Namespace, Partition: name.Partition}
	return cmp.Or(p.entryServices[name], p.entryServices[wildcard])
}

// http reports whether the protocol has requests.
func (p *port) http() bool {
	return p.protocol == gateway.ProtocolHTTP || p.protocol == gateway.ProtocolHTTP2 || p.protocol == gateway.ProtocolGRPC
}

// where names the port in problems.
func (p *port) where() string {
	return fmt.Sprintf("config entry ingress-gateway/%s: listener %d", p.gateway, p.number)
}

// check returns why the port cannot be served.
func (p *port) check() error {
	switch {
	case p.number < 1 || p.number > 65535:
		return errors.New("the port is out of range; use 1 to 65535")
	case p.listener == nil:
		return errors.New("the catalog lists services on this port, but the ingress-gateway entry has no listener there; " +
			"add the listener to the entry, or write the entry again (consul config write)")
	case p.protocol != gateway.ProtocolTCP && !p.http():
		return fmt.Errorf("protocol %q is not allowed; use tcp, http, http2 or grpc", p.protocol)
	}
	for _, r := range p.services {
		switch {
		case r.service.Service.Name == "":
			return errors.New("a service has no name; add one, or remove the service")
		case r.settings == nil:
			return fmt.Errorf("the catalog lists service %s for this listener, but the ingress-gateway entry does not; Usher holds "+
				"the listener back until they agree; if this lasts, write the entry again (consul config write)", r.service.Service)
		}
	}
	return nil
}

// isKnown reports whether all input of the service's routes and clusters is known. This is its chain and, for each
// target in a cluster peer, the peer's certificates. If the peer has certificates, the target's endpoints belong to
// it, too.
func (r portService) isKnown(s *gateway.Snapshot) bool {
	if r.chain == nil {
		return false
	}
	for _, t := range r.chain.Targets {
		if t == nil || t.Peer == "" {
			continue
		}
		if s.Peers[t.Peer] == nil || peerRoots(s, t.Peer) != nil && s.Endpoints.Get(t.ID) == nil {
			return false
		}
	}
	return true
}

// compilePort makes what the instances share of a port. If a service is not known, it makes no routes and returns
// errUnknown. It still makes the clusters and load assignments of the other services, for an Envoy that has the port
// already.
func compilePort(input compileInput, p port, cache clusterCache) (portResources, error) {
	if err := p.check(); err != nil {
		return portResources{}, err
	}
	if err := meshKnown(input.snapshot); err != nil {
		return portResources{}, err
	}
	var resources portResources
	allKnown := !slices.ContainsFunc(p.services, func(r portService) bool { return !r.isKnown(input.snapshot) })
	if p.http() && allKnown {
		routes, err := routesOf(input, p)
		if err != nil {
			return portResources{}, err
		}
		resources.routes, resources.untrustedRoutes = routes, untrustedRoutesOf(input.capabilities, routes)
	}
	routed := p.services
	if !p.http() {
		routed = routed[:1] // a tcp listener has one service
	}
	for _, r := range routed {
		if !r.isKnown(input.snapshot) {
			continue
		}
		if err := resources.addClusters(input, p, r, cache); err != nil {
			return portResources{}, fmt.Errorf("service %s: %w", r.service.Service, err)
		}
	}
	if !allKnown {
		return resources, errUnknown
	}
	return resources, nil
}

// meshKnown returns what is missing to connect to the service mesh.
func meshKnown(s *gateway.Snapshot) error {
	switch {
	case s.Plain:
		return nil
	case s.Roots == nil || s.Roots.TrustDomain == "" || len(s.Roots.PEMs) == 0:
		return errors.New("there are no root certificates of the mesh from Consul yet; " +
			"check usher_consul_watches_failing and the rights of Usher's token")
	case s.Leaf == nil:
		return errors.New("there is no certificate of the gateway from Consul yet; " +
			"check usher_consul_watches_failing and the rights of Usher's token")
	}
	return nil
}

// displayName returns the name that Consul uses in names of routes and virtual hosts: the service alone in the
// default namespace and partition.
func displayName(n gateway.ServiceName) string {
	if n.SameTenancy(gateway.ServiceName{}) {
		return n.Name
	}
	return n.String()
}
