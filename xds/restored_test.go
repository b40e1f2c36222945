package xds_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

// restoredAt is when the source knew what is restored.
var restoredAt = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// connectAgain connects an Envoy that has resources from an earlier stream.
func (r *harness) connectAgain(has resources) *fakeenvoy.Envoy {
	r.t.Helper()
	o := fakeenvoy.Options{Has: upToDate(r.t, has), VersionInfo: map[string]string{}}
	for typ, c := range has.collections(r.t) {
		if c.Len() > 0 {
			o.VersionInfo[xds.Type(typ).URL()] = c.Version()
		}
	}
	return r.connectWith(o)
}

// reconnect is connectAgain, and subscribes as Envoy does then: at once.
func (r *harness) reconnect(has resources) *fakeenvoy.Envoy {
	r.t.Helper()
	e := r.connectAgain(has)
	e.Subscribe(cds)
	e.Subscribe(eds, has.names(cds)...)
	if names := has.names(lds); len(names) > 0 {
		e.Subscribe(lds)
		e.Subscribe(rds, has.names(rds)...)
	}
	return e
}

// expectAll acknowledges what is sent, and returns the names of the resources and the removed ones by type URL.
func expectAll(e *fakeenvoy.Envoy, types ...string) map[string][]string {
	got := map[string][]string{}
	for range types {
		response := e.Next()
		e.Ack(response)
		got[response.Type] = append(got[response.Type], response.Names...)
		for _, name := range response.Removed {
			got[response.Type] = append(got[response.Type], "-"+name)
		}
	}
	e.ExpectNone()
	return got
}

func TestNewEnvoyGetsARestoredSet(t *testing.T) {
	forBoth(t, func(r *harness) {
		r.source.publish(small().set(t).AsRestored(restoredAt))
		e := r.connect()
		e.Subscribe(cds)
		e.ExpectAck(cds, "web")
		e.Subscribe(eds, "web")
		e.ExpectAck(eds, "web")
		e.Subscribe(lds)
		e.ExpectAck(lds, "http")
		e.Subscribe(rds, "web")
		e.ExpectAck(rds, "web")
		r.source.publish(small().with(routes("web", 2)).set(t).AsRestored(restoredAt)) // such as by the config file
		e.ExpectAck(rds, "web")
		r.source.publish(small().with(routes("web", 3)).set(t))
		e.ExpectAck(rds, "web")
		e.ExpectNone()
		r.wantKept(e, "")
	})
}

// An Envoy that comes from another replica may have something newer. It is sent nothing of a restored set, and nothing is
// removed. When the source answers, it gets exactly what differs then.
func TestEnvoyThatServesIsNotChangedByARestoredSet(t *testing.T) {
	newer := two().with(listener("http", 2, "web"), listener("tcp", 7), routes("web", 2))
	older := small().with(cluster("old", 1), endpoints("old", 1), endpoints("web", 9), secret("key", 1))
	newest := newer.with(cluster("api", 2), routes("web", 3)).without(listener("tcp", 7))
	forBoth(t, func(r *harness) {
		r.source.publish(older.set(t).AsRestored(restoredAt))
		e := r.reconnect(newer)
		e.ExpectNone()
		r.wantKept(e, "cluster endpoint listener route")
		r.source.publish(older.with(listener("http", 5, "web")).set(t).AsRestored(restoredAt))
		e.ExpectNone()
		time.Sleep(time.Hour)
		e.ExpectNone()
		if n := strings.Count(r.log.String(), "envoy keeps what it has"); n != 1 {
			t.Errorf("the log says %d times that the Envoy keeps what it has:\n%s", n, r.log)
		}

		r.source.publish(newest.set(t))
		want := map[string][]string{cds: {"api"}, eds: {"api"}, lds: {"-tcp"}, rds: {"web"}}
		if r.protocol == fakeenvoy.SotW {
			// The server cannot know which endpoints and routes a reconnected Envoy has.
			want = map[string][]string{cds: {"api", "web"}, eds: {"api", "web"}, lds: {"http"}, rds: {"web"}}
		}
		got := expectAll(e, slices.Collect(maps.Keys(want))...)
		if !maps.EqualFunc(got, want, slices.Equal) {
			t.Errorf("the Envoy was sent %v, want %v", got, want)
		}
		r.wantKept(e, "")
	})
}

// While the source answers about endpoints, and not about all else, an Envoy that serves gets endpoints and nothing else.
func TestEnvoyThatServesGetsEndpointsThatAreNotRestored(t *testing.T) {
	newer := two().with(listener("http", 2, "web"), listener("tcp", 7), routes("web", 2))
	half := small().with(cluster("old", 1), endpoints("old", 1), endpoints("web", 9))
	forBoth(t, func(r *harness) {
		r.source.publish(half.set(t).AsRestored(restoredAt).WithOwnEndpoints())
		e := r.reconnect(newer)
		e.ExpectAck(eds, "web")
		r.source.publish(half.with(endpoints("web", 10), routes("web", 3)).without(cluster("old", 1)).set(t).AsRestored(restoredAt).WithOwnEndpoints())
		e.ExpectAck(eds, "web")
		e.ExpectNone()
		r.source.publish(half.with(endpoints("web", 11)).set(t).AsRestored(restoredAt))
		e.ExpectNone()
	})
}

// What another replica has sent is often what is restored, and the newest, too.
func TestEqualRestoredSetSendsNothing(t *testing.T) {
	forBoth(t, func(r *harness) {
		r.source.publish(two().set(t).AsRestored(restoredAt))
		e := r.reconnect(two())
		e.ExpectNone()
		named := "" // the types that the server cannot compare
		if r.protocol == fakeenvoy.SotW {
			named = "endpoint route"
		}
		r.wantKept(e, named)
		if r.protocol == fakeenvoy.Delta && strings.Contains(r.log.String(), "envoy keeps what it has") {
			t.Errorf("nothing differs, and the log says that the Envoy keeps it:\n%s", r.log)
		}
		r.source.publish(two().set(t))
		r.expectNothingNew(e)
	})
}

// expectNothingNew expects what an Envoy gets on a new stream that has everything: in the delta protocol an empty response
// to each wildcard, and in the state of the world the types that the server cannot compare.
func (r *harness) expectNothingNew(e *fakeenvoy.Envoy) {
	r.t.Helper()
	if r.protocol == fakeenvoy.SotW {
		expectAll(e, eds, rds)
	} else if got := expectAll(e, cds, lds); len(got[cds])+len(got[lds]) > 0 {
		r.t.Errorf("the Envoy was sent %v", got)
	}
	r.wantKept(e, "")
}

// The restored set differs from what the Envoy has, and the newest does not.
func TestEnvoyThatHasTheNewestIsSentNothingInTheEnd(t *testing.T) {
	forBoth(t, func(r *harness) {
		r.source.publish(small().with(listener("http", 2, "web")).set(t).AsRestored(restoredAt))
		e := r.reconnect(two())
		e.ExpectNone()
		r.source.publish(two().set(t))
		r.expectNothingNew(e)
	})
}

// An Envoy that has no listener yet serves nothing. It must not wait for the source.
func TestEnvoyThatIsStartingGetsTheRestOfARestoredSet(t *testing.T) {
	for what, has := range map[string]resources{
		"equal clusters": resources{}.with(cluster("web", 1)),
		"other clusters": resources{}.with(cluster("web", 2)),
	} {
		t.Run(what, func(t *testing.T) {
			forBoth(t, func(r *harness) {
				r.source.publish(small().set(t).AsRestored(restoredAt))
				e := r.reconnect(has)
				e.ExpectAck(eds, "web")
				e.ExpectNone()
				e.Subscribe(lds)
				switch {
				case what == "other clusters":
					e.ExpectAck(cds, "web")
					e.ExpectAck(eds, "web")
				case r.protocol == fakeenvoy.Delta:
					e.ExpectAck(cds) // it has all
				}
				e.ExpectAck(lds, "http")
				e.Subscribe(rds, "web")
				e.ExpectAck(rds, "web")
				e.ExpectNone()
				r.wantKept(e, "")
			})
		})
	}
}

// The Envoy has listeners, and the stream has ended before their routes, endpoints and secrets. It must not wait for the source.
func TestEnvoyThatHasOnlyListenersGetsWhatTheyNeed(t *testing.T) {
	restored := small().with(secret("key", 1))
	for what, has := range map[string]resources{
		"equal": resources{}.with(cluster("web", 1), listener("http", 1, "web")),
		"newer": resources{}.with(cluster("web", 2), listener("http", 2, "web", "new")),
	} {
		t.Run(what, func(t *testing.T) {
			forBoth(t, func(r *harness) {
				r.source.publish(restored.set(t).AsRestored(restoredAt))
				e := r.connectAgain(has)
				e.Subscribe(cds)
				e.Subscribe(eds, "web")
				e.Subscribe(sds, "key")
				e.Subscribe(lds)
				e.Subscribe(rds, "web", "new")
				want := map[string][]string{eds: {"web"}, sds: {"key"}, rds: {"web"}}
				if got := expectAll(e, eds, sds, rds); !maps.EqualFunc(got, want, slices.Equal) {
					t.Errorf("the Envoy was sent %v, want %v", got, want)
				}
				if what == "newer" {
					r.wantKept(e, "cluster listener")
				} else {
					r.wantKept(e, "")
				}
				time.Sleep(time.Hour)
				e.ExpectNone()
				if strings.Contains(r.log.String(), "not acknowledged its clusters in time") {
					t.Errorf("the log:\n%s", r.log)
				}
				r.source.publish(has.with(endpoints("web", 1), secret("key", 1), routes("web", 2), routes("new", 1)).set(t))
				got := map[string][]string{}
				for len(got[rds]) == 0 {
					response := e.Next()
					e.Ack(response)
					got[response.Type] = append(got[response.Type], response.Names...)
				}
				if !slices.Equal(got[rds], []string{"new", "web"}) {
					t.Errorf("the Envoy was sent %v in the end, want the routes new and web", got)
				}
				r.wantKept(e, "")
			})
		})
	}
}

// In the state of the world, a version says that an Envoy has something of a type, and not what. In both protocols, it does not
// have what it subscribes to later.
func TestEnvoyGetsTheNamesThatItLacks(t *testing.T) {
	has := two().without(endpoints("api", 1), routes("web", 1)).with(endpoints("web", 2), routes("other", 1))
	forBoth(t, func(r *harness) {
		r.source.publish(two().with(endpoints("shop", 1), routes("more", 1)).set(t).AsRestored(restoredAt))
		e := r.connectAgain(has)
		e.Subscribe(cds)
		e.Subscribe(lds)
		e.Subscribe(rds, "other")
		e.Subscribe(eds, "api", "web")
		if r.protocol == fakeenvoy.Delta {
			e.ExpectAck(eds, "api")
		}
		e.ExpectNone()
		e.Subscribe(eds, "shop")
		e.ExpectAck(eds, "shop")
		e.Subscribe(rds, "web", "more", "unknown")
		e.ExpectAck(rds, "more", "web")
		r.wantKept(e, "endpoint route")
	})
}

// The stream stays open, whatever the Envoy has that is not restored.
func TestEnvoyMayHaveMuchThatIsNotRestored(t *testing.T) {
	had := small()
	var more []string
	has := upToDate(t, had)
	for i := range 20_000 {
		more = append(more, fmt.Sprintf("more-%d", i))
		has[cds][more[i]] = "1"
	}
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		r.source.publish(had.set(t).AsRestored(restoredAt))
		e := r.connectWith(fakeenvoy.Options{Has: has})
		e.Subscribe(lds)
		e.Subscribe(cds)
		e.ExpectNone()
		r.wantKept(e, "cluster")
	})
}

// wantKept wants the server to report the types, in order, of which the Envoy keeps something.
func (r *harness) wantKept(e *fakeenvoy.Envoy, types string) {
	r.t.Helper()
	e.ExpectNone()
	var kept []string
	for _, c := range r.server.Clients() {
		for typ, state := range c.Types {
			if state.Sync == xds.Waiting {
				kept = append(kept, xds.Type(typ).String())
			}
		}
	}
	slices.Sort(kept)
	if got := strings.Join(kept, " "); got != types {
		r.t.Errorf("the Envoy keeps what it has of %q, want %q", got, types)
	}
}
