package configdir

import (
	"cmp"
	"net/netip"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
	"github.com/usherproxy/usher/internal/gateway"
)

// definition is a service definition as a Consul agent reads it
// (https://developer.hashicorp.com/consul/docs/reference/service).
type definition struct {
	ID, Name, Kind, Address string
	Namespace, Partition    string
	Port                    int
	TaggedAddresses         map[string]gateway.Address
	Weights                 gateway.Weights
	Proxy                   *proxy
	Connect                 *connect

	Tags, Meta, EnableTagOverride configtree.Ignored

	Check, Checks configtree.Refused `why:"file mode runs no health checks, and every instance counts as passing"`
	Token         configtree.Refused `why:"file mode uses no Consul"`
	SocketPath    configtree.Refused `why:"file mode reaches services at an IP address and port"`
	Ports         configtree.Refused `why:"file mode takes one port for each instance; use port"`
	Locality      configtree.Refused `why:"file mode has no localities"`

	position    string // of its name
	proxyConfig proxyConfig
}

// connect is a definition's part for a service mesh, which file mode does not have.
type connect struct {
	Native         configtree.Refused   `why:"upstreams are plain in file mode"`
	SidecarService configtree.Forbidden `why:"upstreams are plain in file mode, and it has no sidecars"`
}

// proxy is the part of an ingress gateway's definition for its Envoy.
type proxy struct {
	Config *yaml.Node

	DestinationServiceName, DestinationServiceID                  configtree.Refused `why:"an ingress gateway has no destination"`
	LocalServiceAddress, LocalServicePort, LocalServiceSocketPath configtree.Refused `why:"an ingress gateway has no local service"`
	Mode, TransparentProxy, Upstreams, Expose, MutualTLSMode      configtree.Refused `why:"an ingress gateway has no sidecar's settings"`
	MeshGateway                                                   configtree.Refused `why:"file mode has one datacenter and no mesh gateways"`
	AccessLogs                                                    configtree.Refused `why:"access logs are set in the proxy-defaults entry"`
	EnvoyExtensions                                               configtree.Refused `why:"Consul applies no Envoy extension to an ingress gateway"`
}

// definitionsFile reads an agent's file of service definitions.
func (c *config) definitionsFile(d *decoder, root *yaml.Node) {
	var file struct{ Service, Services *yaml.Node }
	d.Object(root, "", &file)
	for _, n := range configtree.Elements(file.Service) {
		c.definition(d, n, "service")
	}
	for _, n := range configtree.Elements(file.Services) {
		c.definition(d, n, "services")
	}
}

// definition reads a service definition. It keeps it unless it has a problem or the ID of an earlier one.
func (c *config) definition(file *decoder, n *yaml.Node, path string) {
	d := newDecoder(file.File)
	defer func() { file.Problems = append(file.Problems, d.Problems...) }()
	def := &definition{Weights: gateway.Weights{Passing: 1, Warning: 1}}
	n = configtree.Single(n)
	d.Object(n, path, def)
	if len(d.Problems) > 0 {
		return
	}
	line, _ := d.Locate(n, "Name")
	def.position = configtree.At(d.File, line)
	def.ID = cmp.Or(def.ID, def.Name)
	d.checkDefinition(n, def)
	if len(d.Problems) > 0 {
		return
	}
	for _, other := range c.definitions {
		if other.ID == def.ID {
			d.Add(line, "", "service ID %q is already given at %s; give one of the two an id of its own", def.ID, other.position)
			return
		}
	}
	c.definitions = append(c.definitions, def)
}

func (d *decoder) checkDefinition(n *yaml.Node, def *definition) {
	d.onlyDefault(n, nil, def.Namespace, def.Partition)
	if def.Name == "" || def.Name == wildcard {
		d.AddAt(n, steps("Name"), "%q is not the name of a service; give it one", def.Name)
	}
	d.checkWeight(n, "Passing", def.Weights.Passing, 1)
	d.checkWeight(n, "Warning", def.Weights.Warning, 0)
	switch def.Kind {
	case "":
		d.checkService(n, def)
	case kindIngressGateway:
		d.checkGateway(n, def)
	default:
		d.AddAt(n, steps("Kind"), "%q is not supported in file mode, which reads plain services and %s; remove the definition",
			def.Kind, kindIngressGateway)
	}
}

func (d *decoder) checkWeight(n *yaml.Node, name string, weight, lowest int) {
	if weight < lowest || weight > 65535 {
		d.AddAt(n, steps("Weights", name), "%d is not a weight; use %d to 65535", weight, lowest)
	}
}

// checkService checks an instance of a plain service.
func (d *decoder) checkService(n *yaml.Node, def *definition) {
	switch {
	case def.Address == "":
		d.AddAt(n, steps("Address"), "the address is missing; add an IP address, because file mode has no node that has one")
	case !isIP(def.Address):
		d.AddAt(n, steps("Address"), "%q is not an IP address, and Envoy needs one; use the address that the name resolves to", def.Address)
	case netip.MustParseAddr(def.Address).IsUnspecified():
		d.AddAt(n, steps("Address"), "%s is not an address to connect to; use the service's own", def.Address)
	}
	if def.Port < 1 || def.Port > 65535 {
		d.AddAt(n, steps("Port"), "%d is not a port; use one from 1 to 65535", def.Port)
	}
	if def.Proxy != nil {
		d.AddAt(n, steps("Proxy"), "a plain service has no proxy in file mode; remove it")
	}
}

// checkGateway checks an instance of an ingress gateway, and decodes its proxy.config.
func (d *decoder) checkGateway(n *yaml.Node, def *definition) {
	if def.Address != "" && !isIP(def.Address) {
		d.AddAt(n, steps("Address"), "%q is not an IP address to listen on; use one, or none for all addresses", def.Address)
	}
	if def.Port < 0 || def.Port > 65535 {
		d.AddAt(n, steps("Port"), "%d is not a port; use one up to 65535", def.Port)
	}
	if def.Proxy != nil {
		def.proxyConfig = d.proxyConfig(def.Proxy.Config, n, "Proxy", "Config")
	}
}

// endpoint returns the definition as an instance to connect to.
func (def *definition) endpoint(datacenter string) gateway.Endpoint {
	return gateway.Endpoint{
		NodeDatacenter:  datacenter,
		Address:         def.Address,
		Port:            def.Port,
		TaggedAddresses: def.TaggedAddresses,
		Weights:         def.Weights,
	}
}
