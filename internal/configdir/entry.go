package configdir

import (
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// kindIngressGateway is the kind of a gateway's config entry and of its instances' definitions.
const kindIngressGateway = "ingress-gateway"

// kinds are the kinds of config entries that file mode reads, and what they are called as custom resources.
var kinds = []struct {
	entry, resource string
	read            func(*config, *configtree.Decoder, *yaml.Node)
}{
	{kindIngressGateway, "IngressGateway", func(c *config, d *configtree.Decoder, root *yaml.Node) {
		c.gateways = appendEntry(c.gateways, d, root, checkIngress)
	}},
	{"proxy-defaults", "ProxyDefaults", func(c *config, d *configtree.Decoder, root *yaml.Node) {
		c.proxies = appendEntry(c.proxies, d, root, checkProxyDefaults)
	}},
	{"service-defaults", "ServiceDefaults", func(c *config, d *configtree.Decoder, root *yaml.Node) {
		c.services = appendEntry(c.services, d, root, checkServiceDefaults)
	}},
	{"service-intentions", "ServiceIntentions", func(c *config, d *configtree.Decoder, root *yaml.Node) {
		c.intentions = appendEntry(c.intentions, d, root, checkIntentions)
	}},
}

// customAPI is the apiVersion of Consul's custom resources.
const customAPI = "consul.hashicorp.com/v1alpha1"

// head holds what every config entry has besides its own fields
// (https://developer.hashicorp.com/consul/docs/reference/config-entry).
type head struct {
	Kind, Name, Namespace, Partition string

	Meta, CreateIndex, ModifyIndex, Hash configtree.Ignored
}

// ingressGateway is an ingress-gateway config entry
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/ingress-gateway).
type ingressGateway struct {
	TLS       gateway.TLS
	Defaults  *gateway.Limits
	Listeners []gateway.Listener
}

// proxyDefaults is a proxy-defaults config entry
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/proxy-defaults).
type proxyDefaults struct {
	Config     *yaml.Node
	AccessLogs gateway.AccessLogs

	proxyConfig proxyConfig // Config, decoded

	Mode, TransparentProxy, Expose configtree.Refused `why:"file mode has no sidecars"`
	MutualTLSMode                  configtree.Refused `why:"file mode has no mesh TLS"`
	MeshGateway                    configtree.Refused `why:"file mode has one datacenter and no mesh gateways"`
	EnvoyExtensions                configtree.Refused `why:"Consul applies no Envoy extension to an ingress gateway"`
	FailoverPolicy                 configtree.Refused `why:"file mode has no failover"`
	PrioritizeByLocality           configtree.Refused `why:"file mode has no localities"`
}

// serviceDefaults is a service-defaults config entry
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/service-defaults).
type serviceDefaults struct {
	Protocol            string
	MaxRequestHeadersKB uint32 // of an ingress gateway only

	Mode, TransparentProxy, Expose, RateLimits, EnvoyExtensions configtree.Refused `why:"file mode has no sidecars"`
	MaxInboundConnections, BalanceInboundConnections            configtree.Refused `why:"file mode has no sidecars"`
	LocalConnectTimeoutMs, LocalRequestTimeoutMs                configtree.Refused `why:"file mode has no sidecars"`
	MutualTLSMode, ExternalSNI                                  configtree.Refused `why:"file mode has no mesh TLS"`
	MeshGateway                                                 configtree.Refused `why:"file mode has one datacenter and no mesh gateways"`
	UpstreamConfig                                              configtree.Refused `why:"Consul applies it to no ingress gateway; remove it, and set limits in the ingress-gateway entry"`
	Destination                                                 configtree.Refused `why:"file mode has no terminating gateways; remove it, and define the service with its addresses"`
}

// serviceIntentions is a service-intentions config entry
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/service-intentions).
type serviceIntentions struct {
	Sources []intentionSource

	JWT configtree.Refused `why:"file mode has no sidecar that could check tokens"`
}

type intentionSource struct {
	Name, Namespace, Partition, Action, Type string

	Peer, SamenessGroup  configtree.Refused `why:"file mode has no cluster peers"`
	Permissions          configtree.Refused `why:"file mode has no sidecar that could look into requests; give the source an action instead"`
	LegacyID, LegacyMeta configtree.Refused `why:"Consul does not accept it in a config entry"`

	Precedence, Description, LegacyCreateTime, LegacyUpdateTime configtree.Ignored
}

// entry is one config entry or service definition with its position.
type entry[T any] struct {
	name    string          // of a definition: its service ID
	mark    configtree.Mark // of the name
	root    *yaml.Node
	decoder *configtree.Decoder // of the document
	spec    T
}

// named returns the entry with a name, or an empty one.
func named[T any](entries []*entry[T], name string) *entry[T] {
	for _, e := range entries {
		if e.name == name {
			return e
		}
	}
	return &entry[T]{}
}

// position returns the position of the entry's name.
func (e *entry[T]) position() string { return configtree.At(e.decoder.File, e.mark.Line) }

// namePlace is position with the column.
func (e *entry[T]) namePlace() problem.Position {
	return problem.Position{File: e.decoder.File, Line: e.mark.Line, Column: e.mark.Column}
}

// addAtName adds a problem at the entry's name.
func (e *entry[T]) addAtName(format string, args ...any) { e.decoder.Add(e.mark, "", format, args...) }

// add adds a problem at the end of steps into the entry's own fields.
func (e *entry[T]) add(at []any, format string, args ...any) {
	mark, path := e.decoder.Locate(e.root, e.steps(at)...)
	e.decoder.Add(mark, path, format, args...)
}

// at returns the position of the end of steps into the entry's own fields.
func (e *entry[T]) at(steps ...any) string { return e.place(steps...).String() }

// place is at with the column.
func (e *entry[T]) place(steps ...any) problem.Position {
	mark, _ := e.decoder.Locate(e.root, e.steps(steps)...)
	return problem.Position{File: e.decoder.File, Line: mark.Line, Column: mark.Column}
}

// onlyDefault refuses the namespaces and partitions of Consul Enterprise other than the default ones.
func (e *entry[T]) onlyDefault(at []any, namespace, partition string) {
	for _, v := range []struct{ name, value string }{{"Namespace", namespace}, {"Partition", partition}} {
		if gateway.OmitDefault(v.value) != "" {
			e.add(join(at, v.name), "%q is not supported: file mode has no namespaces and partitions; remove it", v.value)
		}
	}
}

// steps returns steps from the root of the document.
func (e *entry[T]) steps(steps []any) []any {
	if e.decoder.Strict {
		return append([]any{"spec"}, steps...)
	}
	return steps
}

// steps joins what leads to a field (see configtree.Locate).
func steps(s ...any) []any { return s }

// entry reads a config entry, as `consul config write` takes it or as a custom resource.
func (c *config) entry(d *configtree.Decoder, root *yaml.Node) {
	key, _ := configtree.Get(root, "kind")
	kind := configtree.Text(root, "kind")
	var names []string
	for _, k := range kinds {
		name := k.entry
		if d.Strict {
			name = k.resource
		}
		if name == kind {
			k.read(c, d, root)
			return
		}
		names = append(names, name)
	}
	d.Add(configtree.MarkOf(key), key.Value, "%q is not supported in file mode, which reads %s; remove the entry", kind, strings.Join(names, ", "))
}

// appendEntry appends the entry in root, unless it has a problem or the name of an earlier one.
func appendEntry[T any](earlier []*entry[T], d *configtree.Decoder, root *yaml.Node, check func(*entry[T])) []*entry[T] {
	e := &entry[T]{root: root, decoder: d}
	if d.Strict {
		e.readCustomResource()
	} else {
		e.readConfigEntry()
	}
	switch other := named(earlier, e.name); {
	case len(d.Problems) > 0:
	case e.name == "":
		e.addAtName("this entry has no name; give it one")
	case other.root != nil:
		e.addAtName("%q is already given at %s; remove one of the two", e.name, other.position())
	default:
		check(e)
		return append(earlier, e)
	}
	return earlier
}

// readConfigEntry decodes an entry as `consul config write` takes it.
func (e *entry[T]) readConfigEntry() {
	var h head
	e.decoder.Object(e.root, "", &h, &e.spec)
	e.onlyDefault(nil, h.Namespace, h.Partition)
	e.name = h.Name
	e.mark, _ = e.decoder.Locate(e.root, "Name")
}

// readCustomResource decodes an entry as Kubernetes has it.
func (e *entry[T]) readCustomResource() {
	d := e.decoder
	var r struct {
		APIVersion, Kind string
		Metadata, Spec   *yaml.Node

		Status configtree.Ignored
	}
	d.Object(e.root, "", &r)
	if r.Spec == nil {
		d.Add(configtree.MarkOf(e.root), "spec", "this resource has no spec; add one")
		return
	}
	if _, ok := any(&e.spec).(*serviceIntentions); !ok {
		d.Object(r.Spec, "spec", &e.spec)
		e.name = configtree.Text(r.Metadata, "name")
		e.mark, _ = d.Locate(e.root, "metadata", "name")
		return
	}
	// The entry has the name of its destination, and not that of the resource.
	var own struct {
		Destination struct{ Name, Namespace, Partition string }
	}
	d.Object(r.Spec, "spec", &own, &e.spec)
	e.onlyDefault(steps("Destination"), own.Destination.Namespace, own.Destination.Partition)
	e.name = own.Destination.Name
	e.mark, _ = d.Locate(e.root, "spec", "Destination", "Name")
}

// resource reads a config entry that is written as a custom resource.
func (c *config) resource(d *configtree.Decoder, root *yaml.Node) {
	version, value := configtree.Get(root, "apiVersion")
	kind, _ := configtree.Get(root, "kind")
	d.Strict = true
	switch {
	case configtree.Text(root, "apiVersion") != customAPI:
		d.Add(configtree.MarkOf(version), "apiVersion", "%s is not read in file mode; use %s resources, "+
			"and define services in HCL or JSON: service { name, address, port }",
			configtree.Describe(value), customAPI)
	case kind == nil:
		d.Add(configtree.MarkOf(root), "", "this resource has no kind; add one")
	default:
		c.entry(d, root)
	}
}
