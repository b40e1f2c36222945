package configdir

import (
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
	"github.com/usherproxy/usher/internal/gateway"
)

// The kinds of config entries that file mode reads.
const (
	kindIngressGateway = "ingress-gateway"
	kindProxyDefaults  = "proxy-defaults"
	kindDefaults       = "service-defaults"
	kindIntentions     = "service-intentions"
)

// kinds maps the kinds of Consul's custom resources to those of its config entries.
var kinds = map[string]string{
	"IngressGateway":    kindIngressGateway,
	"ProxyDefaults":     kindProxyDefaults,
	"ServiceDefaults":   kindDefaults,
	"ServiceIntentions": kindIntentions,
}

// customAPI is the apiVersion of Consul's custom resources.
const customAPI = "consul.hashicorp.com/v1alpha1"

// head holds what every config entry has beside its own fields
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
	MutualTLSMode                  configtree.Refused `why:"upstreams are plain in file mode"`
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
	MutualTLSMode, ExternalSNI                                  configtree.Refused `why:"upstreams are plain in file mode"`
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

// entry is one config entry with its position.
type entry[T any] struct {
	name    string
	line    int // of the name
	root    *yaml.Node
	decoder *decoder // of the document
	spec    T
}

// addAtName adds a problem at the entry's name.
func (e *entry[T]) addAtName(format string, args ...any) {
	e.decoder.Add(e.line, "", format, args...)
}

// add adds a problem at the end of steps into the entry's own fields.
func (e *entry[T]) add(steps []any, format string, args ...any) {
	e.decoder.AddAt(e.root, e.steps(steps), format, args...)
}

// at returns the position of the end of steps into the entry's own fields.
func (e *entry[T]) at(steps ...any) string {
	line, _ := e.decoder.Locate(e.root, e.steps(steps)...)
	return configtree.At(e.decoder.File, line)
}

// onlyDefault is decoder.onlyDefault for the end of steps into the entry's own fields.
func (e *entry[T]) onlyDefault(steps []any, namespace, partition string) {
	e.decoder.onlyDefault(e.root, e.steps(steps), namespace, partition)
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

// entry reads a config entry, as `consul config write` takes it or as a custom resource. It reports whether file mode
// reads the kind.
func (c *config) entry(d *decoder, kind string, root *yaml.Node) bool {
	switch kind {
	case kindIngressGateway:
		c.gateways = appendEntry(c.gateways, d, root, checkIngress)
	case kindProxyDefaults:
		c.proxies = appendEntry(c.proxies, d, root, checkProxyDefaults)
	case kindDefaults:
		c.services = appendEntry(c.services, d, root, checkServiceDefaults)
	case kindIntentions:
		c.intentions = appendEntry(c.intentions, d, root, checkIntentions)
	default:
		return false
	}
	return true
}

// appendEntry appends the entry in root, unless it has a problem or the name of an earlier one.
func appendEntry[T any](earlier []*entry[T], d *decoder, root *yaml.Node, check func(*entry[T])) []*entry[T] {
	e := &entry[T]{root: root, decoder: d}
	read := d.configEntry
	if d.Strict {
		read = d.customResource
	}
	e.name, e.line = read(root, &e.spec)
	if len(d.Problems) > 0 {
		return earlier
	}
	if e.name == "" {
		e.addAtName("this entry has no name; give it one")
		return earlier
	}
	for _, other := range earlier {
		if other.name == e.name {
			e.addAtName("%q is already given at %s; remove one of the two", e.name, configtree.At(other.decoder.File, other.line))
			return earlier
		}
	}
	check(e)
	return append(earlier, e)
}

// configEntry decodes a config entry into spec. It returns its name, and the name's line.
func (d *decoder) configEntry(root *yaml.Node, spec any) (name string, line int) {
	var h head
	d.Object(root, "", &h, spec)
	d.onlyDefault(root, nil, h.Namespace, h.Partition)
	line, _ = d.Locate(root, "Name")
	return h.Name, line
}

// customResource decodes a custom resource as configEntry does a config entry.
func (d *decoder) customResource(root *yaml.Node, spec any) (name string, line int) {
	var r struct {
		APIVersion, Kind string
		Metadata, Spec   *yaml.Node

		Status configtree.Ignored
	}
	d.Object(root, "", &r)
	if r.Spec == nil {
		d.Add(root.Line, "spec", "this resource has no spec; add one")
		return "", root.Line
	}
	if _, ok := spec.(*serviceIntentions); !ok {
		d.Object(r.Spec, "spec", spec)
		line, _ = d.Locate(root, "metadata", "name")
		return configtree.Text(r.Metadata, "name"), line
	}
	// The entry has the name of its destination, and not that of the resource.
	var named struct {
		Destination struct{ Name, Namespace, Partition string }
	}
	d.Object(r.Spec, "spec", &named, spec)
	d.onlyDefault(root, steps("spec", "Destination"), named.Destination.Namespace, named.Destination.Partition)
	line, _ = d.Locate(root, "spec", "Destination", "Name")
	return named.Destination.Name, line
}

// resource reads a config entry that is written as a custom resource.
func (c *config) resource(d *decoder, root *yaml.Node) {
	version, value := configtree.Get(root, "apiVersion")
	kind, _ := configtree.Get(root, "kind")
	d.Strict = true
	switch known := kinds[configtree.Text(root, "kind")]; {
	case configtree.Text(root, "apiVersion") != customAPI:
		d.Add(version.Line, "apiVersion", "%s is not read in file mode; use %s resources, and define services in HCL or JSON: service { name, address, port }",
			configtree.Describe(value), customAPI)
	case kind == nil:
		d.Add(root.Line, "", "this resource has no kind; add one")
	case !c.entry(d, known, root):
		d.refuseKind(root, slices.Sorted(maps.Keys(kinds)))
	}
}

// refuseKind adds the problem of a kind that file mode does not read.
func (d *decoder) refuseKind(root *yaml.Node, read []string) {
	key, _ := configtree.Get(root, "kind")
	d.Add(key.Line, key.Value, "%q is not supported in file mode, which reads %s; remove the entry", configtree.Text(root, "kind"), strings.Join(read, ", "))
}

// onlyDefault refuses the namespaces and partitions of Consul Enterprise other than the default ones.
func (d *decoder) onlyDefault(n *yaml.Node, steps []any, namespace, partition string) {
	for _, v := range []struct{ name, value string }{{"Namespace", namespace}, {"Partition", partition}} {
		if gateway.OmitDefault(v.value) != "" {
			d.AddAt(n, join(steps, v.name), "%q is not supported: file mode has no namespaces and partitions; remove it", v.value)
		}
	}
}
