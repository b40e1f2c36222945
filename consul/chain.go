package consul

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/usherproxy/usher/internal/gateway"
)

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
