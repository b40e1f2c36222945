//go:build e2e

package e2e

import (
	"context"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	otlplogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/proto-public/pbacl"
	"github.com/hashicorp/consul/proto-public/pbdataplane"
	"github.com/hashicorp/consul/proto-public/pbserverdiscovery"
	logsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	otlpcommonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	otlplogsv1 "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestConsulDataplaneThroughUsher makes the calls of a consul-dataplane, in its order, at Usher's address and at
// Consul's own: a secure Consul with ACLs. All answers are the same, except that Usher hides the addresses of Consul's
// servers, gives the gateway a bootstrap, and answers its discovery stream.
func TestConsulDataplaneThroughUsher(t *testing.T) {
	t.Parallel()
	s := startDataplaneLab(t)
	t.Run("features", s.wantFeatures)
	t.Run("WatchServers is refused", s.wantNoWatchServers)
	t.Run("bootstrap parameters", s.wantBootstrapParams)
	t.Run("refusals of Consul", s.wantConsulsRefusals)
	t.Run("a sidecar's stream is Consul's", s.wantSidecarServedByConsul)
	t.Run("a gateway's stream is Usher's", s.wantGatewayServedByUsher)
	t.Run("a gateway's reports are Usher's", s.wantReportCounted)
	t.Run("another gateway's token is refused", s.wantOtherTokensRefused)
	t.Run("a gateway under another name is refused", s.wantNoGatewayFromConsul)
	t.Run("metrics", s.wantDataplaneMetrics)
}

// TestDataplaneWithoutConsul ends Consul. The gateway that Usher knows is served, and a service of which Usher does not
// know whether it is a gateway is not.
func TestDataplaneWithoutConsul(t *testing.T) {
	t.Parallel()
	s := startDataplaneLab(t)
	e := s.connectGateway(t, s.dial(t), s.gatewayToken)
	key := lab.FetchPrivateKey(t, e)
	e.Disconnect()
	sidecar := s.connectSidecar(t, s.dial(t))
	sidecar.Subscribe(resource.ClusterType)
	sidecar.Next()

	s.Consul.Kill()
	if code := status.Code(sidecar.End()); code != codes.Unavailable {
		t.Errorf("the sidecar's stream ended with %v, want Unavailable", code)
	}
	s.Usher.WaitOutput(t, "cannot pass calls of consul-dataplane to consul's gRPC port")
	s.Usher.WaitOutput(t, "cannot read from consul")
	conn := s.dial(t)
	if again := lab.FetchPrivateKey(t, s.connectGateway(t, conn, s.gatewayToken)); again != key {
		t.Error("the gateway that comes back while Consul is gone does not get what it had")
	}
	for name, want := range map[string]string{
		"static-server": "usher cannot reach consul's gRPC port",                                        // known not to be a gateway
		"never-seen":    `usher cannot find out whether the service "never-seen" is an ingress gateway`, // it may be one
	} {
		e := fakeenvoy.Connect(t, conn, fakeenvoy.Delta, fakeenvoy.Options{
			Node: dataplaneNode(t, name+"-sidecar-proxy", name, "service"), Token: s.gatewayToken,
		})
		e.Subscribe(resource.ClusterType)
		if err := e.ExpectEnd(codes.Unavailable); !strings.Contains(err.Error(), want) {
			t.Errorf("%s got %v, want %q", name, err, want)
		}
	}
}

// TestDataplanesComeBackAfterARestart stops Usher while a gateway and a sidecar have streams: both end soon with a status
// that tells them to come back, and both come back.
func TestDataplanesComeBackAfterARestart(t *testing.T) {
	t.Parallel()
	s := startDataplaneLab(t)
	gateway, sidecar := s.connectGateway(t, s.dial(t), s.gatewayToken), s.connectSidecar(t, s.dial(t))
	key := lab.FetchPrivateKey(t, gateway)
	sidecar.Subscribe(resource.ClusterType)
	before := sidecar.Next()

	begin := time.Now()
	s.Usher.Signal(t, syscall.SIGTERM)
	for what, e := range map[string]*fakeenvoy.Envoy{"gateway": gateway, "sidecar": sidecar} {
		if err := e.ExpectEnd(codes.Unavailable); !strings.Contains(err.Error(), "usher is shutting down") {
			t.Errorf("the stream of the %s ended with %v", what, err)
		}
	}
	if code := s.Usher.Wait(t); code != 0 {
		t.Errorf("usher ended with code %d, want 0", code)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("usher took %v to shut down with two streams", took)
	}

	s.startUsher(t)
	if again := lab.FetchPrivateKey(t, s.connectGateway(t, s.dial(t), s.gatewayToken)); again != key {
		t.Error("the gateway does not get what it had")
	}
	sidecar = s.connectSidecar(t, s.dial(t))
	sidecar.Subscribe(resource.ClusterType)
	if diff := cmp.Diff(before.Versions, sidecar.Next().Versions); diff != "" {
		t.Errorf("the sidecar does not get what it had (-before +now):\n%s", diff)
	}
}

// TestAProxyThatBecomesAGateway registers a gateway under the ID of a sidecar that has a stream of Consul's. Consul would go
// on with the gateway's own configuration there, so Usher ends the stream, and answers the next one.
func TestAProxyThatBecomesAGateway(t *testing.T) {
	t.Parallel()
	s := startDataplaneLab(t)
	token := s.Consul.NewToken(t, "edge", gatewayRules+`service_prefix "" { policy = "write" }`)
	register := func(service api.AgentService) {
		service.ID, service.Service, service.Address, service.Port = "edge-1", "edge", lab.ServiceIP, 21001
		_, err := s.Consul.Client.Catalog().Register(&api.CatalogRegistration{Node: "service", Address: lab.ServiceIP, Service: &service}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	register(api.AgentService{
		Kind: api.ServiceKindConnectProxy, Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "static-server"},
	})
	conn := s.dial(t)
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "x-consul-token", token), 90*time.Second)
	defer cancel()
	open := func() (discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, error) {
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		err = stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: dataplaneNode(t, "edge-1", "edge", "service"), TypeUrl: resource.ClusterType})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return stream, err
	}
	stream, err := open()
	if err != nil {
		t.Fatalf("the sidecar's stream: %v", err)
	}
	register(api.AgentService{Kind: api.ServiceKindIngressGateway})
	for err == nil { // Consul may send what the gateway has
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), `"edge-1" is an ingress gateway now`) {
		t.Errorf("the stream ended with %v", err)
	}
	if _, err := open(); err != nil {
		t.Errorf("the gateway's stream: %v", err)
	}
	if text := s.Usher.Metrics(t); !strings.Contains(text, `usher_dataplane_ads_streams{destination="usher"} 1`) {
		t.Errorf("usher does not serve the gateway:\n%s", text)
	}
}

// dataplanePort is the port of --dataplane-addr.
const dataplanePort = 18502

// dataplaneLab is a secure Consul with a gateway and a sidecar in its catalog, and an Usher for their dataplanes.
type dataplaneLab struct {
	*lab.Network
	Consul *lab.Consul
	Usher  *lab.Usher

	usherToken, gatewayToken, sidecarToken string
	cert, key                              string // of Usher
}

func startDataplaneLab(t *testing.T) *dataplaneLab {
	t.Helper()
	s := &dataplaneLab{Network: lab.NewNetwork(t)}
	s.Consul = lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: s.Control, Secure: true})
	s.RegisterCatalog(t, s.Consul)
	// Consul encodes the format of access logs in another order each time.
	s.Consul.WriteEntry(t, `
Kind = "proxy-defaults"
Name = "global"
`)
	s.prepare(t)
	s.startUsher(t)
	return s
}

// prepare makes tokens, and a certificate of Consul's authority.
func (s *dataplaneLab) prepare(t *testing.T) {
	t.Helper()
	s.usherToken = s.Consul.NewToken(t, "usher", testprocess.ReadFile(t, "../docs/usher-policy.hcl"))
	s.gatewayToken = s.Consul.NewToken(t, "ingress-gateway", gatewayRules)
	s.sidecarToken = s.Consul.NewToken(t, "static-server", strings.ReplaceAll(gatewayRules, `service "ingress-gateway"`, `service "static-server"`))
	s.cert, s.key = s.Consul.Security.CA.Issue(t, testprocess.NewDir(t), "usher.example.com", s.Gateway.IP)
}

func (s *dataplaneLab) startUsher(t *testing.T) {
	t.Helper()
	s.Usher = lab.StartUsher(t, lab.UsherOptions{
		Host: s.Gateway, Consul: s.Consul, Token: s.usherToken,
		Args: []string{
			"--dataplane-addr", s.Gateway.Addr(dataplanePort), "--dataplane-drain-time", drainTime.String(),
			"--tls-cert", s.cert, "--tls-key", s.key,
		},
	})
}

// dial connects to Usher as a consul-dataplane does: it trusts Consul's authority only.
func (s *dataplaneLab) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	return lab.XDSPort{
		From: s.Gateway, Address: s.Gateway.Addr(dataplanePort),
		TLS: credentials.NewClientTLSFromCert(s.Consul.Security.CA.Pool(), "usher.example.com"),
	}.Dial(t)
}

// dialConsul connects to Consul's own gRPC port.
func (s *dataplaneLab) dialConsul(t *testing.T) *grpc.ClientConn {
	t.Helper()
	return lab.XDSPort{
		From: s.Gateway, Address: strings.TrimPrefix(s.Consul.GRPCAddr, "https://"),
		TLS: credentials.NewClientTLSFromCert(s.Consul.Security.CA.Pool(), "server.dc1.consul"),
	}.Dial(t)
}

// onBoth makes a call at Usher's address and at Consul's, and returns both results.
func onBoth[R any](t *testing.T, s *dataplaneLab, call func(ctx context.Context, conn *grpc.ClientConn) R) (usher, consul R) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testprocess.ChangeDeadline)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-consul-token", s.gatewayToken)
	return call(ctx, s.dial(t)), call(ctx, s.dialConsul(t))
}

func (s *dataplaneLab) wantFeatures(t *testing.T) {
	supported := func(ctx context.Context, conn *grpc.ClientConn) map[string]bool {
		res, err := pbdataplane.NewDataplaneServiceClient(conn).GetSupportedDataplaneFeatures(ctx, &pbdataplane.GetSupportedDataplaneFeaturesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		features := map[string]bool{}
		for _, f := range res.SupportedDataplaneFeatures {
			features[f.FeatureName.String()] = f.Supported
		}
		return features
	}
	usher, consul := onBoth(t, s, supported)
	const watchServers = "DATAPLANE_FEATURES_WATCH_SERVERS"
	if !consul[watchServers] || !consul["DATAPLANE_FEATURES_ENVOY_BOOTSTRAP_CONFIGURATION"] {
		t.Fatalf("Consul has the features %v: the test shows nothing", consul)
	}
	want := maps.Clone(consul)
	want[watchServers] = false
	if diff := cmp.Diff(want, usher); diff != "" {
		t.Errorf("features (-want +Usher's):\n%s", diff)
	}
}

func (s *dataplaneLab) wantNoWatchServers(t *testing.T) {
	watch := func(ctx context.Context, conn *grpc.ClientConn) error {
		stream, err := pbserverdiscovery.NewServerDiscoveryServiceClient(conn).WatchServers(ctx, &pbserverdiscovery.WatchServersRequest{})
		if err != nil {
			return err
		}
		_, err = stream.Recv()
		return err
	}
	usher, consul := onBoth(t, s, watch)
	if consul != nil {
		t.Errorf("Consul refuses it: %v: the test shows nothing", consul)
	}
	if status.Code(usher) != codes.Unimplemented || !strings.Contains(usher.Error(), "past Usher; start consul-dataplane with -server-watch-disabled=true") {
		t.Errorf("got %v", usher)
	}
}

// bootstrapKey is the key of a service's Proxy.Config with the template of its bootstrap.
const bootstrapKey = "envoy_bootstrap_json_tpl"

// wantBootstrapParams wants that the gateway also gets a template.
func (s *dataplaneLab) wantBootstrapParams(t *testing.T) {
	params := func(ctx context.Context, conn *grpc.ClientConn) *pbdataplane.GetEnvoyBootstrapParamsResponse {
		res, err := pbdataplane.NewDataplaneServiceClient(conn).GetEnvoyBootstrapParams(ctx, &pbdataplane.GetEnvoyBootstrapParamsRequest{
			NodeSpec: &pbdataplane.GetEnvoyBootstrapParamsRequest_NodeName{NodeName: "gateway"}, ProxyId: "ingress-gateway",
		})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	usher, consul := onBoth(t, s, params)
	if consul.GetIdentity() != "ingress-gateway" {
		t.Fatalf("Consul has the service %q: the test shows nothing", consul.GetIdentity())
	}
	template := usher.GetConfig().GetFields()[bootstrapKey].GetStringValue()
	if !strings.Contains(template, `"usher_admin"`) || !strings.Contains(template, `{{printf "%q" .LocalAgentClusterName}}`) {
		t.Errorf("the gateway has not got Usher's bootstrap for consul-dataplane's own xDS server: %q", template)
	}
	delete(usher.GetConfig().GetFields(), bootstrapKey)
	if diff := cmp.Diff(consul, usher, protocmp.Transform(), protocmp.IgnoreEmptyMessages()); diff != "" {
		t.Errorf("bootstrap parameters (-Consul's +Usher's):\n%s", diff)
	}
}

// wantConsulsRefusals compares the statuses of calls that Consul refuses, with their details.
func (s *dataplaneLab) wantConsulsRefusals(t *testing.T) {
	for what, call := range map[string]func(ctx context.Context, conn *grpc.ClientConn) error{
		"login at an unknown auth method": func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := pbacl.NewACLServiceClient(conn).Login(ctx, &pbacl.LoginRequest{AuthMethod: "none", BearerToken: "x"})
			return err
		},
		"an unknown token": func(ctx context.Context, conn *grpc.ClientConn) error {
			ctx = metadata.NewOutgoingContext(ctx, metadata.Pairs("x-consul-token", unknownToken))
			_, err := pbdataplane.NewDataplaneServiceClient(conn).GetSupportedDataplaneFeatures(ctx, &pbdataplane.GetSupportedDataplaneFeaturesRequest{})
			return err
		},
		"an unknown method": func(ctx context.Context, conn *grpc.ClientConn) error {
			return conn.Invoke(ctx, "/example.Service/Method", &structpb.Struct{}, &structpb.Struct{})
		},
	} {
		t.Run(what, func(t *testing.T) {
			usher, consul := onBoth(t, s, call)
			if consul == nil {
				t.Fatal("Consul does not refuse it: the test shows nothing")
			}
			if diff := cmp.Diff(status.Convert(consul).Proto(), status.Convert(usher).Proto(), protocmp.Transform()); diff != "" {
				t.Errorf("status (-Consul's +Usher's):\n%s", diff)
			}
		})
	}
}

// connectSidecar opens the stream of the sidecar in the catalog.
func (s *dataplaneLab) connectSidecar(t *testing.T, conn *grpc.ClientConn) *fakeenvoy.Envoy {
	t.Helper()
	return fakeenvoy.Connect(t, conn, fakeenvoy.Delta, fakeenvoy.Options{
		Node:  dataplaneNode(t, "static-server-sidecar-proxy", "static-server", "service"),
		Token: s.sidecarToken,
	})
}

// connectGateway opens the stream of the gateway in the catalog.
func (s *dataplaneLab) connectGateway(t *testing.T, conn *grpc.ClientConn, token string) *fakeenvoy.Envoy {
	t.Helper()
	return fakeenvoy.Connect(t, conn, fakeenvoy.Delta, fakeenvoy.Options{
		Node: dataplaneNode(t, "ingress-gateway", "ingress-gateway", "gateway"), Token: token,
	})
}

// dataplaneNode returns the node in the bootstrap that consul-dataplane makes.
func dataplaneNode(t *testing.T, id, cluster, nodeName string) *corev3.Node {
	t.Helper()
	fields, err := structpb.NewStruct(map[string]any{"node_name": nodeName, "namespace": "", "partition": ""})
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.Node{Id: id, Cluster: cluster, Metadata: fields}
}

// wantSidecarServedByConsul compares the resources of the sidecar's stream.
func (s *dataplaneLab) wantSidecarServedByConsul(t *testing.T) {
	fetch := func(_ context.Context, conn *grpc.ClientConn) map[string][]string {
		e := s.connectSidecar(t, conn)
		got := map[string][]string{}
		for _, typeURL := range []string{resource.ClusterType, resource.ListenerType} {
			e.Subscribe(typeURL)
			r := e.Next()
			e.Ack(r)
			for _, body := range r.Bodies {
				got[typeURL] = append(got[typeURL], string(body))
			}
			slices.Sort(got[typeURL])
		}
		e.Disconnect()
		return got
	}
	usher, consul := onBoth(t, s, fetch)
	if len(consul[resource.ClusterType]) == 0 || len(consul[resource.ListenerType]) == 0 {
		t.Fatal("Consul sends no cluster or no listener: the test shows nothing")
	}
	if diff := cmp.Diff(consul, usher); diff != "" {
		t.Errorf("resources (-Consul's +Usher's):\n%s", diff)
	}
}

// wantGatewayServedByUsher wants the secret that only Usher sends.
func (s *dataplaneLab) wantGatewayServedByUsher(t *testing.T) {
	e := s.connectGateway(t, s.dial(t), s.gatewayToken)
	lab.FetchPrivateKey(t, e)
	s.Usher.WaitOutput(t, `msg="envoy connected"`)
	if log := s.Usher.Output(t); !strings.Contains(log, "address="+lab.GatewayIP) {
		t.Errorf("the log does not have the address of the consul-dataplane:\n%s", log)
	}
	e.Disconnect()
}

// wantReportCounted sends a report about the gateway's listener as consul-dataplane passes it on: with the method of a
// discovery stream, and the metadata that Usher has given to the listener.
func (s *dataplaneLab) wantReportCounted(t *testing.T) {
	conn := s.dial(t)
	e := s.connectGateway(t, conn, s.gatewayToken)
	e.Subscribe(resource.ListenerType)
	var listener listenerv3.Listener
	response := e.Next()
	e.Ack(response)
	e.Disconnect()
	if err := proto.Unmarshal(response.Bodies[0], &listener); err != nil {
		t.Fatal(err)
	}
	service, format := reportOf(t, &listener)
	if cluster := service.GetEnvoyGrpc().GetClusterName(); cluster != "usher_reports" {
		t.Errorf("the reports go to the cluster %q, which consul-dataplane does not pass on", cluster)
	}
	report := &logsv1.ExportLogsServiceRequest{ResourceLogs: []*otlplogsv1.ResourceLogs{{
		ScopeLogs: []*otlplogsv1.ScopeLogs{{LogRecords: []*otlplogsv1.LogRecord{{
			Body: &otlpcommonv1.AnyValue{Value: &otlpcommonv1.AnyValue_StringValue{
				StringValue: strings.NewReplacer(
					"%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "192.0.2.1:4000", "%DOWNSTREAM_REMOTE_ADDRESS%", "192.0.2.1:4000",
					"%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%", "198.51.100.1:8080", "%DOWNSTREAM_LOCAL_ADDRESS%", "198.51.100.1:8080",
					"%BYTES_RECEIVED%", "70", "%RESPONSE_FLAGS%", "-", "%FILTER_CHAIN_NAME%", "ingress",
					"%DOWNSTREAM_TRANSPORT_FAILURE_REASON%", "-", "%DURATION%", "3",
				).Replace(format),
			}},
		}}}},
	}}}
	send := func(signature string) error {
		md := metadata.Pairs("x-envoy-original-path", logsv1.LogsService_Export_FullMethodName)
		for _, h := range service.GetInitialMetadata() {
			md.Set(h.GetKey(), h.GetValue())
		}
		if signature != "" {
			md.Set("usher-signature", signature)
		}
		return conn.Invoke(metadata.NewOutgoingContext(t.Context(), md),
			discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName, report, &logsv1.ExportLogsServiceResponse{})
	}
	if err := send(""); err != nil {
		t.Error(err)
	}
	if err := send(strings.Repeat("0", 64)); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a report with another signature: %v", err)
	}
	if n := lab.Reported(t, s.Usher.Metrics(t), 8080, "no_header"); n != 1 {
		t.Errorf("Usher counts %d reported connections, want 1", n)
	}
}

// reportOf is where a listener sends reports of its connections, and their format.
func reportOf(t *testing.T, l *listenerv3.Listener) (service *corev3.GrpcService, format string) {
	t.Helper()
	for _, log := range l.GetAccessLog() {
		var report otlplogv3.OpenTelemetryAccessLogConfig
		if log.GetTypedConfig().MessageIs(&report) {
			if err := log.GetTypedConfig().UnmarshalTo(&report); err != nil {
				t.Fatal(err)
			}
			//nolint:staticcheck // Envoy before 1.37 knows no other way
			return report.GetCommonConfig().GetGrpcService(), report.GetBody().GetStringValue()
		}
	}
	t.Fatalf("the listener %s reports nothing", l.GetName())
	return nil, ""
}

func (s *dataplaneLab) wantOtherTokensRefused(t *testing.T) {
	conn := s.dial(t)
	other := s.Consul.NewToken(t, "other", strings.ReplaceAll(gatewayRules, "ingress-gateway", "other-gateway"))
	for _, c := range []struct {
		what, token string
		code        codes.Code
	}{
		{"another gateway's token", other, codes.PermissionDenied},
		{"a sidecar's token", s.sidecarToken, codes.PermissionDenied},
		{"no token", "", codes.PermissionDenied},
		{"an unknown token", unknownToken, codes.Unauthenticated},
	} {
		e := s.connectGateway(t, conn, c.token)
		lab.SubscribeToAll(e)
		if err := e.ExpectEnd(c.code); !strings.Contains(err.Error(), `service:write on the gateway "ingress-gateway"`) {
			t.Errorf("%s: got %q, which does not say what the token needs", c.what, err)
		}
	}
}

// wantNoGatewayFromConsul tries to get the gateway's own configuration of Consul, which lacks what Usher adds. Consul serves
// the proxy with the node's id, whatever the node's cluster is.
func (s *dataplaneLab) wantNoGatewayFromConsul(t *testing.T) {
	conn := s.dial(t)
	for _, c := range []struct {
		what, id, cluster, node, reason string
		code                            codes.Code
	}{
		{"a sidecar's cluster", "ingress-gateway", "static-server", "gateway", `set node.cluster to the gateway's service name`, codes.InvalidArgument},
		{"an unknown cluster", "ingress-gateway", "nowhere", "gateway", `set node.cluster to the gateway's service name`, codes.InvalidArgument},
		{"an encoded cluster", "ingress-gateway", "ingress-gatewa%79", "gateway", `set node.cluster to the gateway's service name`, codes.InvalidArgument},
		{"an encoded node", "ingress-gateway", "nowhere", "gatewa%79", "consul's catalog has no proxy", codes.Unavailable},
		{"another node", "ingress-gateway", "nowhere", "service", "consul's catalog has no proxy", codes.Unavailable},
		{"no node", "ingress-gateway", "nowhere", "", "consul's catalog has no proxy", codes.Unavailable},
	} {
		e := fakeenvoy.Connect(t, conn, fakeenvoy.Delta, fakeenvoy.Options{Node: dataplaneNode(t, c.id, c.cluster, c.node), Token: s.gatewayToken})
		e.Subscribe(resource.ListenerType)
		if err := e.ExpectEnd(c.code); !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: got %q, want %q", c.what, err, c.reason)
		}
	}
}

func (s *dataplaneLab) wantDataplaneMetrics(t *testing.T) {
	text := s.Usher.Metrics(t)
	for _, series := range []string{
		`usher_dataplane_ads_streams_total{destination="usher"}`,
		`usher_dataplane_ads_streams_total{destination="consul"}`,
		`usher_dataplane_calls_total{outcome="ok"}`,
		`usher_dataplane_calls_total{outcome="error"}`,
		`usher_dataplane_calls_total{outcome="refused"}`,
	} {
		if !strings.Contains(text, series) || strings.Contains(text, series+" 0\n") {
			t.Errorf("%s is missing or 0", series)
		}
	}
}
