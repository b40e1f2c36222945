package xds_test

import (
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/usherproxy/usher/xds"
)

func TestVersionIsOfTheContent(t *testing.T) {
	one, same, other := encode(t, cluster("web", 1)), encode(t, cluster("web", 1)), encode(t, cluster("web", 2))
	if one.Version() != same.Version() {
		t.Errorf("equal clusters have versions %s and %s", one.Version(), same.Version())
	}
	if one.Version() == other.Version() {
		t.Error("clusters that differ have one version")
	}
	if one.Name() != "web" || one.Size() != proto.Size(cluster("web", 1)) {
		t.Errorf("got %s of %d bytes", one.Name(), one.Size())
	}
}

func TestResourceThatEnvoyWouldRefuse(t *testing.T) {
	for name, c := range map[string]struct {
		typ  xds.Type
		m    proto.Message
		want string
	}{
		"bad field":  {xds.Cluster, &clusterv3.Cluster{Name: "web", ConnectTimeout: &durationpb.Duration{}}, `cluster "web": invalid Cluster.ConnectTimeout`},
		"no name":    {xds.Route, &routev3.RouteConfiguration{}, "route without a name"},
		"wrong type": {xds.Listener, cluster("web", 1), `listener "web" is a envoy.config.cluster.v3.Cluster`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := xds.NewResource(c.typ, nameOf(c.m), c.m)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestTypesAreInPushOrder(t *testing.T) {
	var names []string
	for typ := range xds.Type(xds.NumTypes) {
		names = append(names, typ.String())
	}
	if want := []string{"secret", "token_bucket", "cluster", "endpoint", "listener", "route"}; !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}
