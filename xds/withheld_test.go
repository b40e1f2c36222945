package xds_test

import (
	"testing"

	"github.com/usherproxy/usher/internal/xdstest"
	"github.com/usherproxy/usher/xds"
)

// withholding gives a world's set in which some listeners cannot be built.
func (w world) withholding(t testing.TB, listeners ...string) *xds.Set {
	t.Helper()
	all := w.collections(t)
	all[xds.Listener] = all[xds.Listener].Next(nil, listeners, listeners)
	return xds.NewSet(all)
}

func TestWithheldListenerIsKept(t *testing.T) {
	forBoth(t, func(r *rig) {
		e := r.warm(small())
		r.supplier.publish(small().withholding(t, "http"))
		e.ExpectNone()
		// Another listener comes: the first must still be there.
		r.supplier.publish(small().with(listener("tcp", 7)).withholding(t, "http"))
		e.ExpectAck(lds, r.full([]string{"http", "tcp"}, "tcp")...)
		e.ExpectNone()
		r.supplier.publish(small().with(listener("tcp", 7), listener("http", 2, "web")).set(t))
		e.ExpectAck(lds, r.full([]string{"http", "tcp"}, "http")...)
		e.ExpectAck(rds, "web")
		e.ExpectNone()
	})
}

func TestClustersOfAWithheldListenerAreKept(t *testing.T) {
	forBoth(t, func(r *rig) {
		e := r.warm(two())
		r.supplier.publish(small().withholding(t, "http"))
		e.ExpectNone()
		r.supplier.publish(small().set(t))
		r.expectRemoved(e, cds, "api", "web")
	})
}

func TestWithheldListenerIsGoneAfterAll(t *testing.T) {
	forBoth(t, func(r *rig) {
		e := r.warm(small())
		r.supplier.publish(small().withholding(t, "http"))
		e.ExpectNone()
		r.supplier.publish(small().without(listener("http", 1)).set(t))
		r.expectRemoved(e, lds, "http")
	})
}

func TestNewEnvoyGetsTheListenersThatAreNotWithheld(t *testing.T) {
	forBoth(t, func(r *rig) {
		r.supplier.publish(small().with(listener("tcp", 7)).withholding(t, "http"))
		e := r.connect()
		e.Subscribe(lds)
		e.ExpectAck(lds, "tcp")
		e.ExpectNone()
	})
}

// On a new stream the server cannot know what the Envoy was given before.
func TestListenersOfAReconnectedEnvoyAreNotAnsweredWhileOneIsWithheld(t *testing.T) {
	forOne(t, xdstest.SotW, func(r *rig) {
		r.supplier.publish(small().with(listener("tcp", 7)).withholding(t, "http"))
		e := r.connectWith(xdstest.Options{Claims: map[string]string{lds: "an earlier one"}})
		e.Subscribe(lds)
		e.ExpectNone()
		r.supplier.publish(small().with(listener("tcp", 7)).set(t))
		e.ExpectAck(lds, "http", "tcp")
	})
}
