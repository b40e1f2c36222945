//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"google.golang.org/grpc"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// faultLab is a Consul with everything about which Usher asks: gateways with
// listeners of every kind, whose service "static-server" fails over to the
// other datacenter, through mesh gateways, and to a cluster peer. Its ACLs deny
// by default. Consul's questions are asked
// through fault proxies.
type faultLab struct {
	*lab.RemoteLab
	transport *http.Transport
	hosts     atomic.Int64
}

// startFaultLab starts all but gateways and Ushers.
func startFaultLab(t *testing.T) *faultLab {
	t.Helper()
	l := lab.NewNetwork(t)
	f := &faultLab{RemoteLab: &lab.RemoteLab{Comparison: &lab.Comparison{Network: l}}}
	const acl = `acl { enabled = true, default_policy = "deny", tokens {
		initial_management = "` + lab.ManagementToken + `", agent = "` + lab.ManagementToken + `", default = "` + lab.ManagementToken + `" } }`
	f.Consul = lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: l.Control, Args: []string{
		"-hcl", acl, "-hcl", `limits { http_max_conns_per_client = 5000 }`,
	}})
	f.Remote = lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: l.AddHost(t, "farcontrol", lab.RemoteControlIP), Args: []string{
		"-hcl", acl, "-datacenter", "dc2", "-retry-join-wan", lab.ControlIP, "-hcl", "ports { grpc_tls = 8503 }",
	}})
	f.WaitWAN(t)
	f.PeerExportsService(t)
	f.registerFar(t)
	f.writeEverything(t)
	lab.StartEcho(t, l.Service, 8080)
	lab.RegisterService(t, lab.ServiceOptions{Name: "static-server", Port: 8080, Consul: f.Consul, Host: l.Service, Envoy: lab.EnvoyNew, Token: lab.ManagementToken})
	f.Consul.WaitChecked(t, "static-server")
	f.waitPeer(t)
	f.transport = &http.Transport{DialContext: l.Control.Dial, MaxIdleConnsPerHost: 1000, DisableCompression: true}
	t.Cleanup(f.transport.CloseIdleConnections)
	return f
}

// registerFar registers mesh gateways and instances without processes.
func (f *faultLab) registerFar(t *testing.T) {
	t.Helper()
	for _, a := range []*lab.Consul{f.Consul, f.Remote} {
		registerSidecar(t, a, &api.AgentService{
			Kind: api.ServiceKindMeshGateway, ID: "mesh-gateway", Service: "mesh-gateway", Address: lab.MeshGatewayIP, Port: lab.MeshGatewayPort,
			TaggedAddresses: map[string]api.ServiceAddress{"wan": {Address: lab.RemoteMeshGatewayIP, Port: lab.MeshGatewayPort}},
		})
	}
	registerSidecar(t, f.Remote, sidecarOf("static-server", "static-server", 21000))
	registerSidecar(t, f.Consul, sidecarOf("shop", "shop", 21001))
	registerSidecar(t, f.Consul, sidecarOf("db", "db", 21002))
	for _, service := range []string{"shop", "db"} {
		// A wildcard finds a service for good only where it has an instance itself.
		registerSidecar(t, f.Consul, &api.AgentService{ID: service, Service: service, Address: lab.RemoteServiceIP, Port: 8080})
	}
}

// waitPeer waits until Consul knows the instance that the peer exports.
func (f *faultLab) waitPeer(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, "the peer's instance is known", testprocess.StartDeadline, func() error {
		instances, _, err := f.Consul.Client.Health().Connect("static-server", "", false, &api.QueryOptions{Peer: lab.Far})
		if err == nil && len(instances) == 0 {
			return errNotYet
		}
		return err
	})
}

// sidecarOf is an instance of a mesh service.
func sidecarOf(service, id string, port int) *api.AgentService {
	return &api.AgentService{
		Kind: api.ServiceKindConnectProxy, ID: id + "-sidecar-proxy", Service: service + "-sidecar-proxy", Address: lab.RemoteServiceIP, Port: port,
		Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: service},
	}
}

func registerSidecar(t *testing.T, a *lab.Consul, s *api.AgentService) {
	t.Helper()
	if _, err := a.Client.Catalog().Register(&api.CatalogRegistration{Node: "catalog", Address: lab.RemoteServiceIP, Service: s}, nil); err != nil {
		t.Fatal(err)
	}
}

// writeEverything writes the config entries.
func (f *faultLab) writeEverything(t *testing.T) {
	t.Helper()
	defaults := func(service, protocol string) api.ConfigEntry {
		return &api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: service, Protocol: protocol}
	}
	for _, e := range []api.ConfigEntry{
		&api.ProxyConfigEntry{
			Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal, MeshGateway: api.MeshGatewayConfig{Mode: api.MeshGatewayModeLocal},
			Config: map[string]any{"usher": map[string]any{"proxy_protocol": map[string]any{"mode": "permissive"}}},
		},
		&api.MeshConfigEntry{TLS: &api.MeshTLSConfig{Incoming: &api.MeshDirectionalTLSConfig{TLSMinVersion: "TLSv1_2"}}},
		defaults("static-server", "http"), defaults("shop", "http"), defaults("db", "tcp"),
		&api.ServiceResolverConfigEntry{Kind: api.ServiceResolver, Name: "static-server", Failover: map[string]api.ServiceResolverFailover{
			"*": {Targets: []api.ServiceResolverFailoverTarget{{Datacenter: "dc2"}, {Peer: lab.Far}}},
		}},
		&api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: "*", Sources: []*api.SourceIntention{{
			Name: "*", Action: api.IntentionActionAllow,
		}}},
	} {
		if err := f.WriteEntry(e); err != nil {
			t.Fatal(err)
		}
	}
}

// writeEntry writes the config entry of a gateway, where clients reach the shop
// by TLS under a new host: a certificate is needed that names it.
func (f *faultLab) writeEntry(t *testing.T, gateway string) {
	t.Helper()
	if err := f.WriteEntry(entryOf(gateway, fmt.Sprintf("shop-%d.example.com", f.hosts.Add(1)))); err != nil {
		t.Fatal(err)
	}
}

// entryOf is a gateway's, with a listener of every kind.
func entryOf(gateway, host string) api.ConfigEntry {
	return &api.IngressGatewayConfigEntry{Kind: api.IngressGateway, Name: gateway, Listeners: []api.IngressListener{
		{Port: 8080, Protocol: "http", Services: []api.IngressService{{Name: "static-server"}, {Name: "shop"}}},
		{Port: 8081, Protocol: "tcp", Services: []api.IngressService{{Name: "db"}}},
		{
			Port: 8082, Protocol: "http", TLS: &api.GatewayTLSConfig{Enabled: true},
			Services: []api.IngressService{{Name: "shop", Hosts: []string{host}}},
		},
		{Port: 8083, Protocol: "http", Services: []api.IngressService{{Name: "*"}}},
		{Port: 8084, Protocol: "tcp", Services: []api.IngressService{{Name: markerOf(gateway)}}},
	}}
}

// markerOf is a service that no other gateway has.
func markerOf(gateway string) string { return "marker-of-" + gateway }

// faultUsher is an Usher that asks Consul through a fault proxy.
type faultUsher struct {
	*testprocess.Process
	admin *http.Client
	base  string // of its admin port
	xds   string // address
}

// launch starts an Usher on a host, with a port for Envoys and the next one
// for its admin interface.
func (f *faultLab) launch(t *testing.T, h *lab.Host, port int, p *lab.FaultProxy, signer string) *faultUsher {
	t.Helper()
	transport := &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}
	u := &faultUsher{
		admin: &http.Client{Transport: transport}, base: fmt.Sprintf("http://127.0.0.1:%d", port+1), xds: fmt.Sprintf("127.0.0.1:%d", port),
	}
	u.Process = testprocess.Start(t, testprocess.Command{
		Name: "usher", Path: testprocess.Usher(t), Host: h,
		Args: []string{"serve", "--xds-addr", u.xds, "--admin-addr", fmt.Sprintf("127.0.0.1:%d", port+1), "--reauthorize-interval", "1s"},
		Env:  []string{"CONSUL_HTTP_ADDR=" + p.URL, "CONSUL_GRPC_ADDR=" + signer, "CONSUL_HTTP_TOKEN=" + lab.ManagementToken},
	})
	return u
}

// waitServing waits until Usher's ports are open.
func (u *faultUsher) waitServing(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, "usher serves", testprocess.StartDeadline, func() error {
		_, err := u.ask("/healthz")
		return errors.Join(err, u.Alive())
	})
}

// waitStream waits until the fake Envoy is connected.
func (u *faultUsher) waitStream(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, "an Envoy is connected", testprocess.StartDeadline, func() error {
		if !strings.Contains(u.Output(t), "envoy connected") {
			return errors.Join(errNotYet, u.Alive())
		}
		return nil
	})
}

// waitDecided waits until Usher has handed on what it knows of the gateway. A
// cell that is not patient is content with Usher's word that it is not enough.
func (u *faultUsher) waitDecided(t *testing.T, patient bool) {
	t.Helper()
	testprocess.Eventually(t, "usher has decided", testprocess.StartDeadline, func() error {
		if !patient && strings.Contains(u.Output(t), "the gateway's configuration in consul is incomplete") || u.sum(t, "usher_consul_snapshots_total") >= 1 {
			return nil
		}
		time.Sleep(metricsInterval)
		return errors.Join(errNotYet, u.Alive())
	})
}

// metricsInterval is how often metrics are looked at, of which many Ushers at
// once would otherwise make a lot of work.
const metricsInterval = 100 * time.Millisecond

// ask asks Usher's admin port.
func (u *faultUsher) ask(path string) (string, error) {
	response, err := u.admin.Get(u.base + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

// sum adds up the series of a metric; it is 0 when there is no answer.
func (u *faultUsher) sum(t *testing.T, metric string) float64 {
	t.Helper()
	text, err := u.ask("/metrics")
	if err != nil {
		t.Fatalf("usher's metrics: %v", errors.Join(u.Alive(), err))
	}
	var total float64
	for _, series := range regexp.MustCompile(`(?m)^`+metric+`(?:\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(text, -1) {
		value, err := strconv.ParseFloat(series[1], 64)
		if err != nil {
			t.Fatalf("%s: %v", metric, err)
		}
		total += value
	}
	return total
}

func (u *faultUsher) logSize(t *testing.T) int {
	t.Helper()
	return len(testprocess.ReadFile(t, u.Stderr))
}

func (u *faultUsher) logSince(t *testing.T, from int) string {
	t.Helper()
	text := testprocess.ReadFile(t, u.Stderr)
	text = text[min(from, len(text)):]
	return text[:min(len(text), 4000)]
}

// startProxy starts a fault proxy on a host's loopback.
func (f *faultLab) startProxy(t *testing.T, h *lab.Host) *lab.FaultProxy {
	t.Helper()
	p := lab.StartFaultProxy(t, h.Listen(t, "127.0.0.1:0"), f.Consul.HTTPAddr, f.transport)
	p.BlockOn(lab.Query{Path: "/v1/agent/self"})
	p.BlockOn(lab.Query{Path: "/v1/peering/"})
	return p
}

// dialXDS makes a connection to an Usher's port for Envoys, which lives through
// that Usher's end.
func (f *faultLab) dialXDS(t *testing.T, h *lab.Host, port int) *grpc.ClientConn {
	t.Helper()
	return lab.XDSPort{From: h, Address: fmt.Sprintf("127.0.0.1:%d", port)}.Dial(t)
}
