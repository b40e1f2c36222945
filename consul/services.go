package consul

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/usherproxy/usher/gateway"
)

// rowsKind reads the services of a gateway, wildcards expanded
// (https://developer.hashicorp.com/consul/api-docs/catalog#list-services-for-gateway).
var rowsKind = &kind{name: "gateway-services", path: "/v1/catalog/gateway-services/", decode: decoding(decodeRows)}

// rows are the services of a gateway.
type rows struct {
	services []gateway.Service
	// hidden says that Consul's ACLs left services out.
	hidden bool
}

func decodeRows(_ *rows, a answer) (*rows, error) {
	var list []gateway.Service
	if err := json.Unmarshal(a.body, &list); err != nil {
		return nil, fmt.Errorf("gateway services: %w", err)
	}
	if len(list) == 0 && a.filtered {
		return nil, errHidden
	}
	for i := range list {
		list[i].Service = normal(list[i].Service)
		list[i].Protocol = strings.ToLower(list[i].Protocol)
	}
	slices.SortFunc(list, compareRows)
	return &rows{services: list, hidden: a.filtered}, nil
}

// compareRows orders the rows of a gateway; only equal ones have the same place.
func compareRows(a, b gateway.Service) int {
	return cmp.Or(
		cmp.Compare(a.Port, b.Port),
		cmp.Compare(a.Service.Name, b.Service.Name),
		cmp.Compare(a.Service.Namespace, b.Service.Namespace),
		cmp.Compare(a.Service.Partition, b.Service.Partition),
	)
}

// withHidden gives the rows and those of last that the ACLs have taken away from
// Usher's token since: the entry still names their services. Services that a
// wildcard found may be gone for good.
func (r *rows) withHidden(last []gateway.Service, entry *gateway.Entry) []gateway.Service {
	if !r.hidden {
		return r.services
	}
	all := slices.Clone(r.services)
	for _, row := range last {
		if _, shown := slices.BinarySearchFunc(r.services, row, compareRows); !shown && !row.FromWildcard && listed(entry, row) {
			all = append(all, row)
		}
	}
	slices.SortFunc(all, compareRows)
	return all
}

// normal writes the default namespace and partition as empty, as the model has
// them.
func normal(n gateway.ServiceName) gateway.ServiceName {
	if n.Namespace == defaultScope {
		n.Namespace = ""
	}
	if n.Partition == defaultScope {
		n.Partition = ""
	}
	return n
}

// absolute writes the default namespace or partition of a name that Consul gave
// in full, so that the client's own does not take its place.
func absolute(scope string) string {
	if scope == "" {
		return defaultScope
	}
	return scope
}

// listed says whether the entry has the listener and the service of the row.
func listed(e *gateway.Entry, row gateway.Service) bool {
	if e == nil {
		return false
	}
	for _, l := range e.Listeners {
		if l.Port != row.Port || !sameProtocol(l.Protocol, row.Protocol) {
			continue
		}
		return slices.ContainsFunc(l.Services, func(s gateway.ListenerService) bool {
			return s.Name == "*" || normal(gateway.ServiceName{Name: s.Name, Namespace: s.Namespace, Partition: s.Partition}) == row.Service ||
				s.Name == row.Service.Name && s.Namespace == "" && s.Partition == ""
		})
	}
	return false
}

// sameProtocol compares protocols of listeners, of which "" means tcp.
func sameProtocol(a, b string) bool {
	return strings.EqualFold(cmp.Or(a, "tcp"), cmp.Or(b, "tcp"))
}
