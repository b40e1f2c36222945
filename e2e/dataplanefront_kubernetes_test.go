//go:build e2e && kubernetes

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestRealConsulDataplaneThroughUsher runs the lab on real consul-dataplanes that know no other address than Usher's: that
// of the gateway has its configuration from Usher, with PROXY protocol, and that of the service's sidecar from Consul. Both
// come back after a restart of Usher.
func TestRealConsulDataplaneThroughUsher(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		s := startDataplaneLab(t)
		l := &lab.Lab{Network: s.Network, Consul: s.Consul, Echo: lab.StartEcho(t, s.Service, 8080)}
		l.HAProxy = lab.StartHAProxy(t, lab.HAProxyOptions{
			Host: s.Balancer, Targets: []*lab.Host{s.Gateway}, Ports: []int{8080}, Header: lab.SendV2,
		})
		l.SetMode(t, "strict")
		s.setServicePort(t, 8080)
		sidecar := s.startDataplane(t, s.Service, envoy, "static-server-sidecar-proxy", "service", s.sidecarToken)
		gateway := s.startDataplane(t, s.Gateway, envoy, "ingress-gateway", "gateway", s.gatewayToken)
		sidecar.WaitListener(t, 21000)
		gateway.WaitListener(t, 8080)
		l.WantClientAddress(t, gateway)
		l.WaitMode(t, s.Gateway, "strict")
		s.wantOpenStreams(t)
		wantReported(t, l, s.Usher, "header")

		s.Usher.Stop(t)
		l.Request(lab.NewPath()).MustDo(t).WantHello(t) // Envoys serve without a control plane
		s.startUsher(t)
		s.wantOpenStreams(t)
		l.SetMode(t, "permissive")
		l.WaitMode(t, s.Gateway, "permissive")
		l.WantClientAddress(t, gateway)
		wantReported(t, l, s.Usher, "header")
		for _, e := range []*lab.Envoy{gateway, sidecar} {
			if log := e.Output(t); strings.Contains(log, lab.ControlIP+":") {
				t.Errorf("%s has learned Consul's own address:\n%s", e.Name, log)
			}
		}
	})
}

// TestRealConsulDataplaneDrains ends the real consul-dataplane of a gateway as Kubernetes does. It connects to Usher, which
// has given it a bootstrap, and waits until its Envoy has drained.
func TestRealConsulDataplaneDrains(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		s := startDataplaneLab(t)
		lab.StartEcho(t, s.Service, 8080)
		s.setServicePort(t, 8080)
		s.startDataplane(t, s.Service, envoy, "static-server-sidecar-proxy", "service", s.sidecarToken).WaitListener(t, 21000)
		for name, args := range map[string][]string{
			"as the chart starts it":         nil,
			"with its own drain, too":        {"-shutdown-drain-listeners", "-shutdown-grace-period-seconds", "1"},
			"with its own grace period, too": {"-shutdown-grace-period-seconds", "1"},
		} {
			t.Run(name, func(t *testing.T) {
				gateway := s.startDataplane(t, s.Gateway, envoy, "ingress-gateway", "gateway", s.gatewayToken, args...)
				d := newDrained(t, gateway, s.Client)
				terminated := time.Now()
				gateway.Signal(t, syscall.SIGTERM)
				testprocess.Eventually(t, "Envoy drains", testprocess.ChangeDeadline, func() error {
					if askAdmin(t, gateway, adminRequest{http.MethodGet, "/ready"}).status == http.StatusOK {
						return errors.New("it is ready")
					}
					return nil
				})
				d.wantDraining(t)
				d.wantEnd(t, terminated)
			})
		}
	})
}

// setServicePort registers the sidecar with the port on which the service listens.
func (s *dataplaneLab) setServicePort(t *testing.T, port int) {
	t.Helper()
	registered, _, err := s.Consul.Client.Catalog().Service("static-server-sidecar-proxy", "", nil)
	if err != nil || len(registered) != 1 {
		t.Fatalf("the sidecar in the catalog: %v, %v", registered, err)
	}
	sidecar := registered[0]
	sidecar.ServiceProxy.LocalServicePort = port
	_, err = s.Consul.Client.Catalog().Register(&api.CatalogRegistration{
		Node: sidecar.Node, Address: sidecar.Address, SkipNodeUpdate: true,
		Service: &api.AgentService{
			Kind: api.ServiceKindConnectProxy, ID: sidecar.ServiceID, Service: sidecar.ServiceName,
			Address: sidecar.ServiceAddress, Port: sidecar.ServicePort, Proxy: sidecar.ServiceProxy,
		},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

func (s *dataplaneLab) startDataplane(t *testing.T, h *lab.Host, envoy, proxyID, node, token string, args ...string) *lab.Envoy {
	t.Helper()
	return lab.StartDataplane(t, lab.DataplaneOptions{
		Args: args,
		Host: h, Envoy: envoy, Address: lab.GatewayIP, Port: dataplanePort, CAFile: s.Consul.Security.CAFile,
		ProxyID: proxyID, Node: node, Token: token, AdminPort: 19000,
	})
}

// wantOpenStreams waits until the gateway's stream is Usher's, and the sidecar's Consul's.
func (s *dataplaneLab) wantOpenStreams(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, "one stream goes to Usher, and one to Consul", testprocess.StartDeadline, func() error {
		text := s.Usher.Metrics(t)
		for _, destination := range []string{"usher", "consul"} {
			series := fmt.Sprintf("\nusher_dataplane_ads_streams{destination=%q} 1\n", destination)
			if !strings.Contains(text, series) {
				return fmt.Errorf("there is no %q", strings.TrimSpace(series))
			}
		}
		return nil
	})
}

// wantReported makes connections until Usher has got a report of them.
func wantReported(t *testing.T, l *lab.Lab, usher *lab.Usher, connection string) {
	t.Helper()
	before := lab.Reported(t, usher.Metrics(t), 8080, connection)
	testprocess.Eventually(t, fmt.Sprintf("the Envoy reports %q", connection), testprocess.ChangeDeadline, func() error {
		for range 10 { // an Envoy that is too old to limit the rate reports a fifth of them
			l.Request("/").MustDo(t).WantHello(t)
		}
		if lab.Reported(t, usher.Metrics(t), 8080, connection) == before {
			return errors.New("not yet")
		}
		return nil
	})
}
