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

// The stream has ended after the cluster and before its endpoints. Envoy would use the cluster without any: the version of the
// endpoints is for the cluster that was there before.
func TestEnvoyHasItsClusterAndNotTheEndpointsAfterIt(t *testing.T) {
	edition := func(n int) resources { return small().with(cluster("web", n)) }
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		r.source.publish(edition(2).withParents(t))
		has := upToDate(t, edition(2))
		has[eds]["web"] = edition(1).withParents(t).Collection(xds.Endpoint).Get("web").Version()
		e := r.connectWith(fakeenvoy.Options{Has: has})
		e.Subscribe(cds)
		e.ExpectAck(cds)
		e.Subscribe(eds, "web")
		e.ExpectAck(eds, "web")
		e.ExpectNone()
	})
}

// withParents is set, with load assignments whose versions depend on their clusters.
func (w resources) withParents(t testing.TB) *xds.Set {
	t.Helper()
	collections := w.collections(t)
	var assignments []*xds.Resource
	for name, m := range w[xds.Endpoint] {
		r, err := xds.NewResource(xds.Endpoint, name, m, collections[xds.Cluster].Get(name))
		if err != nil {
			t.Fatal(err)
		}
		assignments = append(assignments, r)
	}
	collections[xds.Endpoint] = collections[xds.Endpoint].Next(assignments, nil, nil)
	return xds.NewSet(collections)
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
