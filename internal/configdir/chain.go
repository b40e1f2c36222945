package configdir

import (
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// trustDomain stands where a mesh has its own in the names of clusters. It
// ends in "consul", for the stat tags of Consul's bootstraps are found by it.
const trustDomain = "files.consul"

// connectTimeout is Consul's default for connections to instances.
const connectTimeout = gateway.Duration(5 * time.Second)

// targetID names the one target of a service's chain, as Consul does.
func targetID(service, datacenter string) string {
	return service + ".default.default." + datacenter
}

// defaultChain gives the chain that Consul compiles for a service without a
// router, splitter or resolver.
func defaultChain(service, datacenter, protocol string) *gateway.Chain {
	id := targetID(service, datacenter)
	name := service + ".default." + datacenter + ".internal." + trustDomain
	start := gateway.NodeResolver + ":" + id
	return &gateway.Chain{
		ServiceName: service,
		Namespace:   gateway.DefaultTenancy,
		Partition:   gateway.DefaultTenancy,
		Datacenter:  datacenter,
		Protocol:    protocol,
		Default:     true,
		StartNode:   start,
		Nodes: map[string]*gateway.ChainNode{start: {
			Type:     gateway.NodeResolver,
			Name:     id,
			Resolver: &gateway.Resolver{Default: true, ConnectTimeout: connectTimeout, Target: id},
		}},
		Targets: map[string]*gateway.Target{id: {
			ID:             id,
			Service:        service,
			Namespace:      gateway.DefaultTenancy,
			Partition:      gateway.DefaultTenancy,
			Datacenter:     datacenter,
			ConnectTimeout: connectTimeout,
			SNI:            name,
			Name:           name,
		}},
	}
}
