package configdir

import (
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
)

// The kinds of config entries that file mode reads.
const (
	kindIngressGateway = "ingress-gateway"
	kindProxyDefaults  = "proxy-defaults"
	kindDefaults       = "service-defaults"
	kindIntentions     = "service-intentions"
)

// honoured maps the kinds of Consul's custom resources to those of its config
// entries.
var honoured = map[string]string{
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

	Meta, CreateIndex, ModifyIndex, Hash ignored
}

// customResource is the frame of a Kubernetes object.
type customResource struct {
	APIVersion, Kind string
	Metadata         *node
	Spec             *node

	Status ignored
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
	Config     *node
	AccessLogs gateway.AccessLogs

	opaque opaque // Config, decoded

	Mode                 refused `why:"file mode has no sidecars"`
	TransparentProxy     refused `why:"file mode has no sidecars"`
	MutualTLSMode        refused `why:"upstreams are plain in file mode"`
	MeshGateway          refused `why:"file mode has one datacenter and no mesh gateways"`
	Expose               refused `why:"file mode has no sidecars"`
	EnvoyExtensions      refused `why:"Consul applies no Envoy extension to an ingress gateway"`
	FailoverPolicy       refused `why:"file mode has no failover"`
	PrioritizeByLocality refused `why:"file mode knows no localities"`
}

// serviceDefaults is a service-defaults config entry
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/service-defaults).
type serviceDefaults struct {
	Protocol            string
	MaxRequestHeadersKB uint32 // of an ingress gateway only

	Mode                      refused `why:"file mode has no sidecars"`
	TransparentProxy          refused `why:"file mode has no sidecars"`
	MutualTLSMode             refused `why:"upstreams are plain in file mode"`
	MeshGateway               refused `why:"file mode has one datacenter and no mesh gateways"`
	Expose                    refused `why:"file mode has no sidecars"`
	ExternalSNI               refused `why:"upstreams are plain in file mode"`
	UpstreamConfig            refused `why:"Consul applies it to no ingress gateway; remove it and set limits in the ingress-gateway entry"`
	Destination               refused `why:"file mode has no terminating gateways; remove it and define the service with its addresses"`
	MaxInboundConnections     refused `why:"file mode has no sidecars"`
	LocalConnectTimeoutMs     refused `why:"file mode has no sidecars"`
	LocalRequestTimeoutMs     refused `why:"file mode has no sidecars"`
	BalanceInboundConnections refused `why:"file mode has no sidecars"`
	RateLimits                refused `why:"file mode has no sidecars"`
	EnvoyExtensions           refused `why:"file mode has no sidecars"`
}

// serviceIntentions is a service-intentions config entry
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/service-intentions).
type serviceIntentions struct {
	Sources []intentionSource

	JWT refused `why:"file mode has no sidecar that could check tokens"`
}

type intentionSource struct {
	Name, Namespace, Partition string
	Action                     string
	Type                       string

	Peer          refused `why:"file mode has no cluster peers"`
	SamenessGroup refused `why:"file mode has no cluster peers"`
	Permissions   refused `why:"file mode has no sidecar that could look into requests; give the source an action instead"`
	LegacyID      refused `why:"Consul takes it from no config entry"`
	LegacyMeta    refused `why:"Consul takes it from no config entry"`

	Precedence, Description, LegacyCreateTime, LegacyUpdateTime ignored
}

// entry is one config entry with what is needed to talk about it.
type entry[T any] struct {
	name   string
	at     place // of its name
	root   *node
	custom bool
	spec   T
}

// problem notes what is wrong at the end of steps into the entry's own fields.
func (e *entry[T]) problem(d *decoder, steps []any, format string, args ...any) {
	d.custom = e.custom
	d.problem(e.root, e.steps(steps), format, args...)
}

// place gives where the end of steps into the entry's own fields stands.
func (e *entry[T]) place(steps ...any) place {
	at, _ := e.root.locate(snake, e.steps(steps)...)
	return at
}

// onlyDefault is decoder.onlyDefault for the end of steps into the entry.
func (e *entry[T]) onlyDefault(d *decoder, steps []any, namespace, partition string) {
	d.custom = e.custom
	d.onlyDefault(e.root, e.steps(steps), namespace, partition)
}

func (e *entry[T]) steps(steps []any) []any {
	if e.custom {
		return append([]any{"spec"}, steps...)
	}
	return steps
}

// entryReader decodes an entry into spec and gives its name and the name's
// place.
type entryReader func(spec any) (name string, at place)

// keepEntry appends the entry that read gives. One that is bad or that has
// the name of an earlier one is a problem.
func keepEntry[T any](d *decoder, earlier []*entry[T], root *node, read entryReader, check func(*decoder, *entry[T])) []*entry[T] {
	e := &entry[T]{root: root, custom: d.custom}
	e.name, e.at = read(&e.spec)
	if len(d.problems) > 0 {
		return earlier
	}
	if e.name == "" {
		d.add(e.at, "", "this entry has no name; give it one")
		return earlier
	}
	for _, other := range earlier {
		if other.name == e.name {
			d.add(e.at, "", "%q is already given at %s; remove one of the two", e.name, other.at)
			return earlier
		}
	}
	check(d, e)
	return append(earlier, e)
}

// refuseKind is the problem of a kind of entry that file mode does not read.
func (d *decoder) refuseKind(f *field, read []string) {
	slices.Sort(read)
	kind, _ := f.value.scalar.(string)
	d.add(f.at, f.name, "%q is not honoured in file mode, which reads %s; remove the entry", kind, strings.Join(read, ", "))
}

// configEntry reads a config entry as `consul config write` takes it.
func (c *config) configEntry(root *node) {
	d := &decoder{}
	defer func() { c.problems = append(c.problems, d.problems...) }()
	kind := root.text("Kind")
	read := func(spec any) (string, place) {
		var h head
		d.object(root, "", &h, spec)
		d.onlyDefault(root, nil, h.Namespace, h.Partition)
		at, _ := root.locate(snake, "Name")
		return h.Name, at
	}
	if !c.add(d, kind, root, read) {
		kinds := []string{kindIngressGateway, kindProxyDefaults, kindDefaults, kindIntentions}
		d.refuseKind(root.get("Kind"), kinds)
	}
}

// customResource reads a config entry as Consul's custom resource.
func (c *config) customResource(root *node) {
	d := &decoder{custom: true}
	defer func() { c.problems = append(c.problems, d.problems...) }()
	var r customResource
	kind, known := honoured[root.text("kind")]
	if root.text("apiVersion") != customAPI || !known {
		c.refuseResource(d, root)
		return
	}
	d.object(root, "", &r)
	if r.Spec == nil {
		d.add(root.at, "spec", "this resource has no spec; add one")
		return
	}
	read := func(spec any) (string, place) {
		if kind == kindIntentions {
			return d.intentionsResource(&r, spec)
		}
		d.object(r.Spec, "spec", spec)
		at, _ := root.locate(camel, "metadata", "name")
		return r.Metadata.text("name"), at
	}
	c.add(d, kind, root, read)
}

// intentionsResource reads a ServiceIntentions resource, whose name is that of
// its destination, not of the resource.
func (d *decoder) intentionsResource(r *customResource, spec any) (string, place) {
	var named struct {
		Destination struct{ Name, Namespace, Partition string }
	}
	d.object(r.Spec, "spec", &named, spec)
	d.onlyDefault(r.Spec, []any{"Destination"}, named.Destination.Namespace, named.Destination.Partition)
	at, _ := r.Spec.locate(camel, "Destination", "Name")
	return named.Destination.Name, at
}

func (c *config) refuseResource(d *decoder, root *node) {
	version, kind := root.get("apiVersion"), root.get("kind")
	switch {
	case root.text("apiVersion") != customAPI:
		d.add(version.at, "apiVersion", "%s is not read in file mode; use %s resources, and define services in HCL or JSON: service { name, address, port }",
			version.value.describe(), customAPI)
	case kind == nil:
		d.add(root.at, "", "this resource has no kind; add one")
	default:
		var read []string
		for name := range honoured {
			read = append(read, name)
		}
		d.refuseKind(kind, read)
	}
}

// add decodes an entry of the kind with read, which gives its name, and keeps
// it; it is false for a kind that file mode does not read.
func (c *config) add(d *decoder, kind string, root *node, read entryReader) bool {
	switch kind {
	case kindIngressGateway:
		c.gateways = keepEntry(d, c.gateways, root, read, checkIngress)
	case kindProxyDefaults:
		c.proxies = keepEntry(d, c.proxies, root, read, checkProxyDefaults)
	case kindDefaults:
		c.services = keepEntry(d, c.services, root, read, checkDefaults)
	case kindIntentions:
		c.intentions = keepEntry(d, c.intentions, root, read, checkIntentions)
	default:
		return false
	}
	return true
}

// onlyDefault refuses namespaces and partitions of Consul Enterprise other
// than the default ones.
func (d *decoder) onlyDefault(n *node, steps []any, namespace, partition string) {
	for _, v := range []struct{ name, value string }{{"Namespace", namespace}, {"Partition", partition}} {
		if v.value != "" && v.value != "default" {
			at := append(slices.Clone(steps), v.name)
			d.problem(n, at, "%q is not honoured: file mode has no namespaces and partitions; remove it", v.value)
		}
	}
}
