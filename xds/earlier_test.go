package xds_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

// before has the cluster api, and after has shop in its place.
var (
	before = two()
	after  = small().with(cluster("shop", 1), endpoints("shop", 1), routes("web", 2))
)

// replaced returns the set of after, which knows the clusters of before.
func replaced(t *testing.T) *xds.Set {
	old, now := before.set(t), after.set(t)
	return now.WithEarlier(xds.Earlier(nil).With(old.Collection(xds.Cluster), now.Collection(xds.Cluster)))
}

// Requests would find no cluster if the old one was removed before Envoy has the new routes.
func TestClusterReplacedWhileEnvoyWasAwayIsRemovedLast(t *testing.T) {
	forBoth(t, func(r *harness) {
		r.source.publish(replaced(t))
		e := r.reconnect(before)
		clusters := e.Expect(cds, r.full([]string{"api", "shop", "web"}, "shop")...)
		if r.protocol == fakeenvoy.SotW {
			e.ExpectAck(eds, "web") // the server cannot know which endpoints the Envoy has
		}
		e.Subscribe(eds, "shop")
		e.ExpectAck(eds, "shop")
		e.ExpectNone()
		e.Ack(clusters)
		if r.protocol == fakeenvoy.Delta {
			e.ExpectAck(lds) // it has all
		}
		changed := e.Expect(rds, "web")
		e.ExpectNone()
		e.Ack(changed)
		r.expectRemoved(e, cds, "api", "shop", "web")
		e.ExpectNone()
	})
}

// The stream ends when Envoy has the new cluster, and not yet the new routes.
func TestStreamEndsBetweenTheNewClusterAndTheRemovalOfTheOldOne(t *testing.T) {
	forOne(t, fakeenvoy.SotW, func(r *harness) {
		e := r.warm(before)
		r.source.publish(replaced(t))
		clusters := e.ExpectAck(cds, "api", "shop", "web")
		e.Disconnect()

		e = r.connectWith(fakeenvoy.Options{VersionInfo: map[string]string{
			cds: clusters.Version, eds: "an earlier one", rds: "an earlier one",
			lds: before.set(t).Collection(xds.Listener).Version(),
		}})
		e.Subscribe(cds)
		e.Subscribe(eds, "api", "shop", "web")
		e.Subscribe(lds)
		e.Subscribe(rds, "web")
		e.ExpectAck(eds, "shop", "web")
		changed := e.Expect(rds, "web")
		e.ExpectNone()
		e.Ack(changed)
		e.ExpectAck(cds, "shop", "web")
		e.ExpectNone()
	})
}

// The server does not know what the Envoy has, and a response lists all that it is to have.
func TestEnvoyWithUnknownClustersGetsThoseOfTheSet(t *testing.T) {
	forOne(t, fakeenvoy.SotW, func(r *harness) {
		r.source.publish(replaced(t))
		e := r.reconnect(before.with(cluster("other", 1)))
		e.ExpectAck(cds, "shop", "web")
		e.ExpectAck(eds, "web")
		e.Subscribe(eds, "shop")
		e.ExpectAck(eds, "shop")
		e.ExpectAck(rds, "web")
		e.ExpectNone()
	})
}

func TestEarlierClustersAreFewAndNotOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := make([]*xds.Collection, 20)
		for i := range all {
			all[i] = resources{}.with(cluster(fmt.Sprint(i), 1)).set(t).Collection(xds.Cluster)
		}
		known := func(e xds.Earlier, i int) bool { return e.Get(all[i].Version()) == all[i] }
		var e xds.Earlier
		for i := range len(all) - 1 {
			e = e.With(all[i], all[i+1])
		}
		if known(e, 0) || !known(e, 18) {
			t.Error("the oldest is there, or the newest is not")
		}
		for range 20 { // other Envoys of the gateway
			e = e.With(all[18], all[19])
		}
		if !known(e, 17) || len(e) > 10 {
			t.Errorf("there are %d; or the last but one is not there", len(e))
		}
		time.Sleep(time.Hour)
		if e = e.With(all[19], all[19]); len(e) > 0 {
			t.Errorf("after an hour, there are still %d", len(e))
		}
	})
}
