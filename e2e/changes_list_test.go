//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"testing"

	"github.com/hashicorp/consul/api"
)

// The admin pages in which changes show that no request does.
const (
	clusterConfig = "/config_dump?resource=dynamic_active_clusters&name_regex=static-server.*"
	clusterHosts  = "/clusters"
)

// ofTheGateway are changes of the ingress-gateway entry.
func (s *changesStory) ofTheGateway() []change {
	service := func(e *api.IngressGatewayConfigEntry) *api.IngressService { return &e.Listeners[0].Services[0] }
	return []change{
		{"ingress-gateway: a listener added", s.editing(func(e *api.IngressGatewayConfigEntry) {
			e.Listeners = append(e.Listeners, api.IngressListener{
				Port: 8081, Protocol: "http",
				Services: []api.IngressService{{Name: "other-server", Hosts: []string{labHost}}},
			})
		}), func(g *loadedGateway) error {
			return answered(call{To: g.Host.addr(8081), Path: "/"}, servedBy, "other-server")(g)
		}},
		{"ingress-gateway: a listener removed", s.editing(func(e *api.IngressGatewayConfigEntry) {
			e.Listeners = e.Listeners[:1]
		}), func(g *loadedGateway) error {
			if _, err := g.ask(call{To: g.Host.addr(8081), Path: "/"}); err == nil {
				return errors.New("port 8081 still answers")
			}
			return nil
		}},
		{"ingress-gateway: a host added", s.editing(func(e *api.IngressGatewayConfigEntry) {
			service(e).Hosts = append(service(e).Hosts, "www.example.com")
		}), answered(call{Path: "/", Host: "www.example.com"}, servedBy, "static-server")},
		{"ingress-gateway: a response header set", s.editing(func(e *api.IngressGatewayConfigEntry) {
			service(e).ResponseHeaders = &api.HTTPHeaderModifiers{Set: map[string]string{"x-from": "the entry"}}
		}), answered(call{Path: "/"}, "x-from", "the entry")},
		{"ingress-gateway: a response header removed", s.editing(func(e *api.IngressGatewayConfigEntry) {
			service(e).ResponseHeaders = nil
		}), answered(call{Path: "/"}, "x-from", "")},
	}
}

// ofTheServices are changes of the entries that make a discovery chain.
func (s *changesStory) ofTheServices() []change {
	router := func(header string) api.ConfigEntry {
		return &api.ServiceRouterConfigEntry{
			Kind: api.ServiceRouter, Name: "static-server",
			Routes: []api.ServiceRoute{{
				Match: &api.ServiceRouteMatch{HTTP: &api.ServiceRouteHTTPMatch{PathPrefix: "/routed"}},
				Destination: &api.ServiceRouteDestination{
					Service:         "other-server",
					ResponseHeaders: &api.HTTPHeaderModifiers{Set: map[string]string{"x-from": header}},
				},
			}},
		}
	}
	root, routed := call{Path: "/"}, call{Path: "/routed"}
	return []change{
		{"service-defaults: an external SNI", s.writing(&api.ServiceConfigEntry{
			Kind: api.ServiceDefaults, Name: "static-server", Protocol: "http", ExternalSNI: "sni.example.com",
		}), func(g *loadedGateway) error { return g.has(clusterConfig, `"sni": "sni.example.com"`) }},
		{"service-defaults: and none", s.writing(&api.ServiceConfigEntry{
			Kind: api.ServiceDefaults, Name: "static-server", Protocol: "http",
		}), func(g *loadedGateway) error { return g.hasNot(clusterConfig, `"sni": "sni.example.com"`) }},
		{"service-router: a route to a new cluster", s.writing(router("one")), answered(routed, "x-from", "one")},
		{"service-router: the route changed", s.writing(router("two")), answered(routed, "x-from", "two")},
		{"service-router: deleted", s.deleting(api.ServiceRouter, "static-server"), answered(routed, servedBy, "static-server")},
		{"service-resolver: all requests to a new cluster", s.writing(&api.ServiceResolverConfigEntry{
			Kind: api.ServiceResolver, Name: "static-server",
			Redirect: &api.ServiceResolverRedirect{Service: "other-server"},
		}), answered(root, servedBy, "other-server")},
		{"service-resolver: deleted", s.deleting(api.ServiceResolver, "static-server"), answered(root, servedBy, "static-server")},
		{"service-splitter: all requests to another service", s.writing(&api.ServiceSplitterConfigEntry{
			Kind: api.ServiceSplitter, Name: "static-server",
			Splits: []api.ServiceSplit{{Weight: 100, Service: "other-server"}},
		}), answered(root, servedBy, "other-server")},
		{"service-splitter: deleted", s.deleting(api.ServiceSplitter, "static-server"), answered(root, servedBy, "static-server")},
	}
}

// ofTheInstances are what happens to instances of a service. The sidecar of the
// second one serves before Consul is told of it, and after, so that no request
// has to fail.
func (s *changesStory) ofTheInstances(t *testing.T) []change {
	s.startSecond(t)
	agent := s.Consul.Client.Agent()
	host := func(health string) string { return fmt.Sprintf("%s::health_flags::%s\n", s.Second.addr(21000), health) }
	is := func(health string) func(*loadedGateway) error {
		return func(g *loadedGateway) error { return g.has(clusterHosts, host(health)) }
	}
	check := func(status string) func() error {
		return func() error { return agent.UpdateTTL(secondCheck, "", status) }
	}
	return []change{
		{"instance: up", func() error { return s.registerSecond(api.HealthPassing) }, is("healthy")},
		{"instance: critical", check(api.HealthCritical), is("/failed_eds_health")},
		{"instance: passing again", check(api.HealthPassing), is("healthy")},
		{"instance: down", func() error { return agent.ServiceDeregister("second") }, func(g *loadedGateway) error {
			return g.hasNot(clusterHosts, s.Second.addr(21000))
		}},
	}
}

const secondCheck = "second"

// startSecond starts the second instance and its sidecar, which needs a
// registration for its beginning only.
func (s *changesStory) startSecond(t *testing.T) {
	t.Helper()
	startNamed(t, s.Second, 8080, "second")
	if err := s.registerSecond(api.HealthCritical); err != nil {
		t.Fatal(err)
	}
	startEnvoy(t, envoyOptions{
		Name: "sidecar of second", Host: s.Second, Consul: s.Consul, Envoy: envoyNew, AdminPort: 22000,
		Args: []string{"-sidecar-for", "second"},
	}).waitListener(t, 21000)
	if err := s.Consul.Client.Agent().ServiceDeregister("second"); err != nil {
		t.Fatal(err)
	}
	for _, g := range s.both() {
		eventually(t, g.Name+" forgets the second instance", changeDeadline, func() error {
			return g.hasNot(clusterHosts, s.Second.addr(21000))
		})
	}
}

// registerSecond registers the second instance; its health is what the test
// says.
func (s *changesStory) registerSecond(status string) error {
	return s.Consul.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: "second", Name: "static-server", Address: s.Second.IP.String(), Port: 8080,
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{
			Address: s.Second.IP.String(),
			Port:    21000,
			Checks:  api.AgentServiceChecks{{CheckID: secondCheck, TTL: "1h", Status: status}},
		}},
	})
}

const tls13 = `"tls_maximum_protocol_version": "TLSv1_3"`

// ofAllProxies are changes of what all proxies of the datacenter share.
func (s *changesStory) ofAllProxies() []change {
	return []change{
		{"proxy-defaults: the access log's format", s.writing(logFormat("two")), func(g *loadedGateway) error {
			return g.logs(`"mark":"two"`)
		}},
		s.newConnections(),
		{"mesh: deleted", s.deleting(api.MeshConfig, api.MeshConfigMesh), func(g *loadedGateway) error {
			return g.hasNot(clusterConfig, tls13)
		}},
		s.newRoot(),
	}
}

// newConnections is a change of the clusters, which makes Envoy leave the
// connections that it has to the services.
func (s *changesStory) newConnections() change {
	return change{"mesh: TLS 1.3 allowed", s.writing(&api.MeshConfigEntry{
		TLS: &api.MeshTLSConfig{Outgoing: &api.MeshDirectionalTLSConfig{TLSMaxVersion: "TLSv1_3"}},
	}), func(g *loadedGateway) error { return g.has(clusterConfig, tls13) }}
}
