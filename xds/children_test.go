package xds_test

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

func TestEndpointsAreSentAgainAfterTheirCluster(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(two())
		r.source.publish(two().with(cluster("web", 2)).set(t))
		e.ExpectAck(cds, r.full([]string{"api", "web"}, "web")...)
		e.ExpectAck(eds, "web")
		e.ExpectNone()
	})
}

func TestRoutesAreSentAgainAfterTheirListener(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().with(listener("http", 2, "web")).set(t))
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
		e.ExpectNone()
	})
}

func TestEndpointsUnderAServiceNameAreSentAgainAfterTheirCluster(t *testing.T) {
	named := func(edition int) resources {
		c := cluster("web", edition).(*clusterv3.Cluster)
		c.EdsClusterConfig.ServiceName = "web.service"
		return resources{}.with(c, endpoints("web.service", 1))
	}
	forBoth(t, func(r *harness) {
		r.source.publish(named(1).set(t))
		e := r.connect()
		e.Subscribe(cds)
		e.ExpectAck(cds, "web")
		e.Subscribe(eds, "web.service")
		e.ExpectAck(eds, "web.service")
		r.source.publish(named(2).set(t))
		e.ExpectAck(cds, "web")
		e.ExpectAck(eds, "web.service")
		e.ExpectNone()
	})
}

func TestClusterChangesWhileItsEndpointsAwaitTheirACK(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().with(endpoints("web", 2)).set(t))
		early := e.Expect(eds, "web")
		r.source.publish(small().with(cluster("web", 2), endpoints("web", 2)).set(t))
		e.ExpectAck(cds, "web")
		e.ExpectNone()
		e.Ack(early)
		e.ExpectAck(eds, "web")
		e.ExpectNone()
	})
}

// Envoy subscribes to everything right after it reconnects, before it sees that the cluster has changed. So its initial
// versions of the endpoints do not count.
func TestClusterChangedWhileEnvoyWasAway(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		r.source.publish(small().with(cluster("web", 2)).set(t))
		e := r.connectWith(fakeenvoy.Options{Has: upToDate(t, small())})
		e.Subscribe(cds)
		clusters := e.Expect(cds, "web")
		e.Subscribe(eds, "web")
		e.ExpectAck(eds, "web")
		e.Ack(clusters)
		e.ExpectNone()
	})
}

// upToDate returns the versions of an Envoy that was sent all resources.
func upToDate(t testing.TB, w resources) map[string]map[string]string {
	t.Helper()
	has := map[string]map[string]string{}
	for typ := range xds.Type(xds.NumTypes) {
		has[typ.URL()] = map[string]string{}
		for name, m := range w[typ] {
			has[typ.URL()][name] = encode(t, m).Version()
		}
	}
	return has
}
