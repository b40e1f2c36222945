//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/hashicorp/consul/api"
)

// activeListener is what of listeners counts for new connections.
const activeListener = listenerConfig + "&mask=active_state"

// ofTheRegistrations are changes of how the two instances are registered.
func (s *changesStory) ofTheRegistrations() []change {
	register := func(config map[string]any) func() error {
		return func() error {
			return errors.Join(s.registerGateway("on-usher", s.Usher, config), s.registerGateway("on-consul", s.Own, config))
		}
	}
	const second = "http:127.0.0.2:8080::"
	bind := map[string]any{"second": map[string]any{"address": "127.0.0.2"}}
	return []change{
		{"registration: a second bind address", register(map[string]any{
			"envoy_gateway_bind_addresses": bind,
		}), dumps(listenerList, second)},
		{"registration: larger request headers", register(map[string]any{
			"envoy_gateway_bind_addresses": bind, "max_request_headers_kb": 96,
		}), dumps(activeListener, `"max_request_headers_kb": 96`)},
		{"registration: one bind address again", register(map[string]any{
			"max_request_headers_kb": 96,
		}), lacks(listenerList, second)},
		{"registration: request headers as before", register(nil), lacks(activeListener, `"max_request_headers_kb"`)},
	}
}

// registerGateway registers an instance of the gateway anew.
func (s *changesStory) registerGateway(id string, g *loadedGateway, config map[string]any) error {
	return s.Consul.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		Kind: api.ServiceKindIngressGateway, ID: id, Name: "ingress-gateway", Address: g.Host.IP.String(), Port: 8443,
		Proxy: &api.AgentServiceConnectProxyConfig{Config: config},
	})
}

// outage is a change that takes away what serves the load, and one that brings it
// back.
type outage struct{ gone, back change }

func (s *changesStory) outages() []outage {
	closed := func(g *loadedGateway) error {
		if _, err := g.ask(call{Path: "/"}); err == nil {
			return errors.New("port 8080 still answers")
		}
		return nil
	}
	return []outage{
		{
			change{"ingress-gateway: deleted", s.deleting(api.IngressGateway, "ingress-gateway"), closed},
			change{"ingress-gateway: back", func() error { return s.set(s.entry) }, serves},
		},
		{
			change{"service: deregistered", func() error {
				return s.Consul.Client.Agent().ServiceDeregister("static-server")
			}, lacks(clusterHosts, s.Service.addr(21000))},
			change{"service: back", func() error { return s.instance(0).register() }, serves},
		},
	}
}

// serves wants the load's request answered 200. It does not count other answers,
// which are no surprise in an outage.
func serves(g *loadedGateway) error {
	c := g.load.target
	c.Path = "/"
	got, err := c.do(context.Background())
	if err == nil && got.Status != http.StatusOK {
		err = fmt.Errorf("status %d", got.Status)
	}
	return err
}

const tls13 = `"tls_maximum_protocol_version": "TLSv1_3"`

// ofAllProxies are changes of what all proxies of the datacenter share.
func (s *changesStory) ofAllProxies() []change {
	return []change{
		{"proxy-defaults: the access log's format", s.writing(logFormat("two")), func(g *loadedGateway) error {
			return g.logs(`"mark":"two"`)
		}},
		{"proxy-defaults: no access log", s.writing(&api.ProxyConfigEntry{
			Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal,
		}), lacks(activeListener, "access_loggers")},
		{"proxy-defaults: an access log of text", s.writing(&api.ProxyConfigEntry{
			Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal,
			AccessLogs: &api.AccessLogsConfig{Enabled: true, TextFormat: "text %RESPONSE_CODE%"},
		}), func(g *loadedGateway) error { return g.logs("text 200\n") }},
		{"proxy-defaults: of JSON again", s.writing(logFormat("three")), func(g *loadedGateway) error {
			return g.logs(`"mark":"three"`)
		}},
		{"proxy-defaults: a fetch timeout", s.writing(fetchTimeout(logFormat("three"), 7000)), dumps(clusterConfig, `"initial_fetch_timeout": "7s"`)},
		{"proxy-defaults: and none", s.writing(logFormat("three")), lacks(clusterConfig, `"initial_fetch_timeout": "7s"`)},
		s.newConnections(),
		{"mesh: deleted", s.deleting(api.MeshConfig, api.MeshConfigMesh), func(g *loadedGateway) error {
			return g.hasNot(clusterConfig, tls13)
		}},
	}
}

// newConnections is a change of the clusters, which makes Envoy leave the
// connections that it has to the services.
func (s *changesStory) newConnections() change {
	return change{"mesh: TLS 1.3 allowed", s.writing(&api.MeshConfigEntry{
		TLS: &api.MeshTLSConfig{Outgoing: &api.MeshDirectionalTLSConfig{TLSMaxVersion: "TLSv1_3"}},
	}), func(g *loadedGateway) error { return g.has(clusterConfig, tls13) }}
}

// fetchTimeout is an entry in which Envoys wait so many milliseconds for routes
// and endpoints.
func fetchTimeout(e *api.ProxyConfigEntry, ms int) *api.ProxyConfigEntry {
	e.Config = map[string]any{"xds_fetch_timeout_ms": ms}
	return e
}
