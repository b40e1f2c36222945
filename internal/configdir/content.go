package configdir

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// content is what a good directory results in: immutable, built whole from the config and, for what did not change,
// the content before it.
type content struct {
	datacenter string
	gateways   map[string]*gateway.Snapshot // by name; also those without an entry any more
	names      []string                     // of the gateways with an entry or a definition, sorted
	places     map[string]problem.Position  // of their entries, or else of their definitions, by name

	chains    map[gateway.ServiceName]*gateway.Chain
	endpoints map[string]*gateway.Endpoints // by target ID

	defaults  settings.Layer            // of proxy-defaults
	instances map[string]settings.Layer // by service ID of a gateway's instance

	// problems are those of Usher's own settings. They do not invalidate anything else: a layer keeps its last valid
	// settings.
	problems Problems
}

// allProblems returns the problems of all gateways.
func (c *content) allProblems() []problem.Problem {
	all := slices.Clone(c.problems)
	for _, name := range c.names {
		all = append(all, c.gateways[name].Problems...)
	}
	slices.SortFunc(all, problem.Compare)
	return slices.Compact(all)
}

// similar returns, for a message, the gateway whose name is nearest to one that no gateway has; "" if none is near.
func (c *content) similar(name string) string {
	near, ok := problem.Nearest(name, c.names)
	if !ok {
		return ""
	}
	return fmt.Sprintf("; there is %q (%s)", near, c.places[near])
}

// builder makes a content.
type builder struct {
	*content
	config *config
	before *content // empty at the start

	layerProblems map[string][]problem.Problem // of Usher's settings, by gateway; "" has those of proxy-defaults
}

// build makes the content of c, which has no problems. Parts that are as they were in before keep their pointers.
func build(c *config, before *content) *content {
	b := builder{config: c, before: before, layerProblems: map[string][]problem.Problem{}, content: &content{
		datacenter: before.datacenter, gateways: map[string]*gateway.Snapshot{}, names: c.gatewayNames(), places: c.gatewayPlaces(),
		chains: map[gateway.ServiceName]*gateway.Chain{}, endpoints: map[string]*gateway.Endpoints{},
		instances: map[string]settings.Layer{},
	}}
	b.layers()
	b.services()
	// A gateway whose entry is gone has no listeners any more, which an Envoy learns only while the gateway is
	// known.
	for _, name := range slices.AppendSeq(slices.Clone(b.names), maps.Keys(before.gateways)) {
		if b.gateways[name] == nil {
			b.gateways[name] = b.snapshot(name)
		}
	}
	return b.content
}

// layers decodes Usher's settings.
func (b *builder) layers() {
	layer := func(gatewayName string, p proxyConfig, before settings.Layer) settings.Layer {
		after, problems := p.layer(before)
		b.layerProblems[gatewayName] = append(b.layerProblems[gatewayName], problems...)
		b.problems = append(b.problems, problems...)
		return after
	}
	b.defaults = layer("", b.config.proxyDefaults().spec.proxyConfig, b.before.defaults)
	for _, def := range b.config.definitions {
		if def.spec.Kind == kindIngressGateway {
			b.instances[def.name] = layer(def.spec.Name, def.spec.proxyConfig, b.before.instances[def.name])
		}
	}
}

// services makes the chain and the endpoints of every service that a definition or a listener names.
func (b *builder) services() {
	endpoints := map[string][]gateway.Endpoint{}
	for _, e := range b.config.gateways {
		for _, l := range e.spec.Listeners {
			for _, s := range l.Services {
				endpoints[s.Name] = nil
			}
		}
	}
	delete(endpoints, wildcard)
	for _, def := range b.config.definitions {
		if def.spec.Kind == "" {
			endpoints[def.spec.Name] = append(endpoints[def.spec.Name], def.spec.endpoint(b.datacenter))
		}
	}
	for name, list := range endpoints {
		service, id := gateway.ServiceName{Name: name}, targetID(name, b.datacenter)
		protocol, _ := b.config.protocol(name)
		slices.SortFunc(list, func(x, y gateway.Endpoint) int {
			return cmp.Or(cmp.Compare(x.Address, y.Address), cmp.Compare(x.Port, y.Port))
		})
		b.chains[service] = keep(b.before.chains[service], defaultChain(name, b.datacenter, protocol))
		b.endpoints[id] = keep(b.before.endpoints[id], &gateway.Endpoints{Endpoints: list})
	}
}

// keep returns the value from before if the new one is equal.
func keep[T any](before, now *T) *T {
	if before != nil && reflect.DeepEqual(before, now) {
		return before
	}
	return now
}

// trustDomain stands where a mesh has its own in the names of clusters. It ends in "consul", because the stat tags
// of Consul's bootstraps match that.
const trustDomain = "files.consul"

// connectTimeout is Consul's default for connections to instances.
const connectTimeout = gateway.Duration(5 * time.Second)

// targetID returns the ID of the one target of a service's chain, as Consul does.
func targetID(service, datacenter string) string { return service + ".default.default." + datacenter }

// defaultChain returns the chain that Consul compiles for a service without a router, splitter or resolver.
func defaultChain(service, datacenter, protocol string) *gateway.Chain {
	id := targetID(service, datacenter)
	name := service + ".default." + datacenter + ".internal." + trustDomain
	start := gateway.NodeResolver + ":" + id
	return &gateway.Chain{
		ServiceName: service, Namespace: gateway.DefaultTenancy, Partition: gateway.DefaultTenancy, Datacenter: datacenter,
		Protocol: protocol, Default: true, StartNode: start,
		Nodes: map[string]*gateway.ChainNode{start: {
			Type: gateway.NodeResolver, Name: id,
			Resolver: &gateway.Resolver{Default: true, ConnectTimeout: connectTimeout, Target: id},
		}},
		Targets: map[string]*gateway.Target{id: {
			ID: id, Service: service, Namespace: gateway.DefaultTenancy, Partition: gateway.DefaultTenancy, Datacenter: datacenter,
			ConnectTimeout: connectTimeout, SNI: name, Name: name,
		}},
	}
}

// snapshot returns everything about one gateway.
func (b *builder) snapshot(name string) *gateway.Snapshot {
	before := cmp.Or(b.before.gateways[name], &gateway.Snapshot{})
	s := &gateway.Snapshot{
		ID: gateway.ID{Name: name}, Datacenter: b.datacenter, Plain: true, Chains: map[gateway.ServiceName]*gateway.Chain{},
		ProxyDefaults: b.defaults, Instances: b.gatewayInstances(name, before.Instances),
		Problems: slices.Concat(b.layerProblems[""], b.layerProblems[name]),
	}
	if e := named(b.config.gateways, name); e.name != "" {
		entry := &gateway.Entry{Name: name, TLS: e.spec.TLS, Defaults: e.spec.Defaults, Listeners: e.spec.Listeners}
		s.Entry = keep(before.Entry, entry)
		b.addServices(s, e)
	} else if at, defined := b.places[name]; defined {
		addProblem(s, at, "the gateway %q has no ingress-gateway entry, so its Envoys have no listeners%s; add one, or correct the name", name, b.similarEntry(name))
		s.Problems[len(s.Problems)-1].Severity = problem.Outage
	}
	return keep(before, s)
}

// similarEntry is similar for a gateway that is defined and has no entry.
func (b *builder) similarEntry(name string) string {
	var entries content
	for _, e := range b.config.gateways {
		entries.names = append(entries.names, e.name)
	}
	entries.places = b.places
	return entries.similar(name)
}

// gatewayInstances returns the instances of a gateway: those that are defined, or one that any Envoy of the gateway
// may be.
func (b *builder) gatewayInstances(name string, before []*gateway.Instance) []*gateway.Instance {
	var out []*gateway.Instance
	for _, def := range b.config.definitions {
		if d := def.spec; d.Kind == kindIngressGateway && d.Name == name {
			out = append(out, &gateway.Instance{
				ServiceID: def.name, Address: d.Address, Port: d.Port, TaggedAddresses: d.TaggedAddresses,
				Config: b.proxyConfig(name, d.proxyConfig), Registration: b.instances[def.name],
			})
		}
	}
	if len(out) == 0 {
		out = append(out, &gateway.Instance{ServiceID: name, Config: b.proxyConfig(name, proxyConfig{})})
	}
	slices.SortFunc(out, func(x, y *gateway.Instance) int { return cmp.Compare(x.ServiceID, y.ServiceID) })
	for i, in := range out {
		if e := b.config.proxyDefaults(); e.spec.AccessLogs.Enabled {
			in.AccessLogs, in.AccessLogsAt = e.spec.AccessLogs, e.place("AccessLogs")
		}
		for _, old := range before {
			if old.ServiceID == in.ServiceID {
				out[i] = keep(old, in)
			}
		}
	}
	return out
}

// proxyConfig merges what configures a gateway's Envoy: proxy-defaults, the gateway's service-defaults, its own
// registration. As in Consul's merge, 0 and false never win.
func (b *builder) proxyConfig(name string, registration proxyConfig) gateway.ProxyConfig {
	c, own := b.config.proxyDefaults().spec.proxyConfig.model(), registration.model()
	c.NoDefaultBind = c.NoDefaultBind || own.NoDefaultBind
	c.BindTaggedAddresses = c.BindTaggedAddresses || own.BindTaggedAddresses
	ofService := named(b.config.services, name).spec.MaxRequestHeadersKB
	c.MaxRequestHeadersKB = cmp.Or(own.MaxRequestHeadersKB, ofService, c.MaxRequestHeadersKB)
	if own.FetchTimeout != nil && (*own.FetchTimeout != 0 || c.FetchTimeout == nil) {
		c.FetchTimeout = own.FetchTimeout
	}
	if len(own.BindAddresses) > 0 {
		merged := map[string]gateway.Address{}
		maps.Copy(merged, c.BindAddresses)
		maps.Copy(merged, own.BindAddresses)
		c.BindAddresses = merged
	}
	return c
}

// addServices fills in the snapshot's services, chains and endpoints, and the problems of services that are not
// routed or not defined.
func (b *builder) addServices(s *gateway.Snapshot, e *entry[ingressGateway]) {
	for i, l := range e.spec.Listeners {
		for k, listed := range l.Services {
			name, at := listed.Name, e.place("Listeners", i, "Services", k, "Name")
			if name == wildcard {
				b.addWildcard(s, l, at)
				continue
			}
			if !b.isDefined(name) {
				addProblem(s, at, "service %q has no definition; add service { name = %q, address, port } to a file", name, name)
			}
			service := gateway.ServiceName{Name: name}
			b.addService(s, gateway.Service{Service: service, Port: l.Port, Protocol: l.Protocol, Hosts: listed.Hosts}, at)
		}
	}
	slices.SortFunc(s.Services, func(x, y gateway.Service) int {
		return cmp.Or(cmp.Compare(x.Port, y.Port), cmp.Compare(x.Service.Name, y.Service.Name))
	})
}

func (b *builder) isDefined(service string) bool {
	return len(b.endpoints[targetID(service, b.datacenter)].Endpoints) > 0
}

// addWildcard adds the defined services that have the listener's protocol and that it does not name.
func (b *builder) addWildcard(s *gateway.Snapshot, l gateway.Listener, at problem.Position) {
	byName := func(x, y gateway.ServiceName) int { return cmp.Compare(x.Name, y.Name) }
	for _, service := range slices.SortedFunc(maps.Keys(b.chains), byName) {
		isNamed := slices.ContainsFunc(l.Services, func(s gateway.ListenerService) bool { return s.Name == service.Name })
		if b.isDefined(service.Name) && !isNamed && b.chains[service].Protocol == l.Protocol {
			b.addService(s, gateway.Service{Service: service, Port: l.Port, Protocol: l.Protocol, FromWildcard: true}, at)
		}
	}
}

// addService adds a service, unless its intentions deny the gateway: nothing behind the gateway would enforce them.
func (b *builder) addService(s *gateway.Snapshot, service gateway.Service, at problem.Position) {
	name := service.Service.Name
	if deniedAt := b.config.denied(s.ID.Name, name); deniedAt != "" {
		addProblem(s, at, "service %q is not routed, because its intentions deny the gateway %q (%s); "+
			"allow it there, or remove the service from the listener", name, s.ID.Name, deniedAt)
		if b.config.allowsAny(name) { // the intention may be meant for the gateway
			s.Problems[len(s.Problems)-1].Severity = problem.Notice
		}
		return
	}
	s.Services = append(s.Services, service)
	s.Chains[service.Service] = b.chains[service.Service]
	id := targetID(name, b.datacenter)
	s.Endpoints = s.Endpoints.With(id, b.endpoints[id])
}

func addProblem(s *gateway.Snapshot, at problem.Position, format string, args ...any) {
	s.Problems = append(s.Problems, problem.Problem{Where: at.String(), At: at, What: fmt.Sprintf(format, args...)})
}
