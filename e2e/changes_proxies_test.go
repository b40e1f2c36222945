//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
)

// activeListener is what of listeners counts for new connections.
const activeListener = listenerConfig + "&mask=active_state"

// ofTheRegistrations are changes of how the two instances are registered.
func (s *changesStory) ofTheRegistrations() []lab.Change {
	register := func(config map[string]any) func() error {
		return func() error {
			return errors.Join(s.registerGateway("on-usher", s.OnUsher, config), s.registerGateway("on-consul", s.OnConsul, config))
		}
	}
	const second = "http:127.0.0.2:8080::"
	bind := map[string]any{"second": map[string]any{"address": "127.0.0.2"}}
	return []lab.Change{
		{Name: "registration: a second bind address", Apply: register(map[string]any{
			"envoy_gateway_bind_addresses": bind,
		}), Visible: lab.HasInDump(listenerList, second)},
		{Name: "registration: larger request headers", Apply: register(map[string]any{
			"envoy_gateway_bind_addresses": bind, "max_request_headers_kb": 96,
		}), Visible: lab.HasInDump(activeListener, `"max_request_headers_kb": 96`)},
		{Name: "registration: one bind address again", Apply: register(map[string]any{
			"max_request_headers_kb": 96,
		}), Visible: lab.HasNotInDump(listenerList, second)},
		{Name: "registration: request headers as before", Apply: register(nil), Visible: lab.HasNotInDump(activeListener, `"max_request_headers_kb"`)},
	}
}

// registerGateway registers an instance of the gateway again.
func (s *changesStory) registerGateway(id string, g *lab.LoadedGateway, config map[string]any) error {
	return s.Consul.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		Kind: api.ServiceKindIngressGateway, ID: id, Name: "ingress-gateway", Address: g.Host.IP.String(), Port: 8443,
		Proxy: &api.AgentServiceConnectProxyConfig{Config: config},
	})
}

func (s *changesStory) outages() []lab.Outage {
	closed := func(g *lab.LoadedGateway) error {
		_, err := g.Request(lab.Request{Path: "/"})
		if err == nil {
			return errors.New("port 8080 still answers")
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("port 8080 is not closed: %w", err)
		}
		return nil
	}
	return []lab.Outage{
		{
			Gone: lab.Change{Name: "ingress-gateway: deleted", Apply: s.deleting(api.IngressGateway, "ingress-gateway"), Visible: closed},
			Back: lab.Change{Name: "ingress-gateway: back", Apply: func() error { return s.WriteEntry(s.entry) }, Visible: serves},
		},
		{
			Gone: lab.Change{Name: "service: deregistered", Apply: func() error {
				return s.Consul.Client.Agent().ServiceDeregister("static-server")
			}, Visible: lab.HasNotInDump(clusterHosts, s.Service.Addr(21000))},
			Back: lab.Change{Name: "service: back", Apply: func() error { return s.instance(0).Register() }, Visible: serves},
		},
	}
}

// serves wants the load's request answered 200. It does not count other answers,
// which are no surprise in an outage.
func serves(g *lab.LoadedGateway) error {
	c := g.Load.Target
	c.Path = "/"
	got, err := c.Do(context.Background())
	if err == nil && got.Status != http.StatusOK {
		err = fmt.Errorf("status %d", got.Status)
	}
	return err
}

const tls13 = `"tls_maximum_protocol_version": "TLSv1_3"`

// ofAllProxies are changes of what all proxies of the datacenter share.
func (s *changesStory) ofAllProxies() []lab.Change {
	return []lab.Change{
		{Name: "proxy-defaults: the access log's format", Apply: s.Writing(lab.ProxyDefaultsWithLog("two")), Visible: func(g *lab.LoadedGateway) error {
			return g.HasLogged(`"mark":"two"`)
		}},
		{Name: "proxy-defaults: no access log", Apply: s.Writing(&api.ProxyConfigEntry{
			Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal,
		}), Visible: lab.HasNotInDump(activeListener, "StdoutAccessLog")},
		{Name: "proxy-defaults: an access log of text", Apply: s.Writing(&api.ProxyConfigEntry{
			Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal,
			AccessLogs: &api.AccessLogsConfig{Enabled: true, TextFormat: "text %RESPONSE_CODE%"},
		}), Visible: func(g *lab.LoadedGateway) error { return g.HasLogged("text 200\n") }},
		{Name: "proxy-defaults: of JSON again", Apply: s.Writing(lab.ProxyDefaultsWithLog("three")), Visible: func(g *lab.LoadedGateway) error {
			return g.HasLogged(`"mark":"three"`)
		}},
		{Name: "proxy-defaults: a fetch timeout", Apply: s.Writing(fetchTimeout(lab.ProxyDefaultsWithLog("three"), 7000)), Visible: lab.HasInDump(clusterConfig, `"initial_fetch_timeout": "7s"`)},
		{Name: "proxy-defaults: and none", Apply: s.Writing(lab.ProxyDefaultsWithLog("three")), Visible: lab.HasNotInDump(clusterConfig, `"initial_fetch_timeout": "7s"`)},
		s.newConnections(),
		{Name: "mesh: deleted", Apply: s.deleting(api.MeshConfig, api.MeshConfigMesh), Visible: func(g *lab.LoadedGateway) error {
			return g.DumpHasNot(clusterConfig, tls13)
		}},
	}
}

// newConnections is a change of the clusters, which makes Envoy leave the
// connections that it has to the services.
func (s *changesStory) newConnections() lab.Change {
	return lab.Change{Name: "mesh: TLS 1.3 allowed", Apply: s.Writing(&api.MeshConfigEntry{
		TLS: &api.MeshTLSConfig{Outgoing: &api.MeshDirectionalTLSConfig{TLSMaxVersion: "TLSv1_3"}},
	}), Visible: func(g *lab.LoadedGateway) error { return g.DumpHas(clusterConfig, tls13) }}
}

// fetchTimeout is an entry in which Envoys wait so many milliseconds for routes
// and endpoints.
func fetchTimeout(e *api.ProxyConfigEntry, ms int) *api.ProxyConfigEntry {
	e.Config = map[string]any{"xds_fetch_timeout_ms": ms}
	return e
}
