package configdir

import (
	"net/netip"

	"github.com/usherproxy/usher/internal/gateway"
)

// definition is a service definition as a Consul agent reads it
// (https://developer.hashicorp.com/consul/docs/reference/service).
type definition struct {
	ID, Name, Kind, Address string
	Namespace, Partition    string
	Port                    int
	TaggedAddresses         map[string]gateway.Address
	Weights                 *weights
	Proxy                   *proxy
	Connect                 *connect

	Tags, Meta, EnableTagOverride ignored

	Check      refused `why:"file mode runs no health checks, and every instance counts as passing"`
	Checks     refused `why:"file mode runs no health checks, and every instance counts as passing"`
	Token      refused `why:"file mode asks no Consul"`
	SocketPath refused `why:"file mode reaches services at an IP address and port"`
	Ports      refused `why:"file mode takes one port for each instance; use port"`
	Locality   refused `why:"file mode knows no localities"`

	root *node
	at   place // of its name
	own  opaque
}

// weights share the load among the instances of a service; nil means 1.
type weights struct {
	Passing *int
	Warning *int
}

// connect is what a definition says of the mesh, which is not there.
type connect struct {
	Native         refused   `why:"upstreams are plain in file mode"`
	SidecarService forbidden `why:"upstreams are plain in file mode, and it has no sidecars"`
}

// proxy is what a definition of an ingress gateway says of its Envoy.
type proxy struct {
	Config *node

	DestinationServiceName, DestinationServiceID             refused `why:"an ingress gateway has no destination"`
	LocalServiceAddress, LocalServicePort                    refused `why:"an ingress gateway has no local service"`
	LocalServiceSocketPath                                   refused `why:"an ingress gateway has no local service"`
	Mode, TransparentProxy, Upstreams, Expose, MutualTLSMode refused `why:"an ingress gateway has no sidecar's settings"`
	MeshGateway                                              refused `why:"file mode has one datacenter and no mesh gateways"`
	AccessLogs                                               refused `why:"access logs are set in the proxy-defaults entry"`
	EnvoyExtensions                                          refused `why:"Consul applies no Envoy extension to an ingress gateway"`
}

// definitions reads an agent's file of service definitions.
func (c *config) definitions(root *node) {
	d := &decoder{}
	var file struct{ Service, Services *node }
	d.object(root, "", &file)
	c.eachDefinition(d, file.Service, "service")
	c.eachDefinition(d, file.Services, "services")
	c.problems = append(c.problems, d.problems...)
}

func (c *config) eachDefinition(d *decoder, n *node, path string) {
	if n == nil {
		return
	}
	items := []*node{n}
	if n.kind == list {
		items = n.items
	}
	for _, item := range items {
		one := decoder{}
		if def := one.definition(item, path); len(one.problems) == 0 {
			c.addDefinition(&one, def)
		}
		d.problems = append(d.problems, one.problems...)
	}
}

// addDefinition keeps def, unless its ID is taken.
func (c *config) addDefinition(d *decoder, def *definition) {
	for _, other := range c.defs {
		if other.ID == def.ID {
			d.add(def.at, "", "service ID %q is already given at %s; give one of the two an id of its own", def.ID, other.at)
			return
		}
	}
	c.defs = append(c.defs, def)
}

// definition decodes and checks one service definition.
func (d *decoder) definition(n *node, path string) *definition {
	def := &definition{}
	d.object(n, path, def)
	if len(d.problems) > 0 {
		return def
	}
	def.root = n.single()
	def.at, _ = def.root.locate(snake, "Name")
	d.onlyDefault(def.root, nil, def.Namespace, def.Partition)
	if def.Name == "" || def.Name == wildcard {
		d.problem(def.root, steps("Name"), "%q is not a service's name; give it one", def.Name)
	}
	if def.ID == "" {
		def.ID = def.Name
	}
	d.weights(def)
	switch def.Kind {
	case "":
		d.instance(def)
	case kindIngressGateway:
		d.gatewayInstance(def)
	default:
		d.problem(def.root, steps("Kind"), "%q is not honoured in file mode, which reads plain services and %s; remove the definition",
			def.Kind, kindIngressGateway)
	}
	return def
}

// instance checks an instance of a plain service.
func (d *decoder) instance(def *definition) {
	switch ip, err := netip.ParseAddr(def.Address); {
	case def.Address == "":
		d.problem(def.root, steps("Address"), "the address is missing, and file mode knows no node to take it from; add an IP address")
	case err != nil:
		d.problem(def.root, steps("Address"), "%q is not an IP address, and Envoy gets endpoints only as such; use the address the name stands for", def.Address)
	case ip.IsUnspecified():
		d.problem(def.root, steps("Address"), "%s is not an address to connect to; use the service's own", def.Address)
	}
	if def.Port < 1 || def.Port > 65535 {
		d.problem(def.root, steps("Port"), "%d is not a port; use one from 1 to 65535", def.Port)
	}
	if def.Proxy != nil {
		d.problem(def.root, steps("Proxy"), "a plain service has no proxy in file mode; remove it")
	}
}

// gatewayInstance checks an instance of an ingress gateway.
func (d *decoder) gatewayInstance(def *definition) {
	if _, err := netip.ParseAddr(def.Address); err != nil && def.Address != "" {
		d.problem(def.root, steps("Address"), "%q is not an IP address to listen on; use one, or none for all addresses", def.Address)
	}
	if def.Port < 0 || def.Port > 65535 {
		d.problem(def.root, steps("Port"), "%d is not a port; use one up to 65535", def.Port)
	}
	if def.Proxy != nil {
		_, path := def.root.locate(snake, "Proxy", "Config")
		def.own = d.opaqueConfig(def.Proxy.Config, path)
	}
}

func (d *decoder) weights(def *definition) {
	if def.Weights == nil {
		return
	}
	for _, w := range []struct {
		name   string
		value  *int
		lowest int
	}{{"Passing", def.Weights.Passing, 1}, {"Warning", def.Weights.Warning, 0}} {
		if w.value != nil && (*w.value < w.lowest || *w.value > 65535) {
			d.problem(def.root, steps("Weights", w.name), "%d is not a weight; use %d to 65535", *w.value, w.lowest)
		}
	}
}

// endpoint gives the definition as an instance to connect to.
func (def *definition) endpoint(datacenter string) gateway.Endpoint {
	w := gateway.Weights{Passing: 1, Warning: 1}
	if def.Weights != nil && def.Weights.Passing != nil {
		w.Passing = *def.Weights.Passing
	}
	if def.Weights != nil && def.Weights.Warning != nil {
		w.Warning = *def.Weights.Warning
	}
	return gateway.Endpoint{
		NodeDatacenter:  datacenter,
		Address:         def.Address,
		Port:            def.Port,
		TaggedAddresses: def.TaggedAddresses,
		Weights:         w,
	}
}
