package xds_test

import (
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

// client returns the only Envoy of the server.
func (r *harness) client() *xds.Client {
	r.t.Helper()
	synctest.Wait()
	clients := r.server.Clients()
	if len(clients) != 1 {
		r.t.Fatalf("%d clients, want 1", len(clients))
	}
	return clients[0]
}

// wantSync compares what the only Envoy has.
func (r *harness) wantSync(when string, want map[xds.Type]xds.Sync) {
	r.t.Helper()
	for t, state := range r.client().Types {
		if state.Sync != want[xds.Type(t)] {
			r.t.Errorf("%s: %s is %d, want %d", when, xds.Type(t), state.Sync, want[xds.Type(t)])
		}
	}
}

func TestAClientIsSyncedStaleOrRefused(t *testing.T) {
	forBoth(t, func(r *harness) {
		t := r.t
		synced := map[xds.Type]xds.Sync{xds.Cluster: xds.Synced, xds.Endpoint: xds.Synced, xds.Listener: xds.Synced, xds.Route: xds.Synced}
		with := func(t xds.Type, sync xds.Sync) map[xds.Type]xds.Sync {
			want := maps.Clone(synced)
			want[t] = sync
			return want
		}
		first := small().set(t)
		e := r.warm(small())
		r.wantSync("warm", synced)
		c := r.client()
		if c.Protocol != string(r.protocol) || c.Node.ID != "envoy" || time.Since(c.Connected) < 0 || c.Connected.IsZero() {
			t.Errorf("the client is %+v", c)
		}
		if got, want := c.Types[xds.Listener].Accepted.Version(), first.Collection(xds.Listener).Version(); got != want {
			t.Errorf("it has the listeners %s, want %s", got, want)
		}

		// It does not answer.
		time.Sleep(time.Second)
		began := time.Now()
		r.source.publish(small().with(cluster("web", 2), listener("http", 2, "web")).set(t))
		clusters := e.Expect(cds, "web")
		time.Sleep(time.Second)
		want := with(xds.Cluster, xds.Stale)
		want[xds.Listener], want[xds.Endpoint] = xds.Pending, xds.Stale // both are sent again after what they belong to
		r.wantSync("without an answer", want)
		stale := r.client().Types[xds.Cluster]
		if next := r.source.newest().Collection(xds.Cluster); stale.Current != next {
			t.Errorf("it is to have %v, want %v", stale.Current, next)
		}
		if !stale.Since.Equal(began) || stale.Accepted.Version() != first.Collection(xds.Cluster).Version() {
			t.Errorf("stale since %s with %s, want since %s with what it had", stale.Since, stale.Accepted.Version(), began)
		}
		e.Ack(clusters)
		e.ExpectAck(eds, "web")

		// It refuses, and stays so while nothing else is sent.
		began = time.Now()
		e.Nack(e.Expect(lds, "http"), "address in use")
		e.ExpectAck(rds, "web")
		time.Sleep(time.Second)
		r.wantSync("after a NACK", with(xds.Listener, xds.Refused))
		refused := r.client().Types[xds.Listener]
		if refused.Rejection.Message != "address in use" || !refused.Since.Equal(began) || refused.Accepted.Version() != first.Collection(xds.Listener).Version() {
			t.Errorf("refused is %+v", refused)
		}
		r.source.publish(small().with(cluster("web", 2), listener("http", 3, "web")).set(t))
		accepted := e.Expect(lds, "http")
		want = with(xds.Listener, xds.Refused)
		want[xds.Route] = xds.Stale
		r.wantSync("while the next update is under way", want)
		e.Ack(accepted)
		e.ExpectAck(rds, "web")
		r.wantSync("after an ACK", synced)
		if again := r.client().Types[xds.Listener]; again.Rejection != nil {
			t.Errorf("an accepted update has the rejection %+v", again.Rejection)
		}

		e.Disconnect()
		synctest.Wait()
		if n := len(r.server.Clients()); n != 0 {
			t.Errorf("%d clients after the end, want none", n)
		}
	})
}

// wantSyncOf compares what the only Envoy has of each listener.
func (r *harness) wantSyncOf(when string, want map[string]xds.Sync) {
	r.t.Helper()
	of := r.client().Types[xds.Listener]
	for name, sync := range want {
		if got := of.SyncOf(name); got != sync {
			r.t.Errorf("%s: %s is %d, want %d", when, name, got, sync)
		}
	}
}

// In the delta protocol, a response about one listener says nothing about another that Envoy has refused.
func TestARefusedListenerStaysRefusedWhileAnotherIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reported := &fakeObserver{now: map[string]string{}}
		r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Observer: reported})
		e := r.warm(two())
		next := two().with(listener("other", 1))
		r.source.publish(next.set(t))
		e.ExpectAck(lds, "other")
		synctest.Wait()
		delivered := len(reported.delivered)

		next = next.with(listener("http", 2, "web"))
		r.source.publish(next.set(t))
		e.Nack(e.Expect(lds, "http"), "http: no")
		e.ExpectAck(rds, "web")
		next = next.with(listener("other", 2)).without(cluster("api", 1), endpoints("api", 1))
		r.source.publish(next.set(t))
		response := e.Expect(lds, "other")
		r.wantSyncOf("sent", map[string]xds.Sync{"http": xds.Refused, "other": xds.Stale})
		e.Ack(response)
		e.ExpectNone() // http, as Envoy has it, may need the cluster
		r.wantSync("the other one is accepted", map[xds.Type]xds.Sync{xds.Cluster: xds.Pending, xds.Endpoint: xds.Synced, xds.Route: xds.Synced, xds.Listener: xds.Refused})
		r.wantSyncOf("accepted", map[string]xds.Sync{"http": xds.Refused, "other": xds.Synced})
		if len(reported.delivered) != delivered || len(reported.now) != 1 || strings.Contains(r.log.String(), "accepts updates again") {
			t.Errorf("%d sets are delivered, want %d; reported is %v", len(reported.delivered), delivered, reported.now)
		}

		next = next.with(listener("http", 3, "web"))
		r.source.publish(next.set(t))
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
		r.expectRemoved(e, cds, "api", "web")
		r.wantSyncOf("all is accepted", map[string]xds.Sync{"http": xds.Synced, "other": xds.Synced})
		synctest.Wait()
		if len(reported.now) != 0 || !strings.Contains(r.log.String(), "accepts updates again") {
			t.Errorf("reported is %v", reported.now)
		}
	})
}

// Envoy refuses several listeners in several responses, and then another one waits for the end of the backoff.
func TestAListenerThatWaitsIsNotAccepted(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		e := r.warm(small())
		next, want := small(), map[string]xds.Sync{"http": xds.Synced}
		for _, name := range []string{"a:1", "b:1", "c:1"} {
			next = next.with(listener(name, 1))
			r.source.publish(next.set(r.t))
			e.Nack(e.Expect(lds, name), "no")
			want[name] = xds.Refused
			r.wantSyncOf(name+" is refused", want)
		}
		next = next.with(listener("http", 2, "web"))
		r.source.publish(next.set(r.t))
		want["http"] = xds.Pending
		r.wantSyncOf("during the backoff", want)
	})
}

// A removed route is not sent to an Envoy, so no ACK says that it is no longer refused.
func TestARefusedRouteIsForgottenWhenItIsRemoved(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().with(routes("web", 2)).set(r.t))
		e.Nack(e.Expect(rds, "web"), "no")
		r.source.publish(small().without(routes("web", 1)).set(r.t))
		r.wantSync("removed", map[xds.Type]xds.Sync{xds.Cluster: xds.Synced, xds.Endpoint: xds.Synced, xds.Listener: xds.Synced, xds.Route: xds.Synced})
	})
}

func TestAClientThatConnectsAgainIsSynced(t *testing.T) {
	forBoth(t, func(r *harness) {
		set := small().set(r.t)
		listeners := set.Collection(xds.Listener)
		r.source.publish(set)
		e := r.connectWith(fakeenvoy.Options{
			Has:         map[string]map[string]string{lds: {"http": listeners.Get("http").Version()}},
			VersionInfo: map[string]string{lds: listeners.Version()},
		})
		e.Subscribe(lds)
		if r.protocol == fakeenvoy.Delta {
			e.ExpectAck(lds) // its initialization waits for an answer
		}
		r.wantSync("with what it had", map[xds.Type]xds.Sync{xds.Listener: xds.Synced})
	})
}

func TestAClientWaitsForItsFirstSet(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.connect()
		e.Subscribe(cds)
		r.wantSync("without a set", map[xds.Type]xds.Sync{xds.Cluster: xds.Pending})
		if c := r.client().Types[xds.Cluster]; c.Accepted != nil {
			t.Errorf("it has accepted %v", c.Accepted)
		}
	})
}

func TestAStreamThatIsNotAuthorizedIsNoClient(t *testing.T) {
	forBoth(t, func(r *harness) {
		r.connect()
		synctest.Wait()
		if n := len(r.server.Clients()); n != 0 {
			t.Errorf("%d clients before the first request, want none", n)
		}
	})
}
