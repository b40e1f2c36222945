package consul

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/usherproxy/usher/internal/gateway"
)

// The reads of instances with their health
// (https://developer.hashicorp.com/consul/api-docs/health#list-service-instances-for-service).
var (
	// healthKind reads the instances of a mesh service, each through its
	// sidecar.
	healthType = &queryType{name: "health", path: "/v1/health/connect/", decode: decodeAs(decodeEndpoints)}
	// meshGatewayKind reads the instances of one mesh gateway.
	meshGatewayType = &queryType{name: "mesh-gateway", path: "/v1/health/service/", decode: decodeAs(decodeEndpoints)}
	// meshGatewaysKind reads the names of a datacenter's mesh gateways.
	meshGatewayNamesType = &queryType{name: "mesh-gateways", path: "/v1/catalog/services", decode: decodeAs(decodeNames)}
)

// healthOf is the query for the instances of a target; local is the local
// datacenter, which is left out so that equal questions are equal.
func healthQuery(t *gateway.Target, local string) query {
	q := query{
		queryType:  healthType,
		name:       t.Service,
		namespace:  gateway.OrDefault(t.Namespace),
		partition:  gateway.OrDefault(t.Partition),
		datacenter: t.Datacenter,
		peer:       t.Peer,
		filter:     t.Subset.Filter,
	}
	if q.datacenter == local {
		q.datacenter = ""
	}
	return q
}

// registration is one instance in an answer of the health endpoints.
type registration struct {
	Node struct {
		Node            string
		Partition       string
		Address         string
		Datacenter      string
		TaggedAddresses map[string]string
	}
	Service struct {
		Kind            string
		ID              string
		Address         string
		Port            int
		TaggedAddresses map[string]gateway.Address
		Meta            struct {
			KubernetesNamespace string `json:"k8s-namespace"`
			KubernetesService   string `json:"k8s-service-name"`
		}
		Weights gateway.Weights
		Connect struct{ PeerMeta *gateway.PeerMeta }
		Proxy   struct {
			Config     map[string]any
			AccessLogs gateway.AccessLogs
		}
	}
	Checks []struct{ Status string }
}

func decodeRegistrations(a answer) ([]*registration, error) {
	list, err := decodeList[registration]("instances", a)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 && a.filtered {
		return nil, errHidden
	}
	for _, r := range list {
		if r.Node.Node == "" && r.Node.Address == "" {
			return nil, errors.New("instances: one has no node")
		}
	}
	return list, nil
}

func decodeEndpoints(_ *gateway.Endpoints, a answer) (*gateway.Endpoints, error) {
	list, err := decodeRegistrations(a)
	if err != nil {
		return nil, err
	}
	e := &gateway.Endpoints{Endpoints: make([]gateway.Endpoint, len(list))}
	for i, r := range list {
		e.Endpoints[i] = r.endpoint()
	}
	sortEndpoints(e.Endpoints)
	return e, nil
}

func (r *registration) endpoint() gateway.Endpoint {
	return gateway.Endpoint{
		NodeDatacenter:  r.Node.Datacenter,
		NodePartition:   gateway.OmitDefault(r.Node.Partition),
		NodeAddress:     r.Node.Address,
		NodeWANAddress:  r.Node.TaggedAddresses["wan"],
		Address:         r.Service.Address,
		Port:            r.Service.Port,
		TaggedAddresses: r.Service.TaggedAddresses,
		Status:          r.status(),
		Weights:         r.Service.Weights,
		Peer:            r.Service.Connect.PeerMeta,
	}
}

// status gives the worst status among the checks; a check whose status is
// unknown counts as passing, as it does for Consul's own proxies.
func (r *registration) status() gateway.Status {
	worst := gateway.Passing
	for _, c := range r.Checks {
		switch c.Status {
		case "warning":
			worst = max(worst, gateway.Warning)
		case "critical":
			worst = max(worst, gateway.Critical)
		}
	}
	return worst
}

// sortEndpoints makes the order independent of Consul's, which has no meaning.
func sortEndpoints(list []gateway.Endpoint) {
	slices.SortStableFunc(list, func(a, b gateway.Endpoint) int {
		return cmp.Or(
			cmp.Compare(cmp.Or(a.Address, a.NodeAddress), cmp.Or(b.Address, b.NodeAddress)),
			cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.NodeDatacenter, b.NodeDatacenter),
			cmp.Compare(a.NodeAddress, b.NodeAddress),
			cmp.Compare(a.Status, b.Status),
		)
	})
}

// names are the names of services, sorted.
type names struct {
	list []string
}

func decodeNames(_ *names, a answer) (*names, error) {
	var tags map[string]json.RawMessage
	if err := json.Unmarshal(a.body, &tags); err != nil {
		return nil, fmt.Errorf("services: %w", err)
	}
	if tags == nil {
		return nil, errors.New("services: the answer is null")
	}
	if len(tags) == 0 && a.filtered {
		return nil, errHidden
	}
	return &names{list: slices.Sorted(maps.Keys(tags))}, nil
}
