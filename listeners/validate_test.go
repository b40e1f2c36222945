//go:build e2e

package listeners

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestEnvoyTakesEveryCase asks real Envoys: the validators do not know what is
// in an expression or in a log format.
func TestEnvoyTakesEveryCase(t *testing.T) {
	for release, e := range map[string]gateway.EnvoyVersion{
		"1.40.0": {Major: 1, Minor: 40},
		"1.39.3": {Major: 1, Minor: 39, Patch: 3},
		"1.38.3": {Major: 1, Minor: 38, Patch: 3},
		"1.37.0": {Major: 1, Minor: 37},
		"1.36.2": {Major: 1, Minor: 36, Patch: 2},
	} {
		binary := testprocess.Tool(t, "envoy-"+release, "envoy")
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			eachCase(t, func(t *testing.T, in []byte) {
				s, _ := mustParse(t, in)
				for _, instance := range s.Instances {
					wantTaken(t, binary, compile(s, instance, e))
				}
			})
		})
	}
}

// wantTaken starts an Envoy that has the listeners and clusters from the start,
// and ends before it serves.
func wantTaken(t *testing.T, binary string, r *Resources) {
	t.Helper()
	http2, err := envoy.HTTP2Options()
	if err != nil {
		t.Fatal(err)
	}
	static := func(name string) *clusterv3.Cluster {
		return &clusterv3.Cluster{
			Name:                          name,
			ConnectTimeout:                durationpb.New(envoy.ConnectTimeout),
			ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			TypedExtensionProtocolOptions: http2,
		}
	}
	text, err := protojson.Marshal(&bootstrapv3.Bootstrap{
		Node: &corev3.Node{Id: "id", Cluster: "cluster"},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{AdsConfig: &corev3.ApiConfigSource{
			ApiType:             corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion: corev3.ApiVersion_V3,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "ads"},
			}}},
		}},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Listeners: slices.Collect(r.Listeners.Values()),
			// Those of the operator's own SDS servers are in the cases' bootstraps.
			Clusters: append([]*clusterv3.Cluster{static("ads"), static("sds")}, slices.Collect(r.Clusters.Values())...),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), binary, "--mode", "validate", "--log-level", "error", "-c", file).CombinedOutput(); err != nil {
		t.Errorf("Envoy refuses it: %v\n%s", err, out[max(0, len(out)-2000):])
	}
}
