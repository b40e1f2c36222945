package xds_test

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
)

// aggregate sends to other clusters.
func aggregate(name string, targets ...string) proto.Message {
	config, err := anypb.New(&aggregatev3.ClusterConfig{Clusters: targets})
	if err != nil {
		panic(err)
	}
	return &clusterv3.Cluster{
		Name:     name,
		LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED,
		ClusterDiscoveryType: &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
			Name: "envoy.clusters.aggregate", TypedConfig: config,
		}},
	}
}

// A cluster in use becomes an aggregate of new clusters. It is replaced when those are warm, and routes and listeners
// change only then.
func TestAggregateWaitsForItsNewTargets(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().with(
			aggregate("web", "primary", "spare"), listener("http", 2, "web"),
			cluster("primary", 1), endpoints("primary", 1), cluster("spare", 1), endpoints("spare", 1),
		).without(endpoints("web", 1)).set(t))
		targets := e.Expect(cds, r.full([]string{"primary", "spare", "web"}, "primary", "spare")...)
		e.Subscribe(eds, "primary", "spare")
		e.ExpectAck(eds, "primary", "spare")
		e.ExpectNone()
		e.Ack(targets)
		whole := e.Expect(cds, r.full([]string{"primary", "spare", "web"}, "web")...)
		e.ExpectNone()
		e.Ack(whole)
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
		e.ExpectNone()
	})
}

// Targets that Envoy already has keep their endpoints while they change.
func TestAggregateDoesNotWaitForTargetsThatChange(t *testing.T) {
	forBoth(t, func(r *harness) {
		config := small().with(cluster("primary", 1), endpoints("primary", 1))
		e := r.warm(config)
		r.source.publish(config.with(aggregate("both", "web", "primary"), cluster("primary", 2)).set(t))
		e.ExpectAck(cds, r.full([]string{"both", "primary", "web"}, "both", "primary")...)
		e.ExpectAck(eds, "primary")
		e.ExpectNone()
	})
}

// A full state removes what it leaves out. So the first one for an Envoy that reconnects has everything.
func TestFirstStateOfTheWorldHasAggregateAndTargets(t *testing.T) {
	forOne(t, fakeenvoy.SotW, func(r *harness) {
		r.source.publish(small().with(aggregate("both", "web")).set(t))
		e := r.connect()
		e.Subscribe(cds)
		e.ExpectAck(cds, "both", "web")
	})
}
