package xds_test

import (
	"testing"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

// holdingBack returns a set in which some listeners cannot be built.
func (w resources) holdingBack(t testing.TB, listeners ...string) *xds.Set {
	t.Helper()
	all := w.collections(t)
	all[xds.Listener] = all[xds.Listener].Next(nil, listeners, listeners)
	return xds.NewSet(all)
}

func TestHeldBackListenerIsKept(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().holdingBack(t, "http"))
		e.ExpectNone()
		// Another listener comes: the first must still be there.
		r.source.publish(small().with(listener("tcp", 7)).holdingBack(t, "http"))
		e.ExpectAck(lds, r.full([]string{"http", "tcp"}, "tcp")...)
		e.ExpectNone()
		r.source.publish(small().with(listener("tcp", 7), listener("http", 2, "web")).set(t))
		e.ExpectAck(lds, r.full([]string{"http", "tcp"}, "http")...)
		e.ExpectAck(rds, "web")
		e.ExpectNone()
	})
}

func TestClustersOfAHeldBackListenerAreKept(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(two())
		r.source.publish(small().holdingBack(t, "http"))
		e.ExpectNone()
		r.source.publish(small().set(t))
		r.expectRemoved(e, cds, "api", "web")
	})
}

func TestHeldBackListenerIsRemoved(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().holdingBack(t, "http"))
		e.ExpectNone()
		r.source.publish(small().without(listener("http", 1)).set(t))
		r.expectRemoved(e, lds, "http")
	})
}

func TestNewEnvoyGetsTheListenersThatAreNotHeldBack(t *testing.T) {
	forBoth(t, func(r *harness) {
		r.source.publish(small().with(listener("tcp", 7)).holdingBack(t, "http"))
		e := r.connect()
		e.Subscribe(lds)
		e.ExpectAck(lds, "tcp")
		e.ExpectNone()
	})
}

// On a new stream the server cannot know what the Envoy has from an earlier one.
func TestReconnectedEnvoyGetsNoListenersWhileOneIsHeldBack(t *testing.T) {
	forOne(t, fakeenvoy.SotW, func(r *harness) {
		r.source.publish(small().with(listener("tcp", 7)).holdingBack(t, "http"))
		e := r.connectWith(fakeenvoy.Options{VersionInfo: map[string]string{lds: "an earlier one"}})
		e.Subscribe(lds)
		e.ExpectNone()
		r.source.publish(small().with(listener("tcp", 7)).set(t))
		e.ExpectAck(lds, "http", "tcp")
	})
}

// Its version says that it has all listeners of the set, and so not the one that is held back.
func TestReconnectedEnvoyWithoutTheHeldBackListenerGetsTheOthers(t *testing.T) {
	has := small().with(listener("tcp", 7)).without(listener("http", 1))
	forOne(t, fakeenvoy.SotW, func(r *harness) {
		r.source.publish(has.with(listener("http", 1, "web")).holdingBack(t, "http"))
		e := r.reconnect(has)
		e.ExpectAck(eds, "web")
		e.ExpectAck(rds, "web")
		e.ExpectNone()
		r.source.publish(has.with(listener("http", 1, "web"), listener("tcp", 8)).holdingBack(t, "http"))
		e.ExpectAck(lds, "tcp")
		e.ExpectNone()
	})
}

// After a restart the server does not know what a held-back listener refers to. An Envoy that has the listener keeps all
// of it, whatever else changes.
func TestReconnectedEnvoyKeepsWhatAHeldBackListenerRefersTo(t *testing.T) {
	had := two().with(listener("tcp", 7), routes("api", 1))
	known := resources{}.with(cluster("api", 2), endpoints("api", 2), listener("tcp", 8), routes("api", 1))
	subscribe := func(e *fakeenvoy.Envoy) {
		e.Subscribe(cds)
		e.Subscribe(eds, "api", "web")
		e.Subscribe(lds)
		e.Subscribe(rds, "web", "api")
	}
	t.Run("delta", func(t *testing.T) {
		forOne(t, fakeenvoy.Delta, func(r *harness) {
			r.source.publish(known.holdingBack(t, "http"))
			e := r.connectWith(fakeenvoy.Options{Has: upToDate(t, had)})
			subscribe(e)
			for _, of := range []struct{ url, name string }{{cds, "api"}, {eds, "api"}, {lds, "tcp"}} {
				if got := e.ExpectAck(of.url, of.name); len(got.Removed) > 0 {
					t.Errorf("%s: %q is removed", of.url, got.Removed)
				}
			}
			e.ExpectNone()
		})
	})
	t.Run("state of the world", func(t *testing.T) {
		forOne(t, fakeenvoy.SotW, func(r *harness) {
			r.source.publish(known.holdingBack(t, "http"))
			e := r.connectWith(fakeenvoy.Options{VersionInfo: map[string]string{cds: "an earlier one", lds: "an earlier one", eds: "an earlier one"}})
			subscribe(e)
			e.ExpectAck(eds, "api")
			e.ExpectAck(rds, "api")
			e.ExpectNone()
		})
	})
}

// Endpoints may be held back, too.
func TestHeldBackEndpointsAreKept(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		all := small().collections(t)
		all[xds.Endpoint] = all[xds.Endpoint].Next(nil, []string{"web"}, []string{"web"})
		r.source.publish(xds.NewSet(all))
		e.ExpectNone()
		r.source.publish(small().with(endpoints("web", 2)).set(t))
		e.ExpectAck(eds, "web")
		e.ExpectNone()
	})
}
