package configdir

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// content is everything that a good directory gives: immutable, built whole
// from the config and, for what did not change, the content before it.
type content struct {
	datacenter string
	gateways   map[string]*gateway.Snapshot // by name; also those without an entry any more
	current    []gateway.ID                 // those with an entry or a definition, sorted

	chains    map[gateway.ServiceName]*gateway.Chain
	endpoints map[string]*gateway.Endpoints // by target ID

	defaults settings.Layer
	own      map[string]settings.Layer // by service ID of a gateway's instance

	// settings are the problems of Usher's own settings. They do not hold the
	// rest back: a layer remembers its last good settings.
	settings Problems
}

// builder makes a content.
type builder struct {
	*content
	config *config
	before *content // empty at the start
	// problems of proxy-defaults' settings, and by gateway those of its
	// instances.
	shared []problem.Problem
	byName map[string][]problem.Problem
}

// build makes the content of c, which has no problems. Parts that are as they
// were in before keep their pointers.
func build(c *config, before *content) *content {
	b := builder{
		content: &content{
			datacenter: before.datacenter,
			gateways:   map[string]*gateway.Snapshot{},
			chains:     map[gateway.ServiceName]*gateway.Chain{},
			endpoints:  map[string]*gateway.Endpoints{},
			own:        map[string]settings.Layer{},
		},
		config: c,
		before: before,
		byName: map[string][]problem.Problem{},
	}
	b.layers()
	b.instances()
	names := map[string]bool{}
	for _, e := range c.gateways {
		names[e.name] = true
	}
	for _, def := range c.defs {
		if def.Kind == kindIngressGateway {
			names[def.Name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		b.current = append(b.current, gateway.ID{Name: name})
	}
	// A gateway whose entry is gone has no listeners any more, which an Envoy
	// learns only while the gateway is known.
	for name := range before.gateways {
		names[name] = true
	}
	for name := range names {
		b.gateways[name] = b.snapshot(name)
	}
	return b.content
}

// layers takes Usher's settings over from their sources.
func (b *builder) layers() {
	var shared opaque
	for _, e := range b.config.proxies {
		shared = e.spec.opaque
	}
	b.defaults, b.shared = shared.layer(b.before.defaults)
	b.settings = append(b.settings, b.shared...)
	for _, def := range b.config.defs {
		if def.Kind != kindIngressGateway {
			continue
		}
		layer, problems := def.own.layer(b.before.own[def.ID])
		b.own[def.ID] = layer
		b.byName[def.Name] = append(b.byName[def.Name], problems...)
		b.settings = append(b.settings, problems...)
	}
}

// instances gives every plain service its chain and its endpoints, and so
// every service that a listener names.
func (b *builder) instances() {
	names := map[string]bool{}
	for _, e := range b.config.gateways {
		for _, l := range e.spec.Listeners {
			for _, s := range l.Services {
				names[s.Name] = s.Name != wildcard
			}
		}
	}
	found := map[string][]gateway.Endpoint{}
	for _, def := range b.config.defs {
		if def.Kind == "" {
			names[def.Name] = true
			found[def.Name] = append(found[def.Name], def.endpoint(b.datacenter))
		}
	}
	for name, wanted := range names {
		if !wanted {
			continue
		}
		service := gateway.ServiceName{Name: name}
		protocol, _ := b.config.protocol(name)
		b.chains[service] = keep(b.before.chains[service], defaultChain(name, b.datacenter, protocol))
		endpoints := found[name]
		slices.SortFunc(endpoints, func(x, y gateway.Endpoint) int {
			return cmp.Or(cmp.Compare(x.Address, y.Address), cmp.Compare(x.Port, y.Port))
		})
		id := targetID(name, b.datacenter)
		b.endpoints[id] = keep(b.before.endpoints[id], &gateway.Endpoints{Endpoints: endpoints})
	}
}

// keep gives the value from before when the new one is equal.
func keep[T any](before, now *T) *T {
	if before != nil && reflect.DeepEqual(before, now) {
		return before
	}
	return now
}

// snapshot gives everything about one gateway.
func (b *builder) snapshot(name string) *gateway.Snapshot {
	before := b.before.gateways[name]
	if before == nil {
		before = &gateway.Snapshot{}
	}
	s := &gateway.Snapshot{
		ID:            gateway.ID{Name: name},
		Datacenter:    b.datacenter,
		Chains:        map[gateway.ServiceName]*gateway.Chain{},
		Plain:         true,
		ProxyDefaults: b.defaults,
		Instances:     b.gatewayInstances(name, before.Instances),
		Problems:      slices.Concat(b.shared, b.byName[name]),
	}
	i := slices.IndexFunc(b.config.gateways, func(e *entry[ingressGateway]) bool { return e.name == name })
	if i < 0 {
		return keep(before, s)
	}
	e := b.config.gateways[i]
	s.Entry = keep(before.Entry, &gateway.Entry{
		Name: name, TLS: e.spec.TLS, Defaults: e.spec.Defaults, Listeners: e.spec.Listeners,
	})
	r := rows{builder: b, entry: e, snapshot: s}
	r.add()
	return keep(before, s)
}

// gatewayInstances gives the instances of a gateway: those that are defined,
// or one that any Envoy of the gateway may be.
func (b *builder) gatewayInstances(name string, before []*gateway.Instance) []*gateway.Instance {
	var out []*gateway.Instance
	for _, def := range b.config.defs {
		if def.Kind != kindIngressGateway || def.Name != name {
			continue
		}
		out = append(out, &gateway.Instance{
			ServiceID:       def.ID,
			Address:         def.Address,
			Port:            def.Port,
			TaggedAddresses: def.TaggedAddresses,
			Config:          b.proxyConfig(name, &def.own),
			Registration:    b.own[def.ID],
		})
	}
	if len(out) == 0 {
		out = append(out, &gateway.Instance{ServiceID: name, Config: b.proxyConfig(name, &opaque{})})
	}
	slices.SortFunc(out, func(x, y *gateway.Instance) int { return cmp.Compare(x.ServiceID, y.ServiceID) })
	for i, in := range out {
		for _, e := range b.config.proxies {
			in.AccessLogs = e.spec.AccessLogs
		}
		for _, old := range before {
			if old.ServiceID == in.ServiceID {
				out[i] = keep(old, in)
			}
		}
	}
	return out
}

// proxyConfig lays what says something of a gateway's Envoy over each other:
// proxy-defaults, the gateway's service-defaults, its own registration. As in
// Consul's merge, 0 and false never win.
func (b *builder) proxyConfig(name string, own *opaque) gateway.ProxyConfig {
	var c gateway.ProxyConfig
	for _, e := range b.config.proxies {
		c = e.spec.opaque.config()
	}
	for _, e := range b.config.services {
		if e.name == name && e.spec.MaxRequestHeadersKB != 0 {
			c.MaxRequestHeadersKB = e.spec.MaxRequestHeadersKB
		}
	}
	o := own.config()
	c.NoDefaultBind = c.NoDefaultBind || o.NoDefaultBind
	c.BindTaggedAddresses = c.BindTaggedAddresses || o.BindTaggedAddresses
	c.MaxRequestHeadersKB = cmp.Or(o.MaxRequestHeadersKB, c.MaxRequestHeadersKB)
	if o.FetchTimeout != nil && (*o.FetchTimeout != 0 || c.FetchTimeout == nil) {
		c.FetchTimeout = o.FetchTimeout
	}
	if len(o.BindAddresses) > 0 {
		merged := maps.Clone(c.BindAddresses)
		if merged == nil {
			merged = map[string]gateway.Address{}
		}
		maps.Copy(merged, o.BindAddresses)
		c.BindAddresses = merged
	}
	return c
}

// rows makes the rows of gateway-services of one gateway.
type rows struct {
	*builder
	entry    *entry[ingressGateway]
	snapshot *gateway.Snapshot
}

// add fills the snapshot's services, chains, endpoints and the problems of
// services that are not routed or not defined.
func (r *rows) add() {
	for i, l := range r.entry.spec.Listeners {
		for k, s := range l.Services {
			at := r.entry.place("Listeners", i, "Services", k, "Name")
			if s.Name == wildcard {
				r.wildcard(l, at)
				continue
			}
			if len(r.endpoints[targetID(s.Name, r.datacenter)].Endpoints) == 0 {
				r.problem(at, "service %q has no definition; add service { name = %q, address, port } to a file", s.Name, s.Name)
			}
			r.row(gateway.Service{Service: gateway.ServiceName{Name: s.Name}, Port: l.Port, Protocol: l.Protocol, Hosts: s.Hosts}, at)
		}
	}
	slices.SortFunc(r.snapshot.Services, func(x, y gateway.Service) int {
		return cmp.Or(cmp.Compare(x.Port, y.Port), cmp.Compare(x.Service.Name, y.Service.Name))
	})
}

// wildcard adds the defined services that speak the listener's protocol and
// that it does not name.
func (r *rows) wildcard(l gateway.Listener, at place) {
	services := slices.SortedFunc(maps.Keys(r.chains), func(x, y gateway.ServiceName) int { return cmp.Compare(x.Name, y.Name) })
	for _, service := range services {
		named := slices.ContainsFunc(l.Services, func(s gateway.ListenerService) bool { return s.Name == service.Name })
		defined := len(r.endpoints[targetID(service.Name, r.datacenter)].Endpoints) > 0
		if defined && !named && r.chains[service].Protocol == l.Protocol {
			r.row(gateway.Service{Service: service, Port: l.Port, Protocol: l.Protocol, FromWildcard: true}, at)
		}
	}
}

// row adds a service, unless its intentions deny the gateway: nothing behind
// the gateway would enforce them.
func (r *rows) row(s gateway.Service, at place) {
	if v := decide(r.config.intentions, r.entry.name, s.Service.Name); v.denied {
		r.problem(at, "service %q is not routed, for its intentions deny the gateway %q (%s); allow it there, or take the service off the listener",
			s.Service.Name, r.entry.name, v.at)
		return
	}
	r.snapshot.Services = append(r.snapshot.Services, s)
	r.snapshot.Chains[s.Service] = r.chains[s.Service]
	id := targetID(s.Service.Name, r.datacenter)
	r.snapshot.Endpoints = r.snapshot.Endpoints.With(id, r.endpoints[id])
}

func (r *rows) problem(at place, format string, args ...any) {
	r.snapshot.Problems = append(r.snapshot.Problems, problem.Problem{Where: at.String(), What: fmt.Sprintf(format, args...)})
}
