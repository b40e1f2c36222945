//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// The admin pages in which changes show that no request does.
const (
	clusterConfig  = "/config_dump?resource=dynamic_active_clusters&name_regex=static-server.*"
	listenerConfig = "/config_dump?resource=dynamic_listeners"
	routeConfig    = "/config_dump?resource=dynamic_route_configs"
	clusterHosts   = "/clusters"
	listenerList   = "/listeners"
)

type entry = *api.IngressGatewayConfigEntry

// ofTheGateway are changes of the ingress-gateway entry.
func (s *changesStory) ofTheGateway() []change {
	return slices.Concat(s.ofASecondListener(), s.ofTheHosts(), s.ofTheSettings())
}

func (s *changesStory) ofASecondListener() []change {
	other := api.IngressService{Name: "other-server", Hosts: []string{labHost}}
	second := func(g *loadedGateway) error {
		return answered(call{To: g.Host.addr(8081), Path: "/"}, servedBy, "other-server")(g)
	}
	listens := func(protocol string) func(*loadedGateway) error {
		return func(g *loadedGateway) error { return g.has(listenerList, protocol+":"+g.Host.addr(8081)+"::") }
	}
	return []change{
		{"ingress-gateway: a listener added", s.editing(func(e entry) {
			e.Listeners = append(e.Listeners, api.IngressListener{Port: 8081, Protocol: "http", Services: []api.IngressService{other}})
		}), second},
		{"ingress-gateway: its protocol now http2", s.editing(func(e entry) {
			e.Listeners[1].Protocol, e.Listeners[1].Services = "http2", []api.IngressService{{Name: "http2-server"}}
		}), listens("http2")},
		{"ingress-gateway: its protocol now grpc", s.editing(func(e entry) {
			e.Listeners[1].Protocol, e.Listeners[1].Services = "grpc", []api.IngressService{{Name: "grpc-server"}}
		}), listens("grpc")},
		{"ingress-gateway: its protocol now tcp", s.editing(func(e entry) {
			e.Listeners[1].Protocol, e.Listeners[1].Services = "tcp", []api.IngressService{{Name: "tcp-server"}}
		}), listens("tcp-server")},
		{"ingress-gateway: its protocol http again", s.editing(func(e entry) {
			e.Listeners[1].Protocol, e.Listeners[1].Services = "http", []api.IngressService{other}
		}), second},
		{"ingress-gateway: TLS on it", s.editing(func(e entry) {
			e.Listeners[1].TLS = &api.GatewayTLSConfig{Enabled: true}
		}), func(g *loadedGateway) error { return g.handshake(8081, tls.VersionTLS12) }},
		{"ingress-gateway: TLS 1.3 only", s.editing(func(e entry) {
			e.Listeners[1].TLS.TLSMinVersion = "TLSv1_3"
		}), func(g *loadedGateway) error {
			if g.handshake(8081, tls.VersionTLS12) == nil {
				return errors.New("it still takes TLS 1.2")
			}
			return g.handshake(8081, tls.VersionTLS13)
		}},
		{"ingress-gateway: TLS off again", s.editing(func(e entry) { e.Listeners[1].TLS = nil }), second},
		{"ingress-gateway: a listener removed", s.editing(func(e entry) {
			e.Listeners = e.Listeners[:1]
		}), func(g *loadedGateway) error {
			if _, err := g.ask(call{To: g.Host.addr(8081), Path: "/"}); err == nil {
				return errors.New("port 8081 still answers")
			}
			return nil
		}},
	}
}

// firstService is the service that the load goes to.
func firstService(e entry) *api.IngressService { return &e.Listeners[0].Services[0] }

func (s *changesStory) ofTheHosts() []change {
	at := func(host string) call { return call{Path: "/", Host: host} }
	return []change{
		{"ingress-gateway: a host added", s.editing(func(e entry) {
			firstService(e).Hosts = append(firstService(e).Hosts, "www.example.com")
		}), answered(at("www.example.com"), servedBy, "static-server")},
		{"ingress-gateway: a wildcard host", s.editing(func(e entry) {
			firstService(e).Hosts = append(firstService(e).Hosts, "*.example.net")
		}), answered(at("any.example.net"), servedBy, "static-server")},
		{"ingress-gateway: every host", s.editing(func(e entry) {
			firstService(e).Hosts = []string{"*"}
		}), answered(at("any.example.org"), servedBy, "static-server")},
		{"ingress-gateway: one host again", s.editing(func(e entry) {
			firstService(e).Hosts = []string{labHost}
		}), refused(at("any.example.org"), http.StatusNotFound)},
		{"ingress-gateway: a second service", s.editing(func(e entry) {
			e.Listeners[0].Services = append(e.Listeners[0].Services, api.IngressService{Name: "other-server"})
		}), answered(at("other-server.ingress.consul"), servedBy, "other-server")},
		{"ingress-gateway: and no longer", s.editing(func(e entry) {
			e.Listeners[0].Services = e.Listeners[0].Services[:1]
		}), refused(at("other-server.ingress.consul"), http.StatusNotFound)},
		{"ingress-gateway: all services by a wildcard", s.editing(func(e entry) {
			e.Listeners[0].Services = []api.IngressService{{Name: "*"}}
		}), answered(at("other-server.ingress.consul"), servedBy, "other-server")},
		{"ingress-gateway: one service again", s.editing(func(e entry) {
			e.Listeners[0].Services = []api.IngressService{{Name: "static-server", Hosts: []string{labHost}}}
		}), refused(at("other-server.ingress.consul"), http.StatusNotFound)},
	}
}

func (s *changesStory) ofTheSettings() []change {
	root := call{Path: "/"}
	return []change{
		{"ingress-gateway: a response header set", s.editing(func(e entry) {
			firstService(e).ResponseHeaders = &api.HTTPHeaderModifiers{Set: map[string]string{"x-from": "the entry"}}
		}), answered(root, "x-from", "the entry")},
		{"ingress-gateway: a response header removed", s.editing(func(e entry) {
			firstService(e).ResponseHeaders = nil
		}), answered(root, "x-from", "")},
		{"ingress-gateway: a request header added", s.editing(func(e entry) {
			firstService(e).RequestHeaders = &api.HTTPHeaderModifiers{Add: map[string]string{seenMark: "added"}}
		}), answered(root, seenMark, "added")},
		{"ingress-gateway: limits of the service", s.editing(func(e entry) {
			n := uint32(900)
			firstService(e).MaxConnections, firstService(e).MaxPendingRequests, firstService(e).MaxConcurrentRequests = &n, &n, &n
		}), dumps(clusterConfig, `"max_requests": 900`)},
		{"ingress-gateway: a passive health check", s.editing(func(e entry) {
			firstService(e).PassiveHealthCheck = &api.PassiveHealthCheck{Interval: 7 * time.Second, MaxFailures: 9}
		}), dumps(clusterConfig, `"consecutive_5xx": 9`)},
		{"ingress-gateway: neither", s.editing(func(e entry) {
			*firstService(e) = api.IngressService{Name: "static-server", Hosts: []string{labHost}}
		}), lacks(clusterConfig, `"consecutive_5xx": 9`)},
		{"ingress-gateway: limits of all services", s.editing(func(e entry) {
			n := uint32(800)
			e.Defaults = &api.IngressServiceConfig{MaxConnections: &n, PassiveHealthCheck: &api.PassiveHealthCheck{MaxFailures: 8}}
		}), dumps(clusterConfig, `"consecutive_5xx": 8`)},
		// A limit must not stay: with it, Consul's own xDS fails at a failover.
		{"ingress-gateway: a passive health check of all", s.editing(func(e entry) {
			e.Defaults = &api.IngressServiceConfig{PassiveHealthCheck: &api.PassiveHealthCheck{MaxFailures: 6}}
		}), dumps(clusterConfig, `"consecutive_5xx": 6`)},
	}
}

// handshake wants a TLS handshake to succeed with versions up to the newest.
func (g *loadedGateway) handshake(port int, newest uint16) error {
	conn, err := call{From: g.load.target.From, To: g.Host.addr(port)}.connect(context.Background())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	config := &tls.Config{InsecureSkipVerify: true, MaxVersion: newest} // who it is does not matter here
	return tls.Client(conn.Conn, config).HandshakeContext(context.Background())
}

// refused wants a request answered with the status.
func refused(c call, status int) func(*loadedGateway) error {
	return func(g *loadedGateway) error {
		got, err := g.ask(c)
		if err == nil && got.Status != status {
			err = fmt.Errorf("status %d", got.Status)
		}
		return err
	}
}

// ofTheServices are changes of the entries that make a discovery chain.
func (s *changesStory) ofTheServices() []change {
	defaults := []change{
		{"service-defaults: an external SNI", s.writing(&api.ServiceConfigEntry{
			Kind: api.ServiceDefaults, Name: "static-server", Protocol: "http", ExternalSNI: "sni.example.com",
		}), dumps(clusterConfig, `"sni": "sni.example.com"`)},
		{"service-defaults: and none", s.writing(&api.ServiceConfigEntry{
			Kind: api.ServiceDefaults, Name: "static-server", Protocol: "http",
		}), lacks(clusterConfig, `"sni": "sni.example.com"`)},
	}
	return slices.Concat(defaults, s.ofTheRouter(), s.ofTheSplitter(), s.ofTheResolver())
}

func (s *changesStory) ofTheRouter() []change {
	to := func(m api.ServiceRouteHTTPMatch, d api.ServiceRouteDestination) func() error {
		return s.writing(&api.ServiceRouterConfigEntry{
			Kind: api.ServiceRouter, Name: "static-server",
			Routes: []api.ServiceRoute{{Match: &api.ServiceRouteMatch{HTTP: &m}, Destination: &d}},
		})
	}
	routed := func(header string) api.ServiceRouteDestination {
		return api.ServiceRouteDestination{
			Service:         "other-server",
			ResponseHeaders: &api.HTTPHeaderModifiers{Set: map[string]string{"x-from": header}},
		}
	}
	own := func(d api.ServiceRouteDestination) func() error {
		return to(api.ServiceRouteHTTPMatch{PathPrefix: "/"}, d)
	}
	path := call{Path: "/routed"}
	marked := call{Path: "/", Header: http.Header{"X-Mark": {"yes"}}}
	return []change{
		{"service-router: a route to a new cluster", to(api.ServiceRouteHTTPMatch{PathPrefix: "/routed"}, routed("one")), answered(path, "x-from", "one")},
		{"service-router: the route changed", to(api.ServiceRouteHTTPMatch{PathPrefix: "/routed"}, routed("two")), answered(path, "x-from", "two")},
		{"service-router: by a header", to(api.ServiceRouteHTTPMatch{
			Header: []api.ServiceRouteHTTPMatchHeader{{Name: "x-mark", Exact: "yes"}}, Methods: []string{"GET"},
		}, routed("three")), answered(marked, "x-from", "three")},
		{"service-router: by a query parameter", to(api.ServiceRouteHTTPMatch{
			PathRegex: "/q.*", QueryParam: []api.ServiceRouteHTTPMatchQueryParam{{Name: "a", Exact: "b"}},
		}, routed("four")), answered(call{Path: "/query?a=b"}, "x-from", "four")},
		{"service-router: the path rewritten", own(api.ServiceRouteDestination{PrefixRewrite: "/rewritten/"}), answered(path, seenPath, "/rewritten/routed")},
		{"service-router: retries", own(api.ServiceRouteDestination{
			NumRetries: 3, RetryOnConnectFailure: true, RetryOnStatusCodes: []uint32{503},
		}), dumps(routeConfig, `"num_retries": 3`)},
		{"service-router: timeouts", own(api.ServiceRouteDestination{
			RequestTimeout: 33 * time.Second, IdleTimeout: 44 * time.Second,
		}), dumps(routeConfig, `"timeout": "33s"`)},
		{"service-router: all requests to a new cluster", own(routed("five")), answered(path, "x-from", "five")},
		{"service-router: deleted", s.deleting(api.ServiceRouter, "static-server"), answered(path, servedBy, "static-server")},
	}
}

func (s *changesStory) ofTheSplitter() []change {
	split := func(splits ...api.ServiceSplit) func() error {
		return s.writing(&api.ServiceSplitterConfigEntry{Kind: api.ServiceSplitter, Name: "static-server", Splits: splits})
	}
	root := call{Path: "/"}
	return []change{
		{"service-splitter: all requests to another service", split(api.ServiceSplit{Weight: 100, Service: "other-server"}), answered(root, servedBy, "other-server")},
		{"service-splitter: 100 to 0", split(
			api.ServiceSplit{Weight: 0, Service: "other-server"}, api.ServiceSplit{Weight: 100, Service: "static-server"},
		), answered(root, servedBy, "static-server")},
		{"service-splitter: 0 to 100", split(
			api.ServiceSplit{Weight: 100, Service: "other-server"}, api.ServiceSplit{Weight: 0, Service: "static-server"},
		), answered(root, servedBy, "other-server")},
		{"service-splitter: a header for one leg", split(
			api.ServiceSplit{Weight: 50, Service: "other-server"},
			api.ServiceSplit{Weight: 50, Service: "static-server", ResponseHeaders: &api.HTTPHeaderModifiers{Set: map[string]string{"x-from": "leg"}}},
		), dumps(routeConfig, `"value": "leg"`)},
		{"service-splitter: deleted", s.deleting(api.ServiceSplitter, "static-server"), lacks(routeConfig, `"value": "leg"`)},
	}
}

func (s *changesStory) ofTheResolver() []change {
	resolve := func(r api.ServiceResolverConfigEntry) func() error {
		r.Kind, r.Name = api.ServiceResolver, "static-server"
		return s.writing(&r)
	}
	balance := func(b api.LoadBalancer) func() error {
		return resolve(api.ServiceResolverConfigEntry{LoadBalancer: &b})
	}
	subsets := map[string]api.ServiceResolverSubset{
		"v1": {Filter: "Service.Port == 21000"}, "v2": {Filter: "Service.Port != 22000", OnlyPassing: true},
	}
	root := call{Path: "/"}
	return []change{
		{"service-resolver: all requests to a new cluster", resolve(api.ServiceResolverConfigEntry{
			Redirect: &api.ServiceResolverRedirect{Service: "other-server"},
		}), answered(root, servedBy, "other-server")},
		{"service-resolver: all requests to a subset of it", func() error {
			return errors.Join(s.set(&api.ServiceResolverConfigEntry{
				Kind: api.ServiceResolver, Name: "other-server",
				Subsets: map[string]api.ServiceResolverSubset{"v1": {Filter: "Service.Port == 21001"}},
			}), resolve(api.ServiceResolverConfigEntry{
				Redirect: &api.ServiceResolverRedirect{Service: "other-server", ServiceSubset: "v1"},
			})())
		}, dumps(routeConfig, `"cluster": "v1.other-server.`)},
		{"service-resolver: a default subset", resolve(api.ServiceResolverConfigEntry{
			Subsets: subsets, DefaultSubset: "v1",
		}), dumps(routeConfig, `"cluster": "v1.static-server.`)},
		{"service-resolver: another default subset", resolve(api.ServiceResolverConfigEntry{
			Subsets: subsets, DefaultSubset: "v2",
		}), dumps(routeConfig, `"cluster": "v2.static-server.`)},
		{"service-resolver: a failover", resolve(api.ServiceResolverConfigEntry{
			Failover: map[string]api.ServiceResolverFailover{"*": {Service: "other-server"}},
		}), dumps(clusterHosts, "failover-target~1~static-server.")},
		{"service-resolver: no failover, a connect timeout", resolve(api.ServiceResolverConfigEntry{
			ConnectTimeout: 11 * time.Second,
		}), dumps(clusterConfig, `"connect_timeout": "11s"`)},
		{"service-resolver: a request timeout", resolve(api.ServiceResolverConfigEntry{
			RequestTimeout: 55 * time.Second,
		}), dumps(routeConfig, `"timeout": "55s"`)},
		{"service-resolver: least_request", balance(api.LoadBalancer{
			Policy: "least_request", LeastRequestConfig: &api.LeastRequestConfig{ChoiceCount: 4},
		}), dumps(clusterConfig, `"lb_policy": "LEAST_REQUEST"`)},
		{"service-resolver: random", balance(api.LoadBalancer{Policy: "random"}), dumps(clusterConfig, `"lb_policy": "RANDOM"`)},
		{"service-resolver: ring_hash by a header", balance(api.LoadBalancer{
			Policy: "ring_hash", HashPolicies: []api.HashPolicy{{Field: "header", FieldValue: "x-user"}},
		}), dumps(clusterConfig, `"lb_policy": "RING_HASH"`)},
		{"service-resolver: maglev by a cookie and the address", balance(api.LoadBalancer{
			Policy: "maglev", HashPolicies: []api.HashPolicy{
				{Field: "cookie", FieldValue: "user", CookieConfig: &api.CookieConfig{Session: true}}, {SourceIP: true},
			},
		}), dumps(clusterConfig, `"lb_policy": "MAGLEV"`)},
		{"service-resolver: deleted", s.deleting(api.ServiceResolver, "static-server"), lacks(clusterConfig, `"lb_policy": "MAGLEV"`)},
	}
}

// ofTheInstances are what happens to instances of a service. The sidecar of the
// second one serves before Consul is told of it, and after, so that no request
// has to fail.
func (s *changesStory) ofTheInstances(t *testing.T) []change {
	s.startSecond(t)
	agent := s.Consul.Client.Agent()
	is := func(what string) func(*loadedGateway) error {
		return func(g *loadedGateway) error { return g.has(clusterHosts, s.Second.addr(21000)+"::"+what) }
	}
	check := func(status string) func() error {
		return func() error { return agent.UpdateTTL(secondCheck, "", status) }
	}
	register := func(over api.AgentServiceRegistration) func() error {
		return func() error { return s.registerSecond(api.HealthPassing, over) }
	}
	moved := api.AgentServiceRegistration{Address: movedIP}
	return []change{
		{"instance: up", register(api.AgentServiceRegistration{}), is("health_flags::healthy\n")},
		{"instance: critical", check(api.HealthCritical), is("health_flags::/failed_eds_health\n")},
		{"instance: passing again", check(api.HealthPassing), is("health_flags::healthy\n")},
		{"instance: in maintenance", func() error {
			return agent.EnableServiceMaintenance(secondSidecar, "")
		}, is("health_flags::/failed_eds_health\n")},
		{"instance: out of maintenance", func() error {
			return agent.DisableServiceMaintenance(secondSidecar)
		}, is("health_flags::healthy\n")},
		{"instance: of another weight", register(api.AgentServiceRegistration{
			Weights: &api.AgentWeights{Passing: 5, Warning: 1},
		}), is("weight::5\n")},
		{"instance: with a warning", check(api.HealthWarning), is("weight::1\n")},
		{"instance: at another address", register(moved), func(g *loadedGateway) error {
			return errors.Join(g.has(clusterHosts, movedIP+":21000::health_flags::healthy\n"), g.hasNot(clusterHosts, s.Second.addr(21000)))
		}},
		{"instance: down", func() error { return agent.ServiceDeregister("second") }, func(g *loadedGateway) error {
			return g.hasNot(clusterHosts, movedIP)
		}},
	}
}

const (
	secondCheck   = "second"
	secondSidecar = "second-sidecar-proxy"
	// movedIP is one more address of the second instance's host.
	movedIP = "198.18.0.32"
)

// startSecond starts the second instance and its sidecar, which needs a
// registration for its beginning only.
func (s *changesStory) startSecond(t *testing.T) {
	t.Helper()
	s.Second.ip(t, "address add "+movedIP+"/32 dev eth0")
	startNamed(t, s.Second, 8080, "second")
	if err := s.registerSecond(api.HealthCritical, api.AgentServiceRegistration{}); err != nil {
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
// says. The sidecar listens on every address, and has the address and the weights
// of over.
func (s *changesStory) registerSecond(status string, over api.AgentServiceRegistration) error {
	return s.Consul.Client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: "second", Name: "static-server", Address: s.Second.IP.String(), Port: 8080,
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{
			Address: cmp.Or(over.Address, s.Second.IP.String()),
			Port:    21000,
			Weights: over.Weights,
			Proxy:   &api.AgentServiceConnectProxyConfig{Config: map[string]any{"bind_address": "0.0.0.0"}},
			Checks:  api.AgentServiceChecks{{CheckID: secondCheck, TTL: "1h", Status: status}},
		}},
	})
}
