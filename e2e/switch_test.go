//go:build e2e

package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
)

// switches is how often the load is switched to a new cluster.
const switches = 30

// TestSwitchToANewClusterLosesNothing switches all of the load, again and again,
// to a service or a subset that did not exist before, with each config entry
// that can. Usher learns of the instances late, once so late that it has to go
// on without them. No request to either of its two Envoys fails; those that
// Consul's own gateway loses are printed.
func TestSwitchToANewClusterLosesNothing(t *testing.T) {
	t.Parallel()
	s := startSwitchStory(t)
	s.StartLoad(t)
	for i := range switches {
		s.late.make(lateness(i))
		s.Make(t, s.next(t, i))
	}
	s.WantNoFailures(t)
}

// switchStory is a Consul with services that need no sidecars, a gateway on its
// own xDS and two on Usher.
type switchStory struct {
	*lab.Comparison
	*meshServer
	late    *slowHealth
	server  *lab.Usher
	options lab.UsherOptions // of server
	// tip is where the chain of static-server ends.
	tip string
}

func startSwitchStory(t *testing.T) *switchStory {
	t.Helper()
	l := lab.NewNetwork(t)
	s := &switchStory{Comparison: &lab.Comparison{Network: l}, tip: "static-server"}
	s.Consul = lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: l.Control})
	s.meshServer = startMeshServer(t, s.Consul, l.Service)
	defaults := lab.ProxyDefaultsWithLog("switch")
	defaults.Config = map[string]any{"protocol": "http"}
	for _, e := range []api.ConfigEntry{defaults, &api.IngressGatewayConfigEntry{
		Kind: api.IngressGateway, Name: "ingress-gateway",
		Listeners: []api.IngressListener{{
			Port: 8080, Protocol: "http",
			Services: []api.IngressService{{Name: "static-server", Hosts: []string{lab.ServiceHost}}},
		}},
	}} {
		if _, _, err := s.Consul.Client.ConfigEntries().Set(e, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.issue("static-server"), s.register("static-server")); err != nil {
		t.Fatal(err)
	}
	s.startGateways(t)
	return s
}

func (s *switchStory) startGateways(t *testing.T) {
	t.Helper()
	s.late = startSlowHealth(t, s.Consul)
	address := s.Control.Addr(18000)
	s.options = lab.UsherOptions{
		Host: s.Control, XDSAddr: address, Args: []string{"--insecure-plaintext"}, Env: []string{"CONSUL_HTTP_ADDR=" + s.late.address},
	}
	s.server = lab.StartUsher(t, s.options)
	start := func(h *lab.Host, id, xds string) *lab.LoadedGateway {
		g := &lab.LoadedGateway{Envoy: lab.StartGateway(t, lab.GatewayOptions{Host: h, Consul: s.Consul, Envoy: lab.EnvoyNew, GRPCAddr: xds, ID: id})}
		g.WaitListener(t, 8080)
		return g
	}
	s.OnUsher = start(s.Gateway, "on-usher", "http://"+address)
	s.SecondOnUsher = start(s.AddHost(t, "gateway3", gateway3IP), "twin-on-usher", "http://"+address)
	s.OnConsul = start(s.AddHost(t, "gateway2", lab.Gateway2IP), "on-consul", "")
}

// gateway3IP is the address of the host with the twin.
const gateway3IP = "198.18.0.22"

// lateness is how much later than Consul's own gateway Usher hears of the
// instances in a switch: at once, late, and once so late that Usher hands on the
// route before.
func lateness(i int) time.Duration {
	switch {
	case i == switches/2:
		return 3 * time.Second
	case i%3 == 2:
		return 300 * time.Millisecond
	default:
		return 0
	}
}

// next is the switch to a cluster that did not exist. Its service is registered
// in the same moment.
func (s *switchStory) next(t *testing.T, i int) lab.Change {
	fresh, spare, subset := fmt.Sprintf("fresh-%d", i), fmt.Sprintf("spare-%d", i), fmt.Sprintf("v%d", i)
	serves := func(name string) func(*lab.LoadedGateway) error {
		return answered(lab.Request{Path: "/"}, lab.ServedBy, name)
	}
	var way string
	var entry api.ConfigEntry
	shows, tip := serves(fresh), fresh
	switch i % 5 {
	case 0:
		way, entry = "router", &api.ServiceRouterConfigEntry{
			Kind: api.ServiceRouter, Name: "static-server",
			Routes: []api.ServiceRoute{{Destination: &api.ServiceRouteDestination{Service: fresh}}},
		}
	case 1:
		way, entry = "splitter", &api.ServiceSplitterConfigEntry{
			Kind: api.ServiceSplitter, Name: s.tip,
			Splits: []api.ServiceSplit{{Weight: 100, Service: fresh}, {Weight: 0, Service: spare}},
		}
	case 2:
		way, entry = "default subset", &api.ServiceResolverConfigEntry{
			Kind: api.ServiceResolver, Name: s.tip, DefaultSubset: subset,
			Subsets: map[string]api.ServiceResolverSubset{subset: {Filter: fmt.Sprintf("Service.Port == %d", meshPort)}},
		}
		shows, tip = serves(subset+"."+s.tip), s.tip
	case 3:
		way, entry = "redirect", &api.ServiceResolverConfigEntry{
			Kind: api.ServiceResolver, Name: s.tip, Redirect: &api.ServiceResolverRedirect{Service: fresh},
		}
	case 4:
		way, entry = "failover", &api.ServiceResolverConfigEntry{
			Kind: api.ServiceResolver, Name: s.tip,
			Failover: map[string]api.ServiceResolverFailover{"*": {Service: fresh}},
		}
		shows, tip = lab.HasInDump(clusterHosts, "failover-target~0~"+s.tip+"."), s.tip
	}
	s.tip = tip
	for _, name := range []string{fresh, spare} {
		if err := s.issue(name); err != nil {
			t.Fatal(err)
		}
	}
	return lab.Change{Name: fmt.Sprintf("switch %d: by a %s, usher %v late", i, way, s.late.by()), Apply: func() error {
		if err := errors.Join(s.register(fresh), s.register(spare)); err != nil {
			return err
		}
		_, _, err := s.Consul.Client.ConfigEntries().Set(entry, nil)
		return err
	}, Visible: shows}
}

// meshPort is where a mesh server listens.
const meshPort = 21100

// meshServer answers for any number of mesh services, each with its own
// certificate. It says the name that it was asked for, with the subset.
type meshServer struct {
	consul *lab.Consul
	host   *lab.Host

	mu           sync.Mutex
	certificates map[string]*tls.Certificate // by service
}

func startMeshServer(t *testing.T, a *lab.Consul, h *lab.Host) *meshServer {
	t.Helper()
	m := &meshServer{consul: a, host: h, certificates: map[string]*tls.Certificate{}}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(lab.ServedBy, meshName(r.TLS.ServerName))
			fmt.Fprintln(w, "hello world")
		}),
		TLSConfig: &tls.Config{GetCertificate: m.certificate, ClientAuth: tls.RequireAnyClientCert},
	}
	listener := h.Listen(t, fmt.Sprintf(":%d", meshPort))
	var work sync.WaitGroup
	work.Go(func() { _ = server.ServeTLS(listener, "", "") }) // ends with the test
	t.Cleanup(func() {
		server.Close()
		work.Wait()
	})
	return m
}

// meshName is the service, with the subset in front, in the server name of a
// connection in the mesh.
func meshName(sni string) string {
	name, _, _ := strings.Cut(sni, ".default.")
	return name
}

func (m *meshServer) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := meshName(hello.ServerName)
	service := name[strings.LastIndex(name, ".")+1:]
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.certificates[service]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("no certificate for %s", service)
}

// issue gets the certificate for a service.
func (m *meshServer) issue(service string) error {
	leaf, _, err := m.consul.Client.Agent().ConnectCALeaf(service, nil)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.PrivateKeyPEM))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.certificates[service] = &pair
	return err
}

// register puts an instance into the catalog, which has it when the call
// returns.
func (m *meshServer) register(service string) error {
	_, err := m.consul.Client.Catalog().Register(&api.CatalogRegistration{
		Node: "mesh", Address: m.host.IP.String(),
		Service: &api.AgentService{
			ID: service, Service: service, Address: m.host.IP.String(), Port: meshPort,
			Connect: &api.AgentServiceConnect{Native: true},
		},
	}, nil)
	return err
}

// slowHealth is a proxy in front of Consul's API which gives the first answer
// about the instances of a service late.
type slowHealth struct {
	address string // URL
	late    atomic.Int64
}

func (p *slowHealth) by() time.Duration     { return time.Duration(p.late.Load()) }
func (p *slowHealth) make(by time.Duration) { p.late.Store(int64(by)) }

func startSlowHealth(t *testing.T, a *lab.Consul) *slowHealth {
	t.Helper()
	target, err := url.Parse(a.HTTPAddr)
	if err != nil {
		t.Fatal(err)
	}
	const port = 8700
	p := &slowHealth{address: "http://" + a.Host.Addr(port)}
	transport := &http.Transport{DialContext: a.Host.Dial}
	t.Cleanup(transport.CloseIdleConnections)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = transport
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	lab.ServeHTTP(t, a.Host, port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/health/connect/") && !r.URL.Query().Has("index") {
			select {
			case <-time.After(p.by()):
			case <-r.Context().Done():
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	return p
}
