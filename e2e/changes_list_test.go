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

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
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
func (s *changesStory) ofTheGateway() []lab.Change {
	return slices.Concat(s.ofASecondListener(), s.ofTheHosts(), s.ofTheSettings())
}

func (s *changesStory) ofASecondListener() []lab.Change {
	other := api.IngressService{Name: "other-server", Hosts: []string{lab.ServiceHost}}
	second := func(g *lab.LoadedGateway) error {
		return answered(lab.Request{To: g.Host.Addr(8081), Path: "/"}, lab.ServedBy, "other-server")(g)
	}
	listens := func(protocol string) func(*lab.LoadedGateway) error {
		return func(g *lab.LoadedGateway) error { return g.DumpHas(listenerList, protocol+":"+g.Host.Addr(8081)+"::") }
	}
	return []lab.Change{
		{Name: "ingress-gateway: a listener added", Apply: s.editing(func(e entry) {
			e.Listeners = append(e.Listeners, api.IngressListener{Port: 8081, Protocol: "http", Services: []api.IngressService{other}})
		}), Visible: second},
		{Name: "ingress-gateway: its protocol now http2", Apply: s.editing(func(e entry) {
			e.Listeners[1].Protocol, e.Listeners[1].Services = "http2", []api.IngressService{{Name: "http2-server"}}
		}), Visible: listens("http2")},
		{Name: "ingress-gateway: its protocol now grpc", Apply: s.editing(func(e entry) {
			e.Listeners[1].Protocol, e.Listeners[1].Services = "grpc", []api.IngressService{{Name: "grpc-server"}}
		}), Visible: listens("grpc")},
		{Name: "ingress-gateway: its protocol now tcp", Apply: s.editing(func(e entry) {
			e.Listeners[1].Protocol, e.Listeners[1].Services = "tcp", []api.IngressService{{Name: "tcp-server"}}
		}), Visible: listens("tcp-server")},
		{Name: "ingress-gateway: its protocol http again", Apply: s.editing(func(e entry) {
			e.Listeners[1].Protocol, e.Listeners[1].Services = "http", []api.IngressService{other}
		}), Visible: second},
		{Name: "ingress-gateway: TLS on it", Apply: s.editing(func(e entry) {
			e.Listeners[1].TLS = &api.GatewayTLSConfig{Enabled: true}
		}), Visible: func(g *lab.LoadedGateway) error { return servedCertificate(g, 8081, tls.VersionTLS12) }},
		{Name: "ingress-gateway: TLS 1.3 only", Apply: s.editing(func(e entry) {
			e.Listeners[1].TLS.TLSMinVersion = "TLSv1_3"
		}), Visible: func(g *lab.LoadedGateway) error {
			if servedCertificate(g, 8081, tls.VersionTLS12) == nil {
				return errors.New("it still takes TLS 1.2")
			}
			return servedCertificate(g, 8081, tls.VersionTLS13)
		}},
		{Name: "ingress-gateway: TLS off again", Apply: s.editing(func(e entry) { e.Listeners[1].TLS = nil }), Visible: second},
		{Name: "ingress-gateway: a listener removed", Apply: s.editing(func(e entry) {
			e.Listeners = e.Listeners[:1]
		}), Visible: func(g *lab.LoadedGateway) error {
			if _, err := g.Request(lab.Request{To: g.Host.Addr(8081), Path: "/"}); err == nil {
				return errors.New("port 8081 still answers")
			}
			return nil
		}},
	}
}

// firstService is the service that the load goes to.
func firstService(e entry) *api.IngressService { return &e.Listeners[0].Services[0] }

func (s *changesStory) ofTheHosts() []lab.Change {
	at := func(host string) lab.Request { return lab.Request{Path: "/", Host: host} }
	return []lab.Change{
		{Name: "ingress-gateway: a host added", Apply: s.editing(func(e entry) {
			firstService(e).Hosts = append(firstService(e).Hosts, "www.example.com")
		}), Visible: answered(at("www.example.com"), lab.ServedBy, "static-server")},
		{Name: "ingress-gateway: a wildcard host", Apply: s.editing(func(e entry) {
			firstService(e).Hosts = append(firstService(e).Hosts, "*.example.net")
		}), Visible: answered(at("any.example.net"), lab.ServedBy, "static-server")},
		{Name: "ingress-gateway: every host", Apply: s.editing(func(e entry) {
			firstService(e).Hosts = []string{"*"}
		}), Visible: answered(at("any.example.org"), lab.ServedBy, "static-server")},
		{Name: "ingress-gateway: one host again", Apply: s.editing(func(e entry) {
			firstService(e).Hosts = []string{lab.ServiceHost}
		}), Visible: refused(at("any.example.org"), http.StatusNotFound)},
		{Name: "ingress-gateway: a second service", Apply: s.editing(func(e entry) {
			e.Listeners[0].Services = append(e.Listeners[0].Services, api.IngressService{Name: "other-server"})
		}), Visible: answered(at("other-server.ingress.consul"), lab.ServedBy, "other-server")},
		{Name: "ingress-gateway: and no longer", Apply: s.editing(func(e entry) {
			e.Listeners[0].Services = e.Listeners[0].Services[:1]
		}), Visible: refused(at("other-server.ingress.consul"), http.StatusNotFound)},
		{Name: "ingress-gateway: all services by a wildcard", Apply: s.editing(func(e entry) {
			e.Listeners[0].Services = []api.IngressService{{Name: "*"}}
		}), Visible: answered(at("other-server.ingress.consul"), lab.ServedBy, "other-server")},
		{Name: "ingress-gateway: one service again", Apply: s.editing(func(e entry) {
			e.Listeners[0].Services = []api.IngressService{{Name: "static-server", Hosts: []string{lab.ServiceHost}}}
		}), Visible: refused(at("other-server.ingress.consul"), http.StatusNotFound)},
	}
}

func (s *changesStory) ofTheSettings() []lab.Change {
	root := lab.Request{Path: "/"}
	return []lab.Change{
		{Name: "ingress-gateway: a response header set", Apply: s.editing(func(e entry) {
			firstService(e).ResponseHeaders = &api.HTTPHeaderModifiers{Set: map[string]string{"x-from": "the entry"}}
		}), Visible: answered(root, "x-from", "the entry")},
		{Name: "ingress-gateway: a response header removed", Apply: s.editing(func(e entry) {
			firstService(e).ResponseHeaders = nil
		}), Visible: answered(root, "x-from", "")},
		{Name: "ingress-gateway: a request header added", Apply: s.editing(func(e entry) {
			firstService(e).RequestHeaders = &api.HTTPHeaderModifiers{Add: map[string]string{lab.SeenMark: "added"}}
		}), Visible: answered(root, lab.SeenMark, "added")},
		{Name: "ingress-gateway: limits of the service", Apply: s.editing(func(e entry) {
			n := uint32(900)
			firstService(e).MaxConnections, firstService(e).MaxPendingRequests, firstService(e).MaxConcurrentRequests = &n, &n, &n
		}), Visible: lab.HasInDump(clusterConfig, `"max_requests": 900`)},
		{Name: "ingress-gateway: a passive health check", Apply: s.editing(func(e entry) {
			firstService(e).PassiveHealthCheck = &api.PassiveHealthCheck{Interval: 7 * time.Second, MaxFailures: 9}
		}), Visible: lab.HasInDump(clusterConfig, `"consecutive_5xx": 9`)},
		{Name: "ingress-gateway: neither", Apply: s.editing(func(e entry) {
			*firstService(e) = api.IngressService{Name: "static-server", Hosts: []string{lab.ServiceHost}}
		}), Visible: lab.HasNotInDump(clusterConfig, `"consecutive_5xx": 9`)},
		{Name: "ingress-gateway: limits of all services", Apply: s.editing(func(e entry) {
			n := uint32(800)
			e.Defaults = &api.IngressServiceConfig{MaxConnections: &n, PassiveHealthCheck: &api.PassiveHealthCheck{MaxFailures: 8}}
		}), Visible: lab.HasInDump(clusterConfig, `"consecutive_5xx": 8`)},
		// A limit must not stay: with it, Consul's own xDS fails at a failover.
		{Name: "ingress-gateway: a passive health check of all", Apply: s.editing(func(e entry) {
			e.Defaults = &api.IngressServiceConfig{PassiveHealthCheck: &api.PassiveHealthCheck{MaxFailures: 6}}
		}), Visible: lab.HasInDump(clusterConfig, `"consecutive_5xx": 6`)},
	}
}

// servedCertificate wants a TLS handshake to succeed with versions up to the newest.
func servedCertificate(g *lab.LoadedGateway, port int, newest uint16) error {
	conn, err := lab.Request{From: g.Load.Target.From, To: g.Host.Addr(port)}.Connect(context.Background())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(lab.RequestTimeout)); err != nil {
		return err
	}
	config := &tls.Config{InsecureSkipVerify: true, MaxVersion: newest} // who it is does not matter here
	return tls.Client(conn.Conn, config).HandshakeContext(context.Background())
}

// refused wants a request answered with the status.
func refused(c lab.Request, status int) func(*lab.LoadedGateway) error {
	return func(g *lab.LoadedGateway) error {
		got, err := g.Request(c)
		if err == nil && got.Status != status {
			err = fmt.Errorf("status %d", got.Status)
		}
		return err
	}
}

// ofTheServices are changes of the entries that make a discovery chain.
func (s *changesStory) ofTheServices() []lab.Change {
	defaults := []lab.Change{
		{Name: "service-defaults: an external SNI", Apply: s.Writing(&api.ServiceConfigEntry{
			Kind: api.ServiceDefaults, Name: "static-server", Protocol: "http", ExternalSNI: "sni.example.com",
		}), Visible: lab.HasInDump(clusterConfig, `"sni": "sni.example.com"`)},
		{Name: "service-defaults: and none", Apply: s.Writing(&api.ServiceConfigEntry{
			Kind: api.ServiceDefaults, Name: "static-server", Protocol: "http",
		}), Visible: lab.HasNotInDump(clusterConfig, `"sni": "sni.example.com"`)},
	}
	return slices.Concat(defaults, s.ofTheRouter(), s.ofTheSplitter(), s.ofTheResolver())
}

func (s *changesStory) ofTheRouter() []lab.Change {
	to := func(m api.ServiceRouteHTTPMatch, d api.ServiceRouteDestination) func() error {
		return s.Writing(&api.ServiceRouterConfigEntry{
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
	path := lab.Request{Path: "/routed"}
	marked := lab.Request{Path: "/", Header: http.Header{"X-Mark": {"yes"}}}
	return []lab.Change{
		{Name: "service-router: a route to a new cluster", Apply: to(api.ServiceRouteHTTPMatch{PathPrefix: "/routed"}, routed("one")), Visible: answered(path, "x-from", "one")},
		{Name: "service-router: the route changed", Apply: to(api.ServiceRouteHTTPMatch{PathPrefix: "/routed"}, routed("two")), Visible: answered(path, "x-from", "two")},
		{Name: "service-router: by a header", Apply: to(api.ServiceRouteHTTPMatch{
			Header: []api.ServiceRouteHTTPMatchHeader{{Name: "x-mark", Exact: "yes"}}, Methods: []string{"GET"},
		}, routed("three")), Visible: answered(marked, "x-from", "three")},
		{Name: "service-router: by a query parameter", Apply: to(api.ServiceRouteHTTPMatch{
			PathRegex: "/q.*", QueryParam: []api.ServiceRouteHTTPMatchQueryParam{{Name: "a", Exact: "b"}},
		}, routed("four")), Visible: answered(lab.Request{Path: "/query?a=b"}, "x-from", "four")},
		{Name: "service-router: the path rewritten", Apply: own(api.ServiceRouteDestination{PrefixRewrite: "/rewritten/"}), Visible: answered(path, lab.SeenPath, "/rewritten/routed")},
		{Name: "service-router: retries", Apply: own(api.ServiceRouteDestination{
			NumRetries: 3, RetryOnConnectFailure: true, RetryOnStatusCodes: []uint32{503},
		}), Visible: lab.HasInDump(routeConfig, `"num_retries": 3`)},
		{Name: "service-router: timeouts", Apply: own(api.ServiceRouteDestination{
			RequestTimeout: 33 * time.Second, IdleTimeout: 44 * time.Second,
		}), Visible: lab.HasInDump(routeConfig, `"timeout": "33s"`)},
		{Name: "service-router: all requests to a new cluster", Apply: own(routed("five")), Visible: answered(path, "x-from", "five")},
		{Name: "service-router: deleted", Apply: s.deleting(api.ServiceRouter, "static-server"), Visible: answered(path, lab.ServedBy, "static-server")},
	}
}

func (s *changesStory) ofTheSplitter() []lab.Change {
	split := func(splits ...api.ServiceSplit) func() error {
		return s.Writing(&api.ServiceSplitterConfigEntry{Kind: api.ServiceSplitter, Name: "static-server", Splits: splits})
	}
	root := lab.Request{Path: "/"}
	return []lab.Change{
		{Name: "service-splitter: all requests to another service", Apply: split(api.ServiceSplit{Weight: 100, Service: "other-server"}), Visible: answered(root, lab.ServedBy, "other-server")},
		{Name: "service-splitter: 100 to 0", Apply: split(
			api.ServiceSplit{Weight: 0, Service: "other-server"}, api.ServiceSplit{Weight: 100, Service: "static-server"},
		), Visible: answered(root, lab.ServedBy, "static-server")},
		{Name: "service-splitter: 0 to 100", Apply: split(
			api.ServiceSplit{Weight: 100, Service: "other-server"}, api.ServiceSplit{Weight: 0, Service: "static-server"},
		), Visible: answered(root, lab.ServedBy, "other-server")},
		{Name: "service-splitter: a header for one leg", Apply: split(
			api.ServiceSplit{Weight: 50, Service: "other-server"},
			api.ServiceSplit{Weight: 50, Service: "static-server", ResponseHeaders: &api.HTTPHeaderModifiers{Set: map[string]string{"x-from": "leg"}}},
		), Visible: lab.HasInDump(routeConfig, `"value": "leg"`)},
		{Name: "service-splitter: deleted", Apply: s.deleting(api.ServiceSplitter, "static-server"), Visible: lab.HasNotInDump(routeConfig, `"value": "leg"`)},
	}
}

func (s *changesStory) ofTheResolver() []lab.Change {
	resolve := func(r api.ServiceResolverConfigEntry) func() error {
		r.Kind, r.Name = api.ServiceResolver, "static-server"
		return s.Writing(&r)
	}
	balance := func(b api.LoadBalancer) func() error {
		return resolve(api.ServiceResolverConfigEntry{LoadBalancer: &b})
	}
	subsets := map[string]api.ServiceResolverSubset{
		"v1": {Filter: "Service.Port == 21000"}, "v2": {Filter: "Service.Port != 22000", OnlyPassing: true},
	}
	root := lab.Request{Path: "/"}
	return []lab.Change{
		{Name: "service-resolver: all requests to a new cluster", Apply: resolve(api.ServiceResolverConfigEntry{
			Redirect: &api.ServiceResolverRedirect{Service: "other-server"},
		}), Visible: answered(root, lab.ServedBy, "other-server")},
		{Name: "service-resolver: all requests to a subset of it", Apply: func() error {
			return errors.Join(s.WriteEntry(&api.ServiceResolverConfigEntry{
				Kind: api.ServiceResolver, Name: "other-server",
				Subsets: map[string]api.ServiceResolverSubset{"v1": {Filter: "Service.Port == 21001"}},
			}), resolve(api.ServiceResolverConfigEntry{
				Redirect: &api.ServiceResolverRedirect{Service: "other-server", ServiceSubset: "v1"},
			})())
		}, Visible: lab.HasInDump(routeConfig, `"cluster": "v1.other-server.`)},
		{Name: "service-resolver: a default subset", Apply: resolve(api.ServiceResolverConfigEntry{
			Subsets: subsets, DefaultSubset: "v1",
		}), Visible: lab.HasInDump(routeConfig, `"cluster": "v1.static-server.`)},
		{Name: "service-resolver: another default subset", Apply: resolve(api.ServiceResolverConfigEntry{
			Subsets: subsets, DefaultSubset: "v2",
		}), Visible: lab.HasInDump(routeConfig, `"cluster": "v2.static-server.`)},
		{Name: "service-resolver: a failover", Apply: resolve(api.ServiceResolverConfigEntry{
			Failover: map[string]api.ServiceResolverFailover{"*": {Service: "other-server"}},
		}), Visible: lab.HasInDump(clusterHosts, "failover-target~1~static-server.")},
		{Name: "service-resolver: no failover, a connect timeout", Apply: resolve(api.ServiceResolverConfigEntry{
			ConnectTimeout: 11 * time.Second,
		}), Visible: lab.HasInDump(clusterConfig, `"connect_timeout": "11s"`)},
		{Name: "service-resolver: a request timeout", Apply: resolve(api.ServiceResolverConfigEntry{
			RequestTimeout: 55 * time.Second,
		}), Visible: lab.HasInDump(routeConfig, `"timeout": "55s"`)},
		{Name: "service-resolver: least_request", Apply: balance(api.LoadBalancer{
			Policy: "least_request", LeastRequestConfig: &api.LeastRequestConfig{ChoiceCount: 4},
		}), Visible: lab.HasInDump(clusterConfig, `"lb_policy": "LEAST_REQUEST"`)},
		{Name: "service-resolver: random", Apply: balance(api.LoadBalancer{Policy: "random"}), Visible: lab.HasInDump(clusterConfig, `"lb_policy": "RANDOM"`)},
		{Name: "service-resolver: ring_hash by a header", Apply: balance(api.LoadBalancer{
			Policy: "ring_hash", HashPolicies: []api.HashPolicy{{Field: "header", FieldValue: "x-user"}},
		}), Visible: lab.HasInDump(clusterConfig, `"lb_policy": "RING_HASH"`)},
		{Name: "service-resolver: maglev by a cookie and the address", Apply: balance(api.LoadBalancer{
			Policy: "maglev", HashPolicies: []api.HashPolicy{
				{Field: "cookie", FieldValue: "user", CookieConfig: &api.CookieConfig{Session: true}}, {SourceIP: true},
			},
		}), Visible: lab.HasInDump(clusterConfig, `"lb_policy": "MAGLEV"`)},
		{Name: "service-resolver: deleted", Apply: s.deleting(api.ServiceResolver, "static-server"), Visible: lab.HasNotInDump(clusterConfig, `"lb_policy": "MAGLEV"`)},
	}
}

// ofTheInstances are what happens to instances of a service. The sidecar of the
// second one serves before it is registered, and after, so that no request
// has to fail.
func (s *changesStory) ofTheInstances(t *testing.T) []lab.Change {
	s.startSecond(t)
	agent := s.Consul.Client.Agent()
	is := func(what string) func(*lab.LoadedGateway) error {
		return func(g *lab.LoadedGateway) error { return g.DumpHas(clusterHosts, s.Second.Addr(21000)+"::"+what) }
	}
	check := func(status string) func() error {
		return func() error { return agent.UpdateTTL(secondCheck, "", status) }
	}
	register := func(over api.AgentServiceRegistration) func() error {
		return func() error { return s.registerSecond(api.HealthPassing, over) }
	}
	moved := api.AgentServiceRegistration{Address: movedIP}
	return []lab.Change{
		{Name: "instance: up", Apply: register(api.AgentServiceRegistration{}), Visible: is("health_flags::healthy\n")},
		{Name: "instance: critical", Apply: check(api.HealthCritical), Visible: is("health_flags::/failed_eds_health\n")},
		{Name: "instance: passing again", Apply: check(api.HealthPassing), Visible: is("health_flags::healthy\n")},
		{Name: "instance: in maintenance", Apply: func() error {
			return agent.EnableServiceMaintenance(secondSidecar, "")
		}, Visible: is("health_flags::/failed_eds_health\n")},
		{Name: "instance: out of maintenance", Apply: func() error {
			return agent.DisableServiceMaintenance(secondSidecar)
		}, Visible: is("health_flags::healthy\n")},
		{Name: "instance: of another weight", Apply: register(api.AgentServiceRegistration{
			Weights: &api.AgentWeights{Passing: 5, Warning: 1},
		}), Visible: is("weight::5\n")},
		{Name: "instance: with a warning", Apply: check(api.HealthWarning), Visible: is("weight::1\n")},
		{Name: "instance: at another address", Apply: register(moved), Visible: func(g *lab.LoadedGateway) error {
			return errors.Join(g.DumpHas(clusterHosts, movedIP+":21000::health_flags::healthy\n"), g.DumpHasNot(clusterHosts, s.Second.Addr(21000)))
		}},
		{Name: "instance: down", Apply: func() error { return agent.ServiceDeregister("second") }, Visible: func(g *lab.LoadedGateway) error {
			return g.DumpHasNot(clusterHosts, movedIP)
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
	s.Second.RunIP(t, "address add "+movedIP+"/32 dev eth0")
	lab.ServeNamed(t, s.Second, 8080, "second")
	if err := s.registerSecond(api.HealthCritical, api.AgentServiceRegistration{}); err != nil {
		t.Fatal(err)
	}
	lab.StartEnvoy(t, lab.EnvoyOptions{
		Name: "sidecar of second", Host: s.Second, Consul: s.Consul, Envoy: lab.EnvoyNew, AdminPort: 22000,
		Args: []string{"-sidecar-for", "second"},
	}).WaitListener(t, 21000)
	if err := s.Consul.Client.Agent().ServiceDeregister("second"); err != nil {
		t.Fatal(err)
	}
	for _, g := range s.Both() {
		testprocess.Eventually(t, g.Name+" forgets the second instance", testprocess.ChangeDeadline, func() error {
			return g.DumpHasNot(clusterHosts, s.Second.Addr(21000))
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
