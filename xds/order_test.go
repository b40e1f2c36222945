package xds_test

import (
	"slices"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
)

// small is a gateway with one service.
func small() resources {
	return resources{}.with(cluster("web", 1), endpoints("web", 1), listener("http", 1, "web"), routes("web", 1))
}

// two is small with a second service.
func two() resources { return small().with(cluster("api", 1), endpoints("api", 1)) }

// warm starts an Envoy as Envoy does it: clusters and their endpoints, then listeners and their routes. The resources
// include the listener http with the routes web.
func (r *harness) warm(w resources) *fakeenvoy.Envoy {
	r.t.Helper()
	r.source.publish(w.set(r.t))
	e := r.connect()
	clusters := w.names(cds)
	e.Subscribe(cds)
	e.ExpectAck(cds, clusters...)
	e.Subscribe(eds, clusters...)
	e.ExpectAck(eds, clusters...)
	e.Subscribe(lds)
	e.ExpectAck(lds, "http")
	e.Subscribe(rds, "web")
	e.ExpectAck(rds, "web")
	e.ExpectNone()
	return e
}

// full returns what a response for clusters or listeners has: all of them in the state of the world, else the changed
// ones.
func (r *harness) full(all []string, changed ...string) []string {
	if r.protocol == fakeenvoy.SotW {
		return all
	}
	return changed
}

// expectRemoved acknowledges the response that removes a cluster or listener.
func (r *harness) expectRemoved(e *fakeenvoy.Envoy, typeURL, name string, left ...string) {
	r.t.Helper()
	got := e.ExpectAck(typeURL, r.full(left)...)
	if r.protocol == fakeenvoy.Delta && !slices.Equal(got.Removed, []string{name}) {
		r.t.Fatalf("removed %q, want %q", got.Removed, name)
	}
}

func TestEnvoyWarmsUp(t *testing.T) {
	forBoth(t, func(r *harness) { r.warm(two()) })
}

func TestListenersAndRoutesWaitForClustersAndEndpoints(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(resources{}.with(
			secret("key", 2), cluster("web", 2), endpoints("web", 2), listener("http", 2, "web"), routes("web", 2)).set(t))
		clusters := e.Expect(cds, "web")
		assignments := e.Expect(eds, "web")
		e.ExpectNone()
		e.Ack(clusters)
		e.ExpectNone()
		e.Ack(assignments)
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
		e.ExpectNone()
	})
}

func TestListenersWaitForSecrets(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		e.Subscribe(sds, "key")
		e.ExpectNone()
		r.source.publish(small().with(secret("key", 1), listener("http", 2, "web")).set(t))
		secrets := e.Expect(sds, "key")
		e.ExpectNone()
		e.Ack(secrets)
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
	})
}

// Envoy acknowledges a cluster only when the cluster is warm, which needs its
// endpoints and secrets.
func TestEndpointsAndSecretsDoNotWaitForTheClustersACK(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(two().with(secret("key", 1)).set(t))
		clusters := e.Expect(cds, r.full([]string{"api", "web"}, "api")...)
		e.Subscribe(eds, "api")
		e.ExpectAck(eds, "api")
		e.Subscribe(sds, "key")
		e.ExpectAck(sds, "key")
		e.Ack(clusters)
		e.ExpectNone()
	})
}

func TestListenersWaitForTheSubscriptionToEndpointsOfANewCluster(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(two().with(listener("http", 2, "web")).set(t))
		e.ExpectAck(cds, r.full([]string{"api", "web"}, "api")...)
		e.ExpectNone()
		e.Subscribe(eds, "api")
		assignments := e.Expect(eds, "api")
		e.ExpectNone()
		e.Ack(assignments)
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
	})
}

func TestListenersDoNotWaitForEndpointsThatDoNotExist(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().with(cluster("api", 1), listener("http", 2, "web")).set(t))
		e.ExpectAck(cds, r.full([]string{"api", "web"}, "api")...)
		e.ExpectAck(lds, "http")
	})
}

func TestListenersAreSentToAnEnvoyThatNeverSubscribesToEndpoints(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(two().with(listener("http", 2, "web")).set(t))
		e.ExpectAck(cds, r.full([]string{"api", "web"}, "api")...)
		e.ExpectNone()
		time.Sleep(20 * time.Second) // of the bubble's time
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
		e.ExpectNone()
	})
}

func TestListenersAreSentToAnEnvoyThatDoesNotAcknowledgeItsClusters(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().with(cluster("web", 2), listener("http", 2, "web")).set(t))
		clusters := e.Expect(cds, "web")
		e.ExpectAck(eds, "web")
		e.ExpectNone()
		time.Sleep(20 * time.Second) // of the bubble's time
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
		e.Ack(clusters)
		e.ExpectNone()
	})
}

func TestOneResponsePerTypeAwaitsItsACK(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().with(endpoints("web", 2)).set(t))
		first := e.Expect(eds, "web")
		r.source.publish(small().with(endpoints("web", 3)).set(t))
		r.source.publish(small().with(endpoints("web", 4)).set(t))
		e.ExpectNone()
		e.Ack(first)
		last := e.ExpectAck(eds, "web")
		if want := encode(t, endpoints("web", 4)).Version(); r.protocol == fakeenvoy.Delta && last.Versions["web"] != want {
			t.Errorf("got version %s, want the newest, %s", last.Versions["web"], want)
		}
		e.ExpectNone()
	})
}

func TestClusterIsRemovedAfterTheListenersAndRoutesThatUsedIt(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(two())
		r.source.publish(small().with(listener("http", 2, "web"), routes("web", 2)).set(t))
		listeners := e.Expect(lds, "http")
		routes := e.Expect(rds, "web")
		e.ExpectNone()
		e.Ack(listeners)
		e.ExpectNone()
		e.Ack(routes)
		r.expectRemoved(e, cds, "api", "web")
		e.ExpectNone()
	})
}

func TestRemovedClusterStaysInTheStateOfTheWorldUntilTheListenersAreAcknowledged(t *testing.T) {
	forOne(t, fakeenvoy.SotW, func(r *harness) {
		e := r.warm(two())
		r.source.publish(small().with(cluster("web", 2), listener("http", 2, "web")).set(t))
		e.ExpectAck(cds, "api", "web")
		e.ExpectAck(eds, "web")
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
		e.ExpectAck(cds, "web")
		e.ExpectNone()
	})
}

func TestRemovedListenerIsSentAtOnce(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().without(listener("http", 1)).set(t))
		r.expectRemoved(e, lds, "http")
		e.ExpectNone()
	})
}

func TestClustersOfARejectedListenerAreKept(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(two())
		r.source.publish(small().with(listener("http", 2, "web")).set(t))
		e.Nack(e.Expect(lds, "http"), "no")
		e.ExpectAck(rds, "web")
		e.ExpectNone()
		r.source.publish(small().with(listener("http", 3, "web")).set(t))
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
		r.expectRemoved(e, cds, "api", "web")
	})
}

// After a reconnect Envoy subscribes to clusters first. Its listeners may still use those that are gone.
func TestClustersAreNotRemovedBeforeEnvoySubscribesToListeners(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		r.source.publish(small().set(t))
		e := r.connectWith(fakeenvoy.Options{Has: map[string]map[string]string{
			cds: {"web": encode(t, cluster("web", 1)).Version(), "gone": "1"},
			lds: {"http": "old"},
		}})
		e.Subscribe(cds)
		e.ExpectAck(cds)
		e.ExpectNone()
		e.Subscribe(lds)
		e.ExpectAck(lds, "http")
		r.expectRemoved(e, cds, "gone")
	})
}
