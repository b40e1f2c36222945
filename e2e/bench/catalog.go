//go:build e2e

package main

import (
	"context"
	"fmt"
	"sync"
)

// The gateway, and the node that its instances are on.
const (
	gatewayName = "ingress-gateway"
	gatewayNode = "edge"
)

const (
	// perNode is how many services share a node.
	perNode = 20
	// firstPort is the port of every endpoint at first. No port comes twice.
	firstPort = 20000
	// writers write at the same time when much is written.
	writers = 8
)

// catalog is what the bench has written to Consul.
type catalog struct {
	consul *consulServer
	ports  []int // of each service's endpoint
	envoys int   // instances of the gateway
}

func serviceName(i int) string { return fmt.Sprintf("svc%05d", i) }

func instanceID(i int) string { return fmt.Sprintf("%s-%d", gatewayName, i) }

// instanceIDs returns the instances from one to before another.
func instanceIDs(from, to int) []string {
	var ids []string
	for i := from; i < to; i++ {
		ids = append(ids, instanceID(i))
	}
	return ids
}

// grow registers services and instances until there are so many, and puts all
// services on the gateway's listener.
func (c *catalog) grow(ctx context.Context, services, envoys int) error {
	if err := c.writeDefaults(ctx, "%START_TIME%"); err != nil {
		return err
	}
	had := len(c.ports)
	for len(c.ports) < services {
		c.ports = append(c.ports, firstPort)
	}
	err := inParallel(len(c.ports)-had, func(i int) error { return c.writeEndpoint(ctx, had+i) })
	if err != nil {
		return err
	}
	err = inParallel(max(0, envoys-c.envoys), func(i int) error { return c.writeInstance(ctx, c.envoys+i) })
	if err != nil {
		return err
	}
	c.envoys = max(c.envoys, envoys)
	return c.writeEntry(ctx, "")
}

// flip gives the endpoint of a service another port, and returns its sign.
func (c *catalog) flip(i int) sign {
	c.ports[i]++
	return portSign(serviceName(i), c.ports[i])
}

// writeEndpoint registers the sidecar of a service.
func (c *catalog) writeEndpoint(ctx context.Context, i int) error {
	name := serviceName(i)
	return c.consul.put(ctx, "/v1/catalog/register", map[string]any{
		"Node": fmt.Sprintf("node%04d", i/perNode), "Address": fmt.Sprintf("10.0.%d.%d", i/perNode/250, 1+i/perNode%250),
		"Service": map[string]any{
			"Kind": "connect-proxy", "ID": name + "-sidecar-proxy", "Service": name + "-sidecar-proxy",
			"Address": fmt.Sprintf("10.%d.%d.%d", 1+i/62500, i/250%250, 1+i%250), "Port": c.ports[i],
			"Proxy": map[string]any{"DestinationServiceName": name},
		},
	})
}

// writeInstance registers an instance of the gateway.
func (c *catalog) writeInstance(ctx context.Context, i int) error {
	return c.writeAddress(ctx, instanceID(i), fmt.Sprintf("10.255.%d.%d", 1+i/250, 1+i%250))
}

// writeAddress registers an instance of the gateway that binds the address.
func (c *catalog) writeAddress(ctx context.Context, id, address string) error {
	return c.consul.put(ctx, "/v1/catalog/register", map[string]any{
		"Node": gatewayNode, "Address": "10.255.0.1",
		"Service": map[string]any{
			"Kind": "ingress-gateway", "ID": id, "Service": gatewayName, "Address": address, "Port": 8443,
		},
	})
}

// writeEntry writes the gateway's config entry; the first service has one more
// host unless it is empty.
func (c *catalog) writeEntry(ctx context.Context, host string) error {
	services := make([]map[string]any, len(c.ports))
	for i := range c.ports {
		hosts := []string{serviceName(i) + ".example.com"}
		if i == 0 && host != "" {
			hosts = append(hosts, host)
		}
		services[i] = map[string]any{"Name": serviceName(i), "Hosts": hosts}
	}
	return c.consul.put(ctx, "/v1/config", map[string]any{
		"Kind": "ingress-gateway", "Name": gatewayName,
		"Listeners": []map[string]any{{"Port": 8080, "Protocol": "http", "Services": services}},
	})
}

// writeRouter writes a route of a service by a prefix.
func (c *catalog) writeRouter(ctx context.Context, i int, prefix string) error {
	return c.consul.put(ctx, "/v1/config", map[string]any{
		"Kind": "service-router", "Name": serviceName(i),
		"Routes": []map[string]any{{
			"Match":       map[string]any{"HTTP": map[string]any{"PathPrefix": prefix}},
			"Destination": map[string]any{"PrefixRewrite": "/"},
		}},
	})
}

// writeDefaults writes proxy-defaults with a format of the access log.
func (c *catalog) writeDefaults(ctx context.Context, format string) error {
	return c.consul.put(ctx, "/v1/config", map[string]any{
		"Kind": "proxy-defaults", "Name": "global", "Config": map[string]any{"protocol": "http"},
		"AccessLogs": map[string]any{"Enabled": true, "TextFormat": format},
	})
}

// rotate makes Consul sign with a new root, whose key has so many bits.
func (c *catalog) rotate(ctx context.Context, bits int) error {
	return c.consul.put(ctx, "/v1/connect/ca/configuration", map[string]any{
		"Provider": "consul", "Config": map[string]any{"PrivateKeyType": "ec", "PrivateKeyBits": bits, "LeafCertTTL": "72h"},
	})
}

// inParallel calls f for 0 to n-1. A writer has every writers-th of them, in
// order, and its first error ends it.
func inParallel(n int, f func(i int) error) error {
	errs := make(chan error, writers)
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := w; i < n; i += writers {
				if err := f(i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	return <-errs
}
