package consul

import (
	"context"
	"encoding/json"

	"github.com/usherproxy/usher/internal/gateway"
)

// catalogType reads the instances of a service as they are registered, without what the agent merges into them.
var catalogType = &queryType{name: "catalog", path: "/v1/catalog/service/", needs: "service:read on the gateway and node:read"}

// ProxyConfigs asks Consul once for the Proxy.Config of a gateway's instances, by service ID. It is as registered, so
// proxy-defaults is not part of it.
func (c *Client) ProxyConfigs(ctx context.Context, id gateway.ID) (map[string]map[string]any, error) {
	q := query{queryType: catalogType, name: id.Name, namespace: id.Namespace, partition: id.Partition}
	r, err := c.query(ctx, q, 0, 0)
	if err != nil {
		return nil, err
	}
	var instances []struct {
		ServiceID    string
		ServiceProxy struct{ Config map[string]any }
	}
	if err := json.Unmarshal(r.body, &instances); err != nil {
		return nil, unexpected(err.Error())
	}
	configs := map[string]map[string]any{}
	for _, in := range instances {
		configs[in.ServiceID] = in.ServiceProxy.Config
	}
	if len(configs) == 0 && r.filtered {
		return nil, errAllFiltered
	}
	return configs, nil
}
