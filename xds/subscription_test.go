package xds_test

import (
	"testing"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

func TestNothingIsSentBeforeTheSetIsKnown(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.connect()
		e.Subscribe(cds)
		e.Subscribe(lds)
		e.ExpectNone()
		r.source.publish(xds.NewSet([xds.NumTypes]*xds.Collection{}))
		e.ExpectNone()
		r.source.publish(resources{}.set(t))
		e.ExpectAck(cds)
		e.ExpectAck(lds)
		e.ExpectNone()
	})
}

func TestTypeThatIsNotKnownYetIsNotAnswered(t *testing.T) {
	forBoth(t, func(r *harness) {
		all := small().collections(t)
		listeners := all[xds.Listener]
		all[xds.Listener] = nil
		r.source.publish(xds.NewSet(all))
		e := r.connect()
		e.Subscribe(lds)
		e.Subscribe(cds)
		e.ExpectAck(cds, "web")
		e.Subscribe(eds, "web")
		e.ExpectAck(eds, "web")
		e.ExpectNone()
		all[xds.Listener] = listeners
		r.source.publish(xds.NewSet(all))
		e.ExpectAck(lds, "http")
	})
}

func TestUnknownNameGetsNoAnswer(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		e.Subscribe(eds, "api")
		e.Subscribe(rds, "api")
		e.Subscribe(sds, "api")
		e.ExpectNone()
		r.source.publish(small().with(endpoints("api", 1)).set(t))
		e.ExpectAck(eds, "api")
		e.ExpectNone()
	})
}

func TestResourceSubscribedToByNameIsNotReportedAsRemoved(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().without(routes("web", 1)).set(t))
		e.ExpectNone()
		r.source.publish(small().set(t))
		e.ExpectAck(rds, "web")
	})
}

func TestEmptyListOfEndpointsIsNoWildcard(t *testing.T) {
	forBoth(t, func(r *harness) {
		r.source.publish(small().set(t))
		e := r.connect()
		e.Subscribe(eds)
		e.Subscribe(rds)
		e.Subscribe(sds)
		e.ExpectNone()
	})
}

func TestTypeThatIsNotServedIsNotAnswered(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		e.Subscribe("type.googleapis.com/envoy.service.runtime.v3.Runtime")
		e.ExpectNone()
		e.Subscribe(eds, "nothing")
		e.Subscribe("type.googleapis.com/envoy.service.runtime.v3.Runtime", "more")
		e.ExpectNone()
	})
}

func TestUnsubscribedResourceIsNotSent(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(two())
		e.Unsubscribe(eds, "api")
		e.ExpectNone()
		r.source.publish(two().with(endpoints("api", 2), endpoints("web", 2)).set(t))
		e.ExpectAck(eds, "web")
		e.ExpectNone()
		e.Subscribe(eds, "api")
		e.ExpectAck(eds, "api")
	})
}

func TestResourceUnsubscribedBeforeItsACKIsSentWhenSubscribedAgain(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(two())
		r.source.publish(two().with(endpoints("api", 2)).set(t))
		crossing := e.Expect(eds, "api")
		e.Unsubscribe(eds, "api")
		e.Ack(crossing)
		e.ExpectNone()
		e.Subscribe(eds, "api")
		e.ExpectAck(eds, "api")
		e.ExpectNone()
	})
}

func TestNameSubscribedToAgainIsSentAgain(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		e := r.warm(two())
		e.Subscribe(eds, "api")
		e.ExpectAck(eds, "api")
		e.Subscribe(cds, "api")
		e.ExpectAck(cds, "api")
		e.ExpectAck(eds, "api")
		e.ExpectNone()
	})
}

func TestNamesBesideTheWildcardAreSentWhenSubscribedAndUnsubscribed(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		e := r.warm(two())
		for _, change := range []func(string, ...string){e.Subscribe, e.Unsubscribe} {
			change(cds, "api", "gone")
			e.ExpectAck(cds, "api")
			e.ExpectAck(eds, "api")
			r.expectRemoved(e, cds, "gone")
			e.ExpectNone()
		}
	})
}

func TestWildcardIsUnsubscribedAndSubscribedAgain(t *testing.T) {
	forBoth(t, func(r *harness) {
		r.source.publish(resources{}.with(secret("a", 1), secret("b", 1)).set(t))
		e := r.connect()
		e.Subscribe(sds, "*")
		e.ExpectAck(sds, "a", "b")
		e.Unsubscribe(sds, "*")
		e.ExpectNone()
		e.Subscribe(sds, "*")
		e.ExpectAck(sds, "a", "b")
		e.ExpectNone()
	})
}

func TestEnvoyThatIsUpToDateIsSentNothing(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		r.source.publish(small().set(t))
		e := r.connectWith(fakeenvoy.Options{Has: upToDate(t, small())})
		e.Subscribe(cds)
		e.ExpectAck(cds)
		e.Subscribe(eds, "web")
		e.Subscribe(lds)
		e.ExpectAck(lds)
		e.Subscribe(rds, "web")
		e.ExpectNone()
		r.source.publish(small().with(endpoints("web", 2)).set(t))
		e.ExpectAck(eds, "web")
		e.ExpectNone()
	})
}

func TestReconnectedEnvoyIsSentWhatChanged(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		has := upToDate(t, two().with(listener("tcp", 9)))
		r.source.publish(small().with(cluster("new", 1), endpoints("web", 2)).set(t))
		e := r.connectWith(fakeenvoy.Options{Has: has})
		e.Subscribe(cds)
		e.Subscribe(eds, "web", "api")
		e.Subscribe(lds)
		e.Subscribe(rds, "web")
		e.ExpectAck(cds, "new")
		e.ExpectAck(eds, "web")
		r.expectRemoved(e, lds, "tcp")
		r.expectRemoved(e, cds, "api")
		e.ExpectNone()
	})
}

func TestReconnectedEnvoyThatIsUpToDateIsNotSentItsListeners(t *testing.T) {
	forOne(t, fakeenvoy.SotW, func(r *harness) {
		r.source.publish(two().set(t))
		first := r.connect()
		first.Subscribe(cds)
		had := first.ExpectAck(cds, "api", "web").Version
		first.Disconnect()

		e := r.connectWith(fakeenvoy.Options{VersionInfo: map[string]string{cds: had, lds: "something older"}})
		e.Subscribe(cds)
		e.ExpectNone()
		e.Subscribe(eds, "api", "web")
		e.ExpectAck(eds, "api", "web")
		e.Subscribe(lds)
		e.ExpectAck(lds, "http")
		r.source.publish(two().with(cluster("web", 2)).set(t))
		e.ExpectAck(cds, "api", "web")
		e.ExpectAck(eds, "web")
		e.ExpectNone()
	})
}
