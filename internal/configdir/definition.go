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

	proxyConfig proxyConfig // of Proxy, decoded
}

// connect is a definition's part for a service mesh, which file mode does not have.
type connect struct {
	Native         configtree.Refused   `why:"file mode has no mesh TLS, so it does not support connect.native"`
	SidecarService configtree.Forbidden `why:"file mode has no sidecars"`
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
func (c *config) definitionsFile(d *configtree.Decoder, root *yaml.Node) {
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
func (c *config) definition(file *configtree.Decoder, n *yaml.Node, path string) {
	e := &entry[definition]{root: configtree.Single(n), decoder: &configtree.Decoder{File: file.File}}
	defer func() { file.Problems = append(file.Problems, e.decoder.Problems...) }()
	e.spec.Weights = gateway.Weights{Passing: 1, Warning: 1}
	e.decoder.Object(e.root, path, &e.spec)
	if len(e.decoder.Problems) > 0 {
		return
	}
	e.name = cmp.Or(e.spec.ID, e.spec.Name)
	e.mark, _ = e.decoder.Locate(e.root, "Name")
	checkDefinition(e)
	switch other := named(c.definitions, e.name); {
	case len(e.decoder.Problems) > 0:
	case other.root != nil:
		e.addAtName("service ID %q is already given at %s; give one of the two another id", e.name, other.position())
	default:
		c.definitions = append(c.definitions, e)
	}
}

func checkDefinition(e *entry[definition]) {
	def := &e.spec
	e.onlyDefault(nil, def.Namespace, def.Partition)
	if def.Name == "" || def.Name == wildcard {
		e.add(steps("Name"), "%q is not the name of a service; give it one", def.Name)
	}
	checkWeight(e, "Passing", def.Weights.Passing, 1)
	checkWeight(e, "Warning", def.Weights.Warning, 0)
	switch def.Kind {
	case "":
		checkService(e)
	case kindIngressGateway:
		checkGateway(e)
	default:
		e.add(steps("Kind"), "%q is not supported in file mode, which reads plain services and %s; remove the definition",
			def.Kind, kindIngressGateway)
	}
}

func checkWeight(e *entry[definition], name string, weight, lowest int) {
	if weight < lowest || weight > 65535 {
		e.add(steps("Weights", name), "%d is not a weight; use %d to 65535", weight, lowest)
	}
}

// checkService checks an instance of a plain service.
func checkService(e *entry[definition]) {
	address, port := e.spec.Address, e.spec.Port
	switch {
	case address == "":
		e.add(steps("Address"), "the address is missing; add an IP address (file mode has no Consul node to take it from)")
	case !isIP(address):
		e.add(steps("Address"), "%q is not an IP address, and Envoy needs one; use the address that the name resolves to", address)
	case netip.MustParseAddr(address).IsUnspecified():
		e.add(steps("Address"), "%s is not an address to connect to; use the service's own", address)
	}
	if port < 1 || port > 65535 {
		e.add(steps("Port"), "%d is not a port; use one from 1 to 65535", port)
	}
	if e.spec.Proxy != nil {
		e.add(steps("Proxy"), "a plain service has no proxy in file mode; remove it")
	}
}

// checkGateway checks an instance of an ingress gateway, and decodes its proxy.config.
func checkGateway(e *entry[definition]) {
	def := &e.spec
	if def.Address != "" && !isIP(def.Address) {
		e.add(steps("Address"), "%q is not an IP address to listen on; use one, or none for all addresses", def.Address)
	}
	if def.Port < 0 || def.Port > 65535 {
		e.add(steps("Port"), "%d is not a port; use one up to 65535", def.Port)
	}
	if def.Proxy != nil {
		def.proxyConfig = e.proxyConfig(def.Proxy.Config, "Proxy", "Config")
	}
}

// endpoint returns the definition as an instance to connect to.
func (def *definition) endpoint(datacenter string) gateway.Endpoint {
	return gateway.Endpoint{
		NodeDatacenter: datacenter, Address: def.Address, Port: def.Port,
		TaggedAddresses: def.TaggedAddresses, Weights: def.Weights,
	}
}
