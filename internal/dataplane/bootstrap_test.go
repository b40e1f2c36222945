package dataplane

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/proto-public/pbdataplane"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"
)

// ushersTemplate is the template that a server under test gives to gateways.
const ushersTemplate = `{"node": {"id": "{{ .ProxyID }}"}}`

// paramsOf are bootstrap parameters as Consul has them for a service.
func paramsOf(t *testing.T, service string, config map[string]any) *pbdataplane.GetEnvoyBootstrapParamsResponse {
	t.Helper()
	r := &pbdataplane.GetEnvoyBootstrapParamsResponse{
		Identity: service, Datacenter: "dc1", NodeName: "node-1-virtual", AccessLogs: []string{"{}"},
	}
	if config != nil {
		var err error
		if r.Config, err = structpb.NewStruct(config); err != nil {
			t.Fatal(err)
		}
	}
	// A later Consul may send what this process does not know.
	r.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 77, protowire.BytesType), "later"))
	return r
}

// TestGatewaysGetABootstrap wants that the answer of Consul is as it was, except that a gateway has the template of Usher
// if it has none in Consul. The service edge is a gateway.
func TestGatewaysGetABootstrap(t *testing.T) {
	ushers := map[string]any{"envoy_bootstrap_json_tpl": ushersTemplate}
	older := paramsOf(t, "", nil)
	older.Service = "edge" //nolint:staticcheck // as Consul before 1.17 sends it
	olderWant := proto.CloneOf(older)
	olderWant.Config = paramsOf(t, "", ushers).Config
	for name, tc := range map[string]struct {
		consuls, want *pbdataplane.GetEnvoyBootstrapParamsResponse
		noConsul      error
	}{
		"a gateway":                    {consuls: paramsOf(t, "edge", nil), want: paramsOf(t, "edge", ushers)},
		"a gateway of an older consul": {consuls: older, want: olderWant},
		"a gateway with settings":      {consuls: paramsOf(t, "edge", map[string]any{"protocol": "http"}), want: paramsOf(t, "edge", map[string]any{"protocol": "http", "envoy_bootstrap_json_tpl": ushersTemplate})},
		"a gateway with its own":       {consuls: paramsOf(t, "edge", map[string]any{"envoy_bootstrap_json_tpl": "{}"})},
		"its own, in other capitals":   {consuls: paramsOf(t, "edge", map[string]any{"Envoy_Bootstrap_JSON_tpl": "{}"})},
		"a sidecar":                    {consuls: paramsOf(t, "web", map[string]any{"protocol": "http"})},
		"a service that is not known":  {consuls: paramsOf(t, "edge", nil), noConsul: errNoConsul},
		"a service without a name":     {consuls: paramsOf(t, "", nil)},
	} {
		t.Run(name, func(t *testing.T) {
			want := tc.want
			if want == nil {
				want = tc.consuls
			}
			answer := func(_ any, stream grpc.ServerStream) error {
				if err := stream.RecvMsg(new(frame)); err != nil {
					return err
				}
				encoded, err := proto.Marshal(tc.consuls)
				if err != nil {
					return err
				}
				return stream.SendMsg(frame(encoded))
			}
			inBubble(t, answer, func(t *testing.T, h *harness) {
				h.catalog.set(tc.noConsul, "edge")
				got, err := h.bootstrapParams(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
					t.Errorf("bootstrap parameters (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// bootstrapParams makes the call of a consul-dataplane.
func (h *harness) bootstrapParams(ctx context.Context) (*pbdataplane.GetEnvoyBootstrapParamsResponse, error) {
	h.Helper()
	return pbdataplane.NewDataplaneServiceClient(h.dial()).GetEnvoyBootstrapParams(ctx, &pbdataplane.GetEnvoyBootstrapParamsRequest{ProxyId: "edge-1"})
}
