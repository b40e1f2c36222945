//go:build e2e

package e2e

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/bootstrap"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// templateServerName is the name in the certificate of the xDS server that a template leads to. Envoy reaches the server
// by its address.
const templateServerName = "usher.consul.svc"

// TestTheTemplateSendsTheTokenInTheFile starts Envoys with the template for consul-dataplane. They send the token that
// is in the file when a stream begins, over TLS, and only to a server that has the certificate's name.
func TestTheTemplateSendsTheTokenInTheFile(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := lab.NewNetwork(t)
		consul := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: l.Gateway})
		dir := testprocess.NewDir(t)
		ca := lab.NewCertificateAuthority(t, "Usher's CA")
		cert, key := ca.Issue(t, dir, templateServerName, l.Control.IP)
		server := startStreamRecorder(t, l.Control, cert, key)
		token := lab.WriteFile(t, dir, "token", "the-first-token")
		o := bootstrap.DataplaneOptions{
			XDSAddr: "https://" + l.Control.Addr(18000), CACert: ca.PEM(), ServerName: templateServerName, TokenFile: token,
		}
		t.Run("rotation", func(t *testing.T) {
			gateway := startTemplate(t, l, consul, envoy, templateSetting(t, o))
			server.wantToken(t, "the-first-token")
			replaceFile(t, token, "the-second-token")
			server.end <- struct{}{}
			server.wantToken(t, "the-second-token")
			gateway.Stop(t)
			server.end <- struct{}{}
		})
		t.Run("CA in a file", func(t *testing.T) {
			o := o
			o.CACert, o.CAFile = "", lab.WriteFile(t, dir, "ca.pem", ca.PEM())
			gateway := startTemplate(t, l, consul, envoy, templateSetting(t, o))
			server.wantToken(t, "the-second-token")
			gateway.Stop(t)
			server.end <- struct{}{}
		})
		t.Run("another name", func(t *testing.T) {
			o := o
			o.ServerName = "other.consul.svc"
			gateway := startTemplate(t, l, consul, envoy, templateSetting(t, o))
			gateway.WaitOutput(t, "gRPC config stream to dns:///")
			gateway.Stop(t)
			server.wantNoStream(t)
		})
	})
}

// TestTheTemplateKeepsTheGatewaysSettings has settings of the gateway's own for its bootstrap.
func TestTheTemplateKeepsTheGatewaysSettings(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := newStatisticsLab(t, envoy)
		settings := fmt.Sprintf(`envoy_prometheus_bind_addr = %q
envoy_stats_tags = ["team=shop", "local_cluster=ours"]
envoy_stats_flush_interval = "7s"
envoy_extra_static_clusters_json = %q`, l.Gateway.Addr(9102), `{"name": "zipkin", "type": "STATIC", "connect_timeout": "5s"}`)
		gateway := startTemplate(t, l.Network, l.Consul, envoy, settings,
			templateSetting(t, bootstrap.DataplaneOptions{XDSAddr: l.usher.GRPCAddr, DeferStats: true}))
		gateway.WaitListener(t, 8080)
		scrape := lab.Request{From: l.Balancer, To: l.Gateway.Addr(9102), Path: "/metrics"}
		var body string
		testprocess.Eventually(t, "the Prometheus listener answers", testprocess.StartDeadline, func() error {
			got, err := scrape.Do(t.Context())
			if err == nil && got.Status != http.StatusOK {
				err = fmt.Errorf("status %d", got.Status)
			}
			body = got.Body
			return err
		})
		for _, want := range []string{
			`envoy_cluster_name="zipkin"`, `team="shop"`, `local_cluster="ours"`, `consul_source_datacenter="dc1"`,
			`consul_destination_service="static-server"`,
		} {
			if !strings.Contains(body, want) {
				t.Errorf("no metric has %s", want)
			}
		}
		if strings.Contains(body, `local_cluster="ingress-gateway"`) {
			t.Error("the label of the gateway's own is there twice")
		}
		config, err := gateway.Admin("/config_dump?mask=bootstrap.stats_flush_interval")
		if err != nil || !strings.Contains(config, `"7s"`) {
			t.Errorf("the bootstrap is without the flush interval: %s (%v)", config, err)
		}
	})
}

// startTemplate starts an Envoy whose gateway has the settings, a template among them. `consul connect envoy` fills it
// in with the code of consul-dataplane.
func startTemplate(t *testing.T, l *lab.Network, consul *lab.Consul, envoy string, settings ...string) *lab.Envoy {
	t.Helper()
	registerDefinition(t, consul, gatewayDefinition(l.Gateway, settings...))
	return lab.StartEnvoy(t, lab.EnvoyOptions{
		Name: "ingress-gateway with the template", Host: l.Gateway, Consul: consul, Envoy: envoy, AdminPort: 19000,
		Args: []string{"-gateway=ingress", "-proxy-id", "ingress-gateway"},
	})
}

// templateSetting is the setting of a gateway that has a template.
func templateSetting(t *testing.T, o bootstrap.DataplaneOptions) string {
	t.Helper()
	text, err := bootstrap.DataplaneTemplate(o)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("envoy_bootstrap_json_tpl = %q", text)
}

// replaceFile replaces a file as the kubelet does: by another one in its place.
func replaceFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.Rename(lab.WriteFile(t, filepath.Dir(path), "new", content), path); err != nil {
		t.Fatal(err)
	}
}

// streamRecorder is an xDS server that answers nothing, and records what Envoys send with their streams.
type streamRecorder struct {
	began chan metadata.MD
	end   chan struct{} // ends the stream
}

func startStreamRecorder(t *testing.T, h *lab.Host, cert, key string) *streamRecorder {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	r := &streamRecorder{began: make(chan metadata.MD, 10), end: make(chan struct{})}
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&pair)),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			md, _ := metadata.FromIncomingContext(stream.Context())
			r.began <- md
			select {
			case <-r.end:
			case <-t.Context().Done():
			}
			return status.Error(codes.Unavailable, "the test ends the stream")
		}))
	listener := h.Listen(t, h.Addr(18000))
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !strings.Contains(err.Error(), "closed") {
			t.Error(err)
		}
	})
	return r
}

func (r *streamRecorder) wantToken(t *testing.T, want string) {
	t.Helper()
	var got metadata.MD
	testprocess.Eventually(t, "Envoy begins a stream", testprocess.StartDeadline, func() error {
		select {
		case got = <-r.began:
			return nil
		default:
			return fmt.Errorf("not yet")
		}
	})
	if values := got.Get("authorization"); len(values) != 1 || values[0] != "Bearer "+want {
		t.Errorf("authorization is %q, want Bearer %s", values, want)
	}
}

func (r *streamRecorder) wantNoStream(t *testing.T) {
	t.Helper()
	select {
	case md := <-r.began:
		t.Errorf("Envoy has begun a stream with %v", md)
	default:
	}
}
