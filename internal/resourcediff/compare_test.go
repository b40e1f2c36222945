package resourcediff

import (
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestDifferenceIsNamedByItsField(t *testing.T) {
	consul := &clusterv3.Cluster{Name: "web", OutlierDetection: &clusterv3.OutlierDetection{Consecutive_5Xx: wrapperspb.UInt32(3)}}
	usher := &clusterv3.Cluster{Name: "web", OutlierDetection: &clusterv3.OutlierDetection{}}

	found := Compare(one(t, resource.ClusterType, consul), one(t, resource.ClusterType, usher))
	if len(found) != 1 {
		t.Fatalf("%d differences, want 1: %v", len(found), found)
	}
	want := Difference{
		TypeURL: resource.ClusterType, Name: "resource", Path: "outlier_detection.consecutive_5xx", Before: "3", After: "absent",
	}
	if found[0] != want {
		t.Errorf("found %+v, want %+v", found[0], want)
	}
}

func TestResourceOfOneOnlyIsADifference(t *testing.T) {
	some := one(t, resource.ClusterType, &clusterv3.Cluster{Name: "web"})
	for name, found := range map[string][]Difference{
		"the first":  Compare(some, Resources{}),
		"the second": Compare(Resources{}, some),
	} {
		if len(found) != 1 || found[0].Path != "" {
			t.Errorf("only %s has the cluster: found %v, want it as a whole", name, found)
		}
	}
}

func TestOrderOfInstancesIsNoDifference(t *testing.T) {
	a, b := instances("10.0.0.1", "10.0.0.2"), instances("10.0.0.2", "10.0.0.1")
	if found := Compare(one(t, resource.EndpointType, a), one(t, resource.EndpointType, b)); len(found) > 0 {
		t.Errorf("found %v, want none", found)
	}
}

func TestInvalidPartOfAResourceIsFound(t *testing.T) {
	inside, err := anypb.New(&tlsv3.TlsParameters{TlsMinimumProtocolVersion: 99})
	if err != nil {
		t.Fatal(err)
	}
	packed, err := anypb.New(&clusterv3.Cluster{Name: "web", TransportSocket: &corev3.TransportSocket{
		Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: inside},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := Validate(packed); err == nil || !strings.Contains(err.Error(), "TlsMinimumProtocolVersion") {
		t.Errorf("validate: %v, want an error about TlsMinimumProtocolVersion", err)
	}
}

// one returns a resource in canonical form.
func one(t *testing.T, typeURL string, m proto.Message) Resources {
	t.Helper()
	packed, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := Render(packed)
	if err != nil {
		t.Fatal(err)
	}
	out, err := Resources{typeURL: {"resource": rendered}}.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func instances(addresses ...string) *endpointv3.ClusterLoadAssignment {
	group := &endpointv3.LocalityLbEndpoints{}
	for _, a := range addresses {
		group.LbEndpoints = append(group.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Hostname: a}},
		})
	}
	return &endpointv3.ClusterLoadAssignment{ClusterName: "web", Endpoints: []*endpointv3.LocalityLbEndpoints{group}}
}
