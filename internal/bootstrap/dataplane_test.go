package bootstrap_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	logsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/usherproxy/usher/internal/bootstrap"
	"github.com/usherproxy/usher/internal/testing/golden"
)

const tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// dataplaneCases are the templates with a golden file testdata/dataplane/<name>.json each, which has the template
// as it is after consul-dataplane has filled it in for a gateway with all settings that it has.
func dataplaneCases(t *testing.T) map[string]bootstrap.DataplaneOptions {
	ca := readFile(t, "testdata/ca.pem")
	const service = "https://usher.consul.svc:18000"
	return map[string]bootstrap.DataplaneOptions{
		"everything":    {XDSAddr: service, CACert: ca, ServerName: "usher.internal", TokenFile: tokenFile, DeferStats: true, DrainTime: bootstrap.DefaultDrainTime},
		"ca-file":       {XDSAddr: service, CAFile: "/consul/tls/ca/tls.crt", TokenFile: tokenFile},
		"no-token":      {XDSAddr: service, CACert: ca, DrainTime: 90 * time.Second},
		"plain":         {XDSAddr: "usher.consul.svc:18000"},
		"ipv6":          {XDSAddr: "https://[2001:db8::1]:18000", CACert: ca, TokenFile: tokenFile},
		"own-xds":       {},
		"own-xds-drain": {DrainTime: bootstrap.DefaultDrainTime},
	}
}

// badDataplaneOptions are options that are refused, and what the error says.
func badDataplaneOptions(ca string) map[string]struct {
	o    bootstrap.DataplaneOptions
	want string
} {
	const service = "https://usher.consul.svc:18000"
	return map[string]struct {
		o    bootstrap.DataplaneOptions
		want string
	}{
		"a CA without an address": {bootstrap.DataplaneOptions{CACert: ca}, "xDS address: there is none, but a CA certificate"},
		"a Unix socket":           {bootstrap.DataplaneOptions{XDSAddr: "unix:///run/usher.sock"}, "does not have Usher's socket"},
		"https without CA": {
			bootstrap.DataplaneOptions{XDSAddr: service}, "CA certificate for " + service + ": there is none in PEM",
		},
		"two CAs": {
			bootstrap.DataplaneOptions{XDSAddr: service, CACert: ca, CAFile: "/consul/tls/ca/tls.crt"}, "give one of them",
		},
		"a CA file that is not found": {
			bootstrap.DataplaneOptions{XDSAddr: service, CAFile: "tls.crt"}, `the path "tls.crt" is not absolute`,
		},
		"a key as CA": {
			bootstrap.DataplaneOptions{XDSAddr: service, CACert: "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"},
			"PEM block 1 is a PRIVATE KEY",
		},
		"a CA without https":   {bootstrap.DataplaneOptions{XDSAddr: "usher:18000", CACert: ca}, "the address has no TLS"},
		"a name without https": {bootstrap.DataplaneOptions{XDSAddr: "usher:18000", ServerName: "usher"}, "the address has no TLS"},
		"a token without https": {
			bootstrap.DataplaneOptions{XDSAddr: "usher:18000", TokenFile: tokenFile}, "gRPC sends the token in " + tokenFile + " over TLS only",
		},
		"a token file that is not found": {
			bootstrap.DataplaneOptions{XDSAddr: service, CACert: ca, TokenFile: "token"}, `token file "token": the path is not absolute`,
		},
	}
}

// variables are what consul-dataplane fills in.
type variables struct {
	AdminAccessLogConfig                                       []string
	AdminAccessLogPath, AdminBindAddress, AdminBindPort        string
	ProxyID, ProxyCluster, ProxySourceService                  string
	NodeName, Namespace, Partition, Datacenter                 string
	StaticClustersJSON, StaticListenersJSON, StaticSecretsJSON string
	StatsSinksJSON, StatsConfigJSON, StatsFlushInterval        string
	TracingConfigJSON, LocalAgentClusterName, AgentAddress     string
	AgentPort, AgentSocket, Token, AgentCAPEM                  string
	AgentTLS                                                   bool
	PrometheusBackendPort, PrometheusScrapePath                string
	PrometheusCAFile, PrometheusCAPath                         string
	PrometheusCertFile, PrometheusKeyFile                      string
}

// ofPlainGateway are the variables of a gateway without further settings.
func ofPlainGateway() variables {
	return variables{
		AdminAccessLogPath: "/dev/null", AdminBindAddress: "127.0.0.1", AdminBindPort: "19000",
		ProxyID: "consul-ingress-gateway-5d8c7-x2z4q", ProxyCluster: "ingress-gateway", ProxySourceService: "ingress-gateway",
		NodeName: "node-1-virtual", Datacenter: "dc1", LocalAgentClusterName: "consul-dataplane",
		AgentAddress: "127.0.0.1", AgentPort: "40123",
	}
}

// ofFullGateway are the variables of a gateway that has them all.
func ofFullGateway() variables {
	v := ofPlainGateway()
	v.Namespace, v.Partition = "team", "east"
	v.AdminAccessLogConfig = []string{
		`{"name": "envoy.access_loggers.file", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"}}`,
		`{"name": "envoy.access_loggers.stderr", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog"}}`,
	}
	v.StaticClustersJSON = `{"name": "self_admin", "type": "STATIC", "connect_timeout": "5s"}, {"name": "zipkin", "type": "STRICT_DNS", "connect_timeout": "5s"}`
	v.StaticListenersJSON = `{"name": "envoy_ready_listener", "address": {"socket_address": {"address": "10.0.0.7", "port_value": 21000}}, ` +
		`"filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "ready", "cluster": "self_admin"}}]}]}`
	v.StaticSecretsJSON = `{"name": "prometheus_cert", "tlsCertificate": {"certificateChain": {"filename": "/tls/cert.pem"}, "privateKey": {"filename": "/tls/key.pem"}}}`
	v.StatsSinksJSON = `{"name": "envoy.stat_sinks.statsd", "typedConfig": {"@type": "type.googleapis.com/envoy.config.metrics.v3.StatsdSink", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 8125}}}}`
	v.StatsConfigJSON = `{"stats_tags": [{"tag_name": "env", "fixed_value": "prod"}], "use_all_default_tags": true}`
	v.StatsFlushInterval = "10s"
	v.TracingConfigJSON = `{"http": {"name": "envoy.tracers.zipkin", "typedConfig": {"@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig", "collector_cluster": "zipkin", "collector_endpoint_version": "HTTP_JSON", "collector_endpoint": "/api/v2/spans"}}}`
	return v
}

// fill does what consul-dataplane does with a template. Envoy would end if it could not decode the outcome.
func (v variables) fill(t *testing.T, text string) (string, *bootstrapv3.Bootstrap) {
	t.Helper()
	tpl, err := template.New("bootstrap").Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	var filled, indented bytes.Buffer
	if err := tpl.Execute(&filled, v); err != nil {
		t.Fatal(err)
	}
	if err := json.Indent(&indented, filled.Bytes(), "", "  "); err != nil {
		t.Fatalf("%v in:\n%s", err, filled.String())
	}
	indented.WriteByte('\n')
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(indented.Bytes(), &b); err != nil {
		t.Fatal(err)
	}
	if err := b.ValidateAll(); err != nil {
		t.Error(err)
	}
	return indented.String(), &b
}

func dataplaneTemplate(t *testing.T, o bootstrap.DataplaneOptions) string {
	t.Helper()
	text, err := bootstrap.DataplaneTemplate(o)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestFilledTemplatesMatchTheirGoldenFiles(t *testing.T) {
	all := dataplaneCases(t)
	for name, o := range all {
		t.Run(name, func(t *testing.T) {
			got, _ := ofFullGateway().fill(t, dataplaneTemplate(t, o))
			file := filepath.Join("testdata", "dataplane", name+".json")
			if golden.Updating() {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(readFile(t, file), got); diff != "" {
				t.Errorf("filled in, it differs from %s (-want +got); -update rewrites it:\n%s", file, diff)
			}
		})
	}
	files, err := filepath.Glob("testdata/dataplane/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if _, ok := all[strings.TrimSuffix(filepath.Base(file), ".json")]; !ok {
			t.Errorf("%s belongs to no case; remove it", file)
		}
	}
}

func TestATemplateWorksForAGatewayWithoutSettings(t *testing.T) {
	for name, o := range dataplaneCases(t) {
		t.Run(name, func(t *testing.T) {
			_, b := ofPlainGateway().fill(t, dataplaneTemplate(t, o))
			if got := b.GetNode().GetMetadata().AsMap(); cmp.Diff(map[string]any{
				"node_name": "node-1-virtual", "namespace": "default", "partition": "default",
			}, got) != "" {
				t.Errorf("the node's metadata is %v", got)
			}
			if len(b.GetAdmin().GetAccessLog()) != 0 || len(b.GetStatsSinks()) != 0 || b.GetStatsConfig() != nil {
				t.Errorf("the bootstrap has settings that the gateway does not have: %v", b)
			}
		})
	}
}

// TestATemplateLeavesEnvoyWithConsulDataplane has no address of Usher: Envoy asks consul-dataplane's own xDS server, where
// that listens.
func TestATemplateLeavesEnvoyWithConsulDataplane(t *testing.T) {
	tcp, socket := ofPlainGateway(), ofPlainGateway()
	tcp.AgentAddress = "::1"
	socket.AgentSocket = "/tmp/xds.sock"
	for want, v := range map[string]variables{"[::1]:40123": tcp, "/tmp/xds.sock": socket} {
		for _, drainTime := range []time.Duration{0, bootstrap.DefaultDrainTime} {
			_, b := v.fill(t, dataplaneTemplate(t, bootstrap.DataplaneOptions{DrainTime: drainTime}))
			cluster := b.GetDynamicResources().GetAdsConfig().GetGrpcServices()[0].GetEnvoyGrpc().GetClusterName()
			if got := addressesOf(b)[cluster]; got != want {
				t.Errorf("drain of %v: the xDS server is %q at %q, want %q", drainTime, cluster, got, want)
			}
		}
	}
}

// addressesOf returns the address of each static cluster that has one.
func addressesOf(b *bootstrapv3.Bootstrap) map[string]string {
	addresses := map[string]string{}
	for _, c := range b.GetStaticResources().GetClusters() {
		for _, e := range c.GetLoadAssignment().GetEndpoints() {
			addresses[c.GetName()] = addressText(e.GetLbEndpoints()[0].GetEndpoint().GetAddress())
		}
	}
	return addresses
}

func addressText(a *corev3.Address) string {
	if path := a.GetPipe().GetPath(); path != "" {
		return path
	}
	s := a.GetSocketAddress()
	return net.JoinHostPort(s.GetAddress(), fmt.Sprint(s.GetPortValue()))
}

// TestAListenerTakesThePlaceOfTheAdminInterface wants that who asks the admin interface finds the listener, and that the
// listener finds the admin interface. Two Envoys in one network have another admin port each, and do not share a socket.
func TestAListenerTakesThePlaceOfTheAdminInterface(t *testing.T) {
	text := dataplaneTemplate(t, bootstrap.DataplaneOptions{DrainTime: bootstrap.DefaultDrainTime})
	admins := map[string]bool{}
	for _, port := range []string{"19000", "19001"} {
		v := ofPlainGateway()
		v.AdminBindAddress, v.AdminBindPort = "::1", port
		_, b := v.fill(t, text)
		listeners := map[string]string{}
		for _, l := range b.GetStaticResources().GetListeners() {
			listeners[l.GetName()] = addressText(l.GetAddress())
		}
		if got, want := listeners["usher_admin"], "[::1]:"+port; got != want {
			t.Errorf("the listener is at %q, want %q", got, want)
		}
		admin, clusters := addressText(b.GetAdmin().GetAddress()), addressesOf(b)
		if !strings.HasPrefix(admin, "@") || clusters["usher_admin"] != admin {
			t.Errorf("the admin interface is at %q, and its cluster at %q", admin, clusters["usher_admin"])
		}
		if quit := clusters["usher_quit"]; quit != listeners["usher_quit"] || quit == admin {
			t.Errorf("the listener that waits is at %q, and its cluster at %q", listeners["usher_quit"], quit)
		}
		admins[admin] = true
	}
	if len(admins) != 2 {
		t.Errorf("two Envoys have the admin interfaces %v", admins)
	}
}

// TestReportsGoThroughConsulDataplane wants that what a listener reports arrives at consul-dataplane as a discovery stream,
// and that Usher can tell what it is.
func TestReportsGoThroughConsulDataplane(t *testing.T) {
	_, b := ofPlainGateway().fill(t, dataplaneTemplate(t, bootstrap.DataplaneOptions{DrainTime: bootstrap.DefaultDrainTime}))
	listeners, managers := ushersListeners(t, b)
	if got, want := addressesOf(b)["usher_reports"], addressText(listeners["usher_reports"].GetAddress()); got != want {
		t.Errorf("the listener is at %q, and its cluster at %q", want, got)
	}
	route := managers["usher_reports"].GetRouteConfig().GetVirtualHosts()[0].GetRoutes()[0]
	if got, want := route.GetMatch().GetPath(), logsv1.LogsService_Export_FullMethodName; got != want {
		t.Errorf("it takes %s, want %s", got, want)
	}
	const ads = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName
	if got := route.GetRoute().GetPrefixRewrite(); got != ads {
		t.Errorf("it passes on %s, want %s", got, ads)
	}
}

func TestATemplateIsOneLineAndTheSameEachTime(t *testing.T) {
	for name, o := range dataplaneCases(t) {
		text := dataplaneTemplate(t, o)
		if strings.Contains(text, "\n") {
			t.Errorf("%s: the template has a line end", name)
		}
		for range 10 {
			if diff := cmp.Diff(text, dataplaneTemplate(t, o)); diff != "" {
				t.Fatalf("%s: two templates differ:\n%s", name, diff)
			}
		}
	}
}

func TestAnOptionCannotHoldAnAction(t *testing.T) {
	const name = "{{.Token}}"
	o := bootstrap.DataplaneOptions{XDSAddr: "https://usher:18000", CACert: readFile(t, "testdata/ca.pem"), ServerName: name}
	_, b := ofPlainGateway().fill(t, dataplaneTemplate(t, o))
	args := b.GetDynamicResources().GetAdsConfig().GetGrpcServices()[0].GetGoogleGrpc().GetChannelArgs().GetArgs()
	if got := args["grpc.ssl_target_name_override"].GetStringValue(); got != name {
		t.Errorf("the server name is %q, want %q as it was given", got, name)
	}
}
