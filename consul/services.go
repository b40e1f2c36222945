package consul

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
)

// rowsKind reads the services of a gateway, wildcards expanded
// (https://developer.hashicorp.com/consul/api-docs/catalog#list-services-for-gateway).
var servicesType = &queryType{name: "gateway-services", path: "/v1/catalog/gateway-services/", decode: decodeAs(decodeServices)}

// rows are the services of a gateway.
type gatewayServices struct {
	services []gateway.Service
	// hidden says that Consul's ACLs left services out.
	hidden bool
}

func decodeServices(_ *gatewayServices, a answer) (*gatewayServices, error) {
	var list []gateway.Service
	if err := json.Unmarshal(a.body, &list); err != nil {
		return nil, fmt.Errorf("gateway services: %w", err)
	}
	if list == nil {
		return nil, errors.New("gateway services: the answer is null")
	}
	if len(list) == 0 && a.filtered {
		return nil, errHidden
	}
	for i := range list {
		if list[i].Service.Name == "" {
			return nil, errors.New("gateway services: one has no name")
		}
		list[i].Service = list[i].Service.OmitDefaults()
		list[i].Protocol = strings.ToLower(list[i].Protocol)
	}
	slices.SortFunc(list, compareServices)
	return &gatewayServices{services: list, hidden: a.filtered}, nil
}

// compareRows orders the rows of a gateway; only equal ones have the same place.
func compareServices(a, b gateway.Service) int {
	return cmp.Or(
		cmp.Compare(a.Port, b.Port),
		cmp.Compare(a.Service.Name, b.Service.Name),
		cmp.Compare(a.Service.Namespace, b.Service.Namespace),
		cmp.Compare(a.Service.Partition, b.Service.Partition),
	)
}

// withHidden returns the rows, and those of the last snapshot that ACLs hide from
// Usher's token since then. It recognizes these by the entry, which still names
// their services, and by their known chains. It leaves out the services of a
// wildcard, because these may not exist any more.
func (r *gatewayServices) withHidden(last *gateway.Snapshot, entry listenerServices) []gateway.Service {
	if !r.hidden || last == nil {
		return r.services
	}
	all := slices.Clone(r.services)
	for _, row := range last.Services {
		_, shown := slices.BinarySearchFunc(r.services, row, compareServices)
		if !shown && !row.FromWildcard && last.Chains[row.Service] != nil && entry.has(row) {
			all = append(all, row)
		}
	}
	slices.SortFunc(all, compareServices)
	return all
}

// rowOf returns the row for a service of a listener. It does not expand a wildcard.
func serviceOf(l gateway.Listener, s gateway.ListenerService) gateway.Service {
	return gateway.Service{
		Service:      gateway.ServiceName{Name: s.Name, Namespace: s.Namespace, Partition: s.Partition}.OmitDefaults(),
		Port:         l.Port,
		Protocol:     protocolOf(l.Protocol),
		Hosts:        s.Hosts,
		FromWildcard: s.Name == "*",
	}
}

// lists reports whether the rows contain the wanted service. For a wildcard it
// reports whether they contain any service on its port. A service without a
// namespace may be in the namespace of the gateway.
func containsService(rows []gateway.Service, want gateway.Service) bool {
	first := gateway.Service{Port: want.Port, Service: gateway.ServiceName{Name: want.Service.Name}}
	if want.FromWildcard {
		first.Service.Name = ""
	}
	i, _ := slices.BinarySearchFunc(rows, first, compareServices)
	for _, row := range rows[i:] {
		switch {
		case row.Port != want.Port || !want.FromWildcard && row.Service.Name != want.Service.Name:
			return false
		case protocolOf(row.Protocol) != want.Protocol:
		case want.FromWildcard, row.Service == want.Service, want.Service == first.Service:
			return true
		}
	}
	return false
}

// listing is what an entry lists, to be looked up.
type listenerServices map[listenerService]bool

// listed is a service on a listener of an entry; "*" is the name of a wildcard.
type listenerService struct {
	port     int
	protocol string
	service  gateway.ServiceName
}

func listenerServicesOf(e *gateway.Entry) listenerServices {
	out := listenerServices{}
	if e == nil {
		return out
	}
	for _, l := range e.Listeners {
		for _, s := range l.Services {
			name := gateway.ServiceName{Name: s.Name, Namespace: s.Namespace, Partition: s.Partition}.OmitDefaults()
			if s.Name == "*" {
				name = gateway.ServiceName{Name: "*"}
			}
			out[listenerService{l.Port, protocolOf(l.Protocol), name}] = true
		}
	}
	return out
}

// has says whether the entry has the listener and the service of the row. A
// service that names no namespace may be that of the gateway's own.
func (l listenerServices) has(row gateway.Service) bool {
	for _, name := range []gateway.ServiceName{row.Service, {Name: row.Service.Name}, {Name: "*"}} {
		if l[listenerService{row.Port, protocolOf(row.Protocol), name}] {
			return true
		}
	}
	return false
}

// protocolOf gives the protocol of a listener in one spelling; "" means tcp.
func protocolOf(s string) string { return strings.ToLower(cmp.Or(s, "tcp")) }

// chainKind reads a compiled discovery chain
// (https://developer.hashicorp.com/consul/api-docs/discovery-chain).
var chainType = &queryType{name: "discovery-chain", path: "/v1/discovery-chain/", decode: decodeAs(decodeChain)}

func chainQuery(service gateway.ServiceName) query {
	return query{
		queryType: chainType,
		name:      service.Name,
		namespace: gateway.OrDefault(service.Namespace),
		partition: gateway.OrDefault(service.Partition),
	}
}

// decodeChain keeps the targets that did not change.
func decodeChain(prev *gateway.Chain, a answer) (*gateway.Chain, error) {
	var out struct{ Chain *gateway.Chain }
	if err := json.Unmarshal(a.body, &out); err != nil {
		return nil, fmt.Errorf("discovery chain: %w", err)
	}
	if out.Chain == nil || out.Chain.Nodes[out.Chain.StartNode] == nil {
		return nil, errors.New("discovery chain: the answer has no start node")
	}
	if err := checkChain(out.Chain); err != nil {
		return nil, err
	}
	if prev != nil {
		for id, t := range out.Chain.Targets {
			out.Chain.Targets[id] = reuse(prev.Targets[id], t)
		}
	}
	return out.Chain, nil
}

// whole returns an error if a part of the chain is null that Consul always writes.
func checkChain(c *gateway.Chain) error {
	for id, t := range c.Targets {
		if t == nil {
			return fmt.Errorf("discovery chain: the target %q is null", id)
		}
	}
	for name, n := range c.Nodes {
		if n == nil || slices.Contains(n.Routes, nil) || slices.Contains(n.Splits, nil) {
			return fmt.Errorf("discovery chain: something of the node %q is null", name)
		}
	}
	return nil
}
