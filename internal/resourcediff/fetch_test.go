package resourcediff

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeServer answers each subscription with its resources of the type.
type fakeServer struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	resources map[string]proto.Message // by type URL; each is called "web"
}

func (s *fakeServer) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for first := true; ; first = false {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		if first && request.GetNode().GetId() != "edge" {
			return errors.New("the first request has no node")
		}
		m, ok := s.resources[request.TypeUrl]
		if request.ResponseNonce != "" || !ok {
			continue
		}
		response := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: request.TypeUrl, Nonce: "1"}
		if m != nil {
			packed, err := anypb.New(m)
			if err != nil {
				return err
			}
			response.Resources = []*discoveryv3.Resource{{Name: "web", Resource: packed}}
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

func (s *fakeServer) fetch(t *testing.T) (Resources, error) {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, s)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	return Fetch(ctx, conn, Node("edge", "edge", &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 35}, map[string]string{"node_name": "", "namespace": "a"}),
		func(r Resources) bool { return len(r[resource.ListenerType]) > 0 })
}

func TestFetchWaitsForWhatIsReferredTo(t *testing.T) {
	cluster := &clusterv3.Cluster{
		Name: "web", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		}},
	}
	all := map[string]proto.Message{
		resource.ClusterType: cluster, resource.ListenerType: &listenerv3.Listener{Name: "web"},
		resource.EndpointType: &endpointv3.ClusterLoadAssignment{ClusterName: "web"},
	}
	got, err := (&fakeServer{resources: all}).fetch(t)
	if err != nil {
		t.Fatal(err)
	}
	for url := range all {
		if got[url]["web"] == nil {
			t.Errorf("it lacks %s", url)
		}
	}
	for what, tc := range map[string]struct {
		change map[string]proto.Message
		want   string
	}{
		"no endpoints":       {map[string]proto.Message{resource.ClusterType: cluster, resource.ListenerType: all[resource.ListenerType]}, "missing: " + resource.EndpointType + " web"},
		"no listeners":       {map[string]proto.Message{resource.ClusterType: nil, resource.ListenerType: nil}, "has sent 0 listeners only"},
		"no answer":          {nil, "missing: any answer"},
		"an invalid cluster": {map[string]proto.Message{resource.ClusterType: &clusterv3.Cluster{}}, "invalid Cluster.Name"},
	} {
		if _, err := (&fakeServer{resources: tc.change}).fetch(t); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", what, err, tc.want)
		}
	}
}

func TestADumpHasWhatCameOverXDS(t *testing.T) {
	got, err := ReadDump([]byte(`{"configs": [
		{"static_clusters": [{"cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "static"}}],
		 "dynamic_active_clusters": [{"cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "web", "future": 1}}]},
		{"dynamic_listeners": [{"name": "new", "warming_state": {}},
		 {"active_state": {"listener": {"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "http"}}}]},
		{"dynamic_route_configs": [{"route_config": {"@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration", "name": "8080"}}]},
		{"dynamic_active_secrets": [{"secret": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": "leaf"}}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, url := range []string{resource.ClusterType, resource.ListenerType, resource.RouteType, resource.SecretType} {
		for name := range got[url] {
			names = append(names, name)
		}
	}
	if diff := cmp.Diff([]string{"web", "http", "8080", "leaf"}, names); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestUnifiedNamesTheResource(t *testing.T) {
	listener := func(port int) Resources {
		return Resources{resource.ListenerType: {"http": map[string]any{"name": "http", "port": port}}}
	}
	var out bytes.Buffer
	differs, err := Unified(&out, "consul", "usher", listener(1), listener(2))
	want := "--- consul/listener/http\n+++ usher/listener/http\n@@ -1,2 +1,2 @@\n name: http\n-port: 1\n+port: 2\n"
	if diff := cmp.Diff(want, out.String()); diff != "" || !differs || err != nil {
		t.Errorf("differs: %v, error %v\n-want +got\n%s", differs, err, diff)
	}
	out.Reset()
	if differs, err := Unified(&out, "consul", "usher", listener(1), listener(1)); differs || err != nil || out.Len() > 0 {
		t.Errorf("the same differs: %v, error %v: %s", differs, err, out.String())
	}
	if differs, _ := Unified(&out, "consul", "usher", Resources{}, listener(1)); !differs || !strings.Contains(out.String(), "+name: http\n") {
		t.Errorf("a resource of one only: %v: %s", differs, out.String())
	}
}
