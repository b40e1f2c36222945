package consul

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
)

var (
	// servicesType reads the services of a gateway, with wildcards expanded
	// (https://developer.hashicorp.com/consul/api-docs/catalog#list-services-for-gateway).
	servicesType = &queryType{name: "gateway-services", path: "/v1/catalog/gateway-services/", needs: "service:read on the gateway", decode: decodeJSON("gateway services", decodeServices)}
	// chainType reads a compiled discovery chain (https://developer.hashicorp.com/consul/api-docs/discovery-chain).
	chainType = &queryType{name: "discovery-chain", path: "/v1/discovery-chain/", needs: "service:read on the service", decode: decodeJSON("discovery chain", decodeChain)}
)

// gatewayServices are the services of a gateway.
type gatewayServices struct {
	services []gateway.Service
	filtered bool // Consul's ACLs left services out
}

func decodeServices(_ *gatewayServices, list []gateway.Service, r response) (*gatewayServices, error) {
	if list == nil {
		return nil, unexpected("it is null")
	}
	if len(list) == 0 && r.filtered {
		return nil, errAllFiltered
	}
	for i := range list {
		if list[i].Service.Name == "" {
			return nil, unexpected("a service has no name")
		}
		list[i].Service = list[i].Service.OmitDefaults()
		list[i].Protocol = strings.ToLower(list[i].Protocol)
	}
	slices.SortFunc(list, compareServices)
	return &gatewayServices{services: list, filtered: r.filtered}, nil
}

// compareServices orders the services of a gateway. Only equal ones have the same place.
func compareServices(a, b gateway.Service) int {
	return cmp.Or(
		cmp.Compare(a.Port, b.Port),
		cmp.Compare(a.Service.Name, b.Service.Name),
		cmp.Compare(a.Service.Namespace, b.Service.Namespace),
		cmp.Compare(a.Service.Partition, b.Service.Partition),
	)
}

// withFiltered returns the services, and those of the last snapshot that ACLs have filtered since then: those that the
// config entry still names, and whose chains are known. The services of a wildcard may not exist any more.
func (l *gatewayServices) withHidden(last *gateway.Snapshot, inEntry entryServiceSet) []gateway.Service {
	if !l.filtered || last == nil {
		return l.services
	}
	all := slices.Clone(l.services)
	for _, s := range last.Services {
		_, visible := slices.BinarySearchFunc(l.services, s, compareServices)
		if !visible && !s.FromWildcard && last.Chains[s.Service] != nil && inEntry.has(s) {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, compareServices)
	return all
}

// serviceOf returns a service of a listener as gateway-services has it. It does not expand a wildcard.
func serviceOf(l gateway.Listener, s gateway.ListenerService) gateway.Service {
	return gateway.Service{
		Service:      gateway.ServiceName{Name: s.Name, Namespace: s.Namespace, Partition: s.Partition}.OmitDefaults(),
		Port:         l.Port,
		Protocol:     protocolOf(l.Protocol),
		Hosts:        s.Hosts,
		FromWildcard: s.Name == "*",
	}
}

// containsService reports whether the list contains the service. For a wildcard it reports whether the list contains
// any service on its port. A service without a namespace may be in the namespace of the gateway.
func containsService(list []gateway.Service, s gateway.Service) bool {
	first := gateway.Service{Port: s.Port, Service: gateway.ServiceName{Name: s.Service.Name}}
	if s.FromWildcard {
		first.Service.Name = ""
	}
	i, _ := slices.BinarySearchFunc(list, first, compareServices)
	for _, other := range list[i:] {
		switch {
		case other.Port != s.Port || !s.FromWildcard && other.Service.Name != s.Service.Name:
			return false
		case protocolOf(other.Protocol) != s.Protocol:
		case s.FromWildcard, other.Service == s.Service, s.Service == first.Service:
			return true
		}
	}
	return false
}

// listenerServices is the set of the services on the listeners of a config entry. A wildcard has the name "*".
type entryServiceSet map[entryServiceKey]bool

type entryServiceKey struct {
	port     int
	protocol string
	service  gateway.ServiceName
}

func listenerServicesOf(e *gateway.Entry) entryServiceSet {
	out := entryServiceSet{}
	if e == nil {
		return out
	}
	for _, l := range e.Listeners {
		for _, inEntry := range l.Services {
			s := serviceOf(l, inEntry)
			if s.FromWildcard {
				s.Service = gateway.ServiceName{Name: "*"}
			}
			out[entryServiceKey{s.Port, s.Protocol, s.Service}] = true
		}
	}
	return out
}

// has reports whether the config entry has the service on its port. A service without a namespace in the entry may be
// in the namespace of the gateway.
func (l entryServiceSet) has(s gateway.Service) bool {
	for _, name := range []gateway.ServiceName{s.Service, {Name: s.Service.Name}, {Name: "*"}} {
		if l[entryServiceKey{s.Port, protocolOf(s.Protocol), name}] {
			return true
		}
	}
	return false
}

// protocolOf returns the protocol of a listener in lower case; "" means tcp.
func protocolOf(s string) string { return strings.ToLower(cmp.Or(s, "tcp")) }

// discoveryChain is a compiled discovery chain.
type discoveryChain struct {
	*gateway.Chain
	unknown []string // the fields that Usher does not know
}

// decodeChain keeps the pointers of targets that did not change.
func decodeChain(prev *discoveryChain, body struct{ Chain *gateway.Chain }, r response) (*discoveryChain, error) {
	c := body.Chain
	if c == nil || c.Nodes[c.StartNode] == nil {
		return nil, unexpected("it has no start node")
	}
	for name, n := range c.Nodes {
		if n == nil || slices.Contains(n.Routes, nil) || slices.Contains(n.Splits, nil) {
			return nil, unexpected(fmt.Sprintf("a part of the node %q is null", name))
		}
	}
	for id, t := range c.Targets {
		if t == nil {
			return nil, unexpected(fmt.Sprintf("the target %q is null", id))
		}
		if prev != nil {
			c.Targets[id] = reuse(prev.Targets[id], t)
		}
	}
	return &discoveryChain{c, unknownFields[struct{ Chain gateway.Chain }](r.body, chainOthers)}, nil
}
