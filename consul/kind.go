package consul

import (
	"context"
	"fmt"

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
