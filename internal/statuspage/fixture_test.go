package statuspage

import (
	"fmt"
	"slices"
	"time"

	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/status"
)

// now is the time of the fixtures' states.
var now = time.Now()

// injection would run if a page took a name for markup.
const injection = `<img src=x onerror="document.title='injected'">`

// envoy returns an Envoy that has everything.
func envoy(gateway string, number int) status.Envoy {
	e := status.Envoy{
		Gateway: gateway, ServiceID: fmt.Sprintf("%s-%d", gateway, number), Node: fmt.Sprintf("vm-%d", number),
		Address: fmt.Sprintf("10.0.%d.%d", number/250, number%250+1), Release: "1.40.0", Protocol: "delta", Connected: now.Add(-3 * time.Hour),
	}
	for i, typ := range []string{"cluster", "endpoint", "listener", "route", "secret"} {
		e.Types = append(e.Types, status.Type{Type: typ, Sync: status.Synced, Since: now.Add(-time.Duration(i+5) * time.Minute), Version: "6c1f", Resources: []int{12, 12, 2, 2, 3}[i]})
	}
	return e
}

// with returns the Envoy with another state of a type.
func with(e status.Envoy, t status.Type) status.Envoy {
	e.Types = slices.Clone(e.Types)
	e.Types[slices.IndexFunc(e.Types, func(other status.Type) bool { return other.Type == t.Type })] = t
	return e
}

func services(names ...string) (all []status.Service) {
	for _, name := range names {
		all = append(all, status.Service{Name: name, Hosts: []string{name + ".example.com"}})
	}
	return all
}

// incident is a state with some of everything that can be wrong.
func incident() status.State {
	s := status.State{
		Time:   now,
		Usher:  status.Usher{Version: "v0.9.0", Commit: "fd5fab9c01d2", Started: now.Add(-26 * time.Hour), Ready: true},
		Source: status.Source{Type: status.Consul, Answers: true},
		Gateways: []status.Gateway{
			{Name: "edge", Known: true, Entry: true, Instances: 3, Envoys: 3, Listeners: []status.Listener{
				{
					Port: 8080, Protocol: "http", Place: "/etc/usher/usher.hcl:3",
					Mode: status.Mode{Asked: "strict", InForce: "strict", Unconfirmed: true, Built: status.Current},
					Settings: []status.Setting{
						{Setting: "proxy_protocol.mode", Value: `"strict"`, Place: "/etc/usher/usher.hcl:3"},
						{Setting: "proxy_protocol.versions", Value: `["v2"]`, Place: "/etc/usher/usher.hcl:4"},
						{Setting: "proxy_protocol.trusted_cidrs", Value: `["10.0.0.0/16"]`, Place: `proxy-defaults "global": usher.proxy_protocol.trusted_cidrs`},
					},
					Services: services("api", "checkout", "search", "web"),
				},
				{
					Port: 8443, Protocol: "http2", TLS: true, Place: "Kubernetes Service consul/edge",
					Mode: status.Mode{
						Asked: "auto", InForce: "permissive", Built: status.Current, GraceEnd: now.Add(7 * time.Minute),
						Reason: "Kubernetes Service consul/edge asks for PROXY v2 since 3 minutes; the load balancer may not follow yet",
					},
					Settings: []status.Setting{{Setting: "proxy_protocol.mode", Value: `"auto"`, Place: `service "edge-1" on node "vm-1": usher.proxy_protocol.mode`}},
					Services: services("web"),
				},
				{
					Port: 9000, Protocol: "tcp", Place: "the default",
					Mode:     status.Mode{Asked: "off", Built: status.HeldBack, Reason: "it cannot be built, and there is no valid version of it from before; the problems say why"},
					Settings: []status.Setting{{Setting: "proxy_protocol.mode", Value: `"off"`, Place: "the default"}},
					Services: []status.Service{{Name: injection}, {Name: "postgres"}},
				},
			}},
			{Name: "internal", Known: true, Entry: true, Instances: 2, Envoys: 2, Listeners: []status.Listener{
				{
					Port: 8080, Protocol: "http", Place: "the default", Mode: status.Mode{Asked: "off", InForce: "off", Built: status.Current},
					Settings: []status.Setting{{Setting: "proxy_protocol.mode", Value: `"off"`, Place: "the default"}}, Services: services("grafana", "wiki"),
				},
			}},
			{Name: "partners", Listeners: []status.Listener{}},
		},
		Envoys: []status.Envoy{
			envoy("edge", 1), envoy("edge", 2), envoy("edge", 3), envoy("internal", 1), envoy("internal", 2),
		},
		Problems: []status.Problem{
			{Gateway: "edge", Severity: problem.Outage, Where: "gateway edge: listener 9000", What: `it is held back, and there is no valid version of it from before; Envoy "edge-3" (1.36.2) at 10.0.0.4: nothing is served there until the other problems of this gateway are corrected`},
			{Gateway: "edge", Severity: problem.Degraded, Where: "/etc/usher/usher.hcl:9", What: `"10.0.0.5/8" is an address in the network "10.0.0.0/8"; use the network, or the address alone`},
			{Severity: problem.Notice, Where: "/etc/usher/usher.hcl:14", What: `no gateway "egde" is registered (did you mean "edge"?)`},
		},
		Changes: []status.Change{
			{Number: 41, Time: now.Add(-4 * time.Second), Gateway: "edge", Envoys: 3, Acknowledged: 1, Refused: 1, Resources: []status.Resource{
				{Type: "listener", Changed: 1, Names: []string{"http:10.0.0.2:8080"}},
			}},
			{Number: 40, Time: now.Add(-95 * time.Second), Gateway: "edge", Envoys: 3, Acknowledged: 3, Milliseconds: 11.4, Resources: []status.Resource{
				{Type: "endpoint", Changed: 1, Names: []string{"web.default.dc1.internal.11111111-2222-3333-4444-555555555555.consul"}},
			}},
			{Number: 39, Time: now.Add(-40 * time.Minute), Gateway: "internal", Envoys: 2, Acknowledged: 2, Milliseconds: 1840, Resources: []status.Resource{
				{Type: "cluster", Added: 1, Names: []string{"wiki.default.dc1.internal.11111111-2222-3333-4444-555555555555.consul"}},
				{Type: "endpoint", Added: 1, Names: []string{"wiki.default.dc1.internal.11111111-2222-3333-4444-555555555555.consul"}},
				{Type: "route", Changed: 1, Names: []string{"8080"}},
			}},
		},
	}
	s.Envoys[1] = with(s.Envoys[1], status.Type{Type: "listener", Sync: status.Stale, Since: now.Add(-4 * time.Second), Version: "6c1f", Resources: 2})
	s.Envoys[2] = with(s.Envoys[2], status.Type{
		Type: "listener", Sync: status.Refused, Since: now.Add(-4 * time.Second), Version: "6c1f", Resources: 2, Refused: []string{"http:10.0.0.2:8080"},
		Error: "Error adding/updating listener(s) http:10.0.0.2:8080: cannot bind '10.0.0.2:8080': Address already in use",
	})
	s.Envoys[2].Release = "1.36.2"
	return s
}

// large is a state with 1,000 services on one listener and 500 Envoys, one of which is behind.
func large() status.State {
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprintf("service-%04d", i)
	}
	s := status.State{
		Time:   now,
		Usher:  status.Usher{Version: "v0.9.0", Commit: "fd5fab9c01d2", Started: now.Add(-26 * time.Hour), Ready: true},
		Source: status.Source{Type: status.Consul, Answers: true},
		Gateways: []status.Gateway{{Name: "edge", Known: true, Entry: true, Instances: 500, Envoys: 500, Listeners: []status.Listener{{
			Port: 8080, Protocol: "http", Place: "/etc/usher/usher.hcl:3", Mode: status.Mode{Asked: "strict", InForce: "strict", Built: status.Current},
			Settings: []status.Setting{{Setting: "proxy_protocol.mode", Value: `"strict"`, Place: "/etc/usher/usher.hcl:3"}},
			Services: services(names...),
		}}}},
		Envoys: []status.Envoy{}, Problems: []status.Problem{},
		Changes: []status.Change{{Number: 7, Time: now.Add(-2 * time.Second), Gateway: "edge", Envoys: 500, Acknowledged: 499, Resources: []status.Resource{
			{Type: "endpoint", Changed: 1, Names: []string{"service-0007.default.dc1.internal.11111111-2222-3333-4444-555555555555.consul"}},
		}}},
	}
	for i := range 500 {
		s.Envoys = append(s.Envoys, envoy("edge", i))
	}
	s.Envoys[321] = with(s.Envoys[321], status.Type{Type: "endpoint", Sync: status.Stale, Since: now.Add(-2 * time.Second), Version: "6c1f", Resources: 1000})
	return s
}
