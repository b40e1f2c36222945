package consul

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
)

// kindType reads the registered instances of a service that are ingress gateways. The leader answers: an Envoy connects a
// moment after its registration, which the other servers may not have yet.
var kindType = &queryType{
	name: "service-kind", path: "/v1/catalog/service/", leader: true,
	needs: "service:read on the service and node:read",
	decode: decodeList("instances", func(_ *bool, list []*struct{}, r response) (*bool, error) {
		if len(list) == 0 && r.filtered {
			return nil, errAllFiltered
		}
		isGateway := len(list) > 0
		return &isGateway, nil
	}),
}

// IsIngressGateway reports whether instances of the service are registered as an ingress gateway. It is an error if
// Consul does not answer, or if its ACLs hide what it has.
func (c *Client) IsIngressGateway(ctx context.Context, id gateway.ID) (bool, error) {
	q := serviceQuery(kindType, gateway.ServiceName(id))
	q.filter = `ServiceKind == "` + ingressGatewayKind + `"`
	r, err := c.query(ctx, q, 0, 0)
	c.metrics.queries.WithLabelValues(kindType.name, string(outcomeOf(err))).Inc()
	if err == nil {
		var is *bool
		if is, err = valueOf[bool](q, r); err == nil {
			return *is, nil
		}
	}
	return false, fmt.Errorf("the kind of service %s in Consul's catalog (consul at %s): %w", id, c.Address(), err)
}

// proxyType reads the registration of one proxy on a node. The leader answers, as for kindType.
var proxyType = &queryType{
	name: "proxy-registration", path: "/v1/catalog/node-services/", leader: true,
	needs:  "service:read on the service and node:read",
	decode: decodeJSON("the node's services", decodeProxies),
}

// Proxy is what Consul's catalog has of a proxy: a sidecar or a gateway.
type Proxy struct {
	Service string // its own service, such as web-sidecar-proxy
	Kind    string // such as ingress-gateway
}

type nodeServices struct {
	Node     *struct{ Node string }
	Services []*struct{ ID, Service, Kind string }
}

// proxiesOfNode are the proxies that a filter leaves of a node's, by ID.
type proxiesOfNode struct {
	node string
	byID map[string]Proxy
}

func decodeProxies(_ *proxiesOfNode, answer nodeServices, r response) (*proxiesOfNode, error) {
	if answer.Services == nil {
		return nil, unexpected("it has no list of services")
	}
	if len(answer.Services) == 0 && r.filtered {
		return nil, errAllFiltered
	}
	found := &proxiesOfNode{byID: map[string]Proxy{}}
	if answer.Node != nil {
		found.node = answer.Node.Node
	}
	for _, s := range answer.Services {
		if s == nil || s.ID == "" {
			return nil, unexpected("a service has no ID")
		}
		found.byID[s.ID] = Proxy{Service: s.Service, Kind: s.Kind}
	}
	return found, nil
}

// IsIngressGateway reports whether the proxy is one.
func (p Proxy) IsIngressGateway() bool { return p.Kind == ingressGatewayKind }

// errProxyID means that a service ID cannot be searched for.
var errProxyID = errors.New("a service ID with a backquote cannot be looked up; register the proxy with another ID")

// ProxyOn returns the proxy that is registered on a node with a service ID, as Consul looks for it when an Envoy connects.
// Its tenancy is that of the given gateway. It returns false if there is none. It is an error if Consul does not answer, or
// if its ACLs hide what it has.
func (c *Client) ProxyOn(ctx context.Context, node string, like gateway.ID, serviceID string) (p Proxy, ok bool, err error) {
	if strings.Contains(serviceID, "`") {
		return Proxy{}, false, errProxyID
	}
	name := gateway.ServiceName(like)
	name.Name = node
	q := serviceQuery(proxyType, name)
	q.filter = "ID == `" + serviceID + "`"
	r, err := c.query(ctx, q, 0, 0)
	c.metrics.queries.WithLabelValues(proxyType.name, string(outcomeOf(err))).Inc()
	if err == nil {
		var found *proxiesOfNode
		if found, err = valueOf[proxiesOfNode](q, r); err == nil {
			p, ok = found.byID[serviceID]
			// Consul decodes the name in the path once more than its gRPC API does: both have to mean the same node.
			return p, ok && strings.EqualFold(found.node, node), nil
		}
	}
	return Proxy{}, false, fmt.Errorf("the proxy %q on the node %q in Consul's catalog (consul at %s): %w", serviceID, node, c.Address(), err)
}
