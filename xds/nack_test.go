package xds_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

func TestRejectedUpdateIsNotSentAgainUntilItChanges(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().with(listener("http", 2, "web")).set(t))
		e.Nack(e.Expect(lds, "http"), "no such filter")
		e.ExpectAck(rds, "web")
		e.ExpectNone()
		// Neither another set nor another type's ACK sends it again.
		r.source.publish(small().with(listener("http", 2, "web"), endpoints("web", 2)).set(t))
		e.ExpectAck(eds, "web")
		e.ExpectNone()
		r.source.publish(small().with(listener("http", 3, "web"), endpoints("web", 2)).set(t))
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
		e.ExpectNone()
	})
}

func TestRejectedUpdateIsReverted(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().with(listener("http", 2, "web")).set(t))
		e.Nack(e.Expect(lds, "http"), "no such filter")
		e.ExpectAck(rds, "web")
		r.source.publish(small().set(t))
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
		e.ExpectNone()
	})
}

func TestListenersAreSentWhenEnvoyRejectsTheirClusters(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(two().with(listener("http", 2, "web")).set(t))
		clusters := e.Expect(cds, r.full([]string{"api", "web"}, "api")...)
		e.ExpectNone()
		e.Nack(clusters, "bad cluster")
		e.ExpectAck(lds, "http")
		e.ExpectAck(rds, "web")
		e.ExpectNone()
	})
}

func TestRejectionIsLoggedOnce(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().with(routes("web", 2)).set(t))
		e.Nack(e.Expect(rds, "web"), "no such cluster\nno such filter\n")
		e.ExpectNone()
		var lines []string
		for line := range strings.Lines(r.log.String()) {
			if strings.Contains(line, "rejected") {
				lines = append(lines, line)
			}
		}
		if len(lines) != 1 {
			t.Fatalf("logged %q, want one line", lines)
		}
		for _, want := range []string{"envoy=envoy", "type=route", "version=", "nonce=", "resources=[web]", `error="no such cluster; no such filter"`} {
			if !strings.Contains(lines[0], want) {
				t.Errorf("%s is missing from %s", want, lines[0])
			}
		}
		if got := r.count("usher_xds_acks_total", "listener"); got != 1 {
			t.Errorf("%v ACKs counted, want 1", got)
		}
		if got := r.count("usher_xds_resource_bytes_total", "route"); got == 0 {
			t.Error("no bytes counted")
		}
	})
}

// Envoy may quote a rejected cluster, and the cluster may carry its key.
func TestASecretInARejectionIsNotLogged(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		for i, message := range []string{
			`bad: inline_string: "-----BEGIN EC PRIVATE KEY-----\nSESAME\n-----END EC PRIVATE KEY-----\n" }`,
			"bad: -----BEGIN PRIVATE KEY-----\nSESAME",
			"bad: Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1c2hlciJ9.SESAME",
		} {
			r.source.publish(small().with(routes("web", 2+i)).set(t))
			e.Nack(e.Expect(rds, "web"), message)
			e.ExpectNone()
		}
		if strings.Contains(r.log.String(), "SESAME") || strings.Count(r.log.String(), "[redacted]") != 3 {
			t.Errorf("logged: %s", r.log)
		}
	})
}

// count returns the value of a metric with a label.
func (r *harness) count(name, label string) float64 {
	r.t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && (len(m.GetLabel()) == 0 || m.GetLabel()[0].GetValue() == label) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	r.t.Fatalf("no metric %s of %s", name, label)
	return 0
}

// fakeObserver stores the reports.
type fakeObserver struct {
	now      map[string]string // messages by type
	total    int
	nacks    int
	last     xds.Rejection
	heldBack []string // of the last report
	ended    bool     // it was the last one of its stream
	// delivered are the sets, with the streams that have them.
	delivered []delivered
}

type delivered struct {
	stream uint64
	set    *xds.Set
}

func (r *fakeObserver) Delivered(n *xds.Node, s *xds.Set) {
	r.delivered = append(r.delivered, delivered{n.Stream, s})
}

func (r *fakeObserver) HeldBack(_ *xds.Node, listeners []string, ended bool) {
	r.heldBack, r.ended = listeners, ended
}

func (r *fakeObserver) Rejected(n xds.Node, t xds.Type, what xds.Rejection) func() {
	r.total++
	if !what.Repeated {
		r.nacks++
	}
	number, key := r.total, n.ID+" "+t.String()
	r.last = what
	r.now[key] = what.Message
	return func() {
		if r.total == number { // there is no later one
			delete(r.now, key)
		}
	}
}

func TestARejectionIsReportedWhileItLasts(t *testing.T) {
	for _, p := range fakeenvoy.Protocols {
		synctest.Test(t, func(t *testing.T) {
			reported := &fakeObserver{now: map[string]string{}}
			r := newHarnessWith(t, p, xds.Options{Observer: reported})
			want := func(now map[string]string) {
				t.Helper()
				synctest.Wait()
				if diff := cmp.Diff(now, reported.now); diff != "" {
					t.Fatalf("%s: wanted -, reported +:\n%s", p, diff)
				}
			}
			e := r.warm(small())
			want(map[string]string{})
			r.source.publish(small().with(routes("web", 2)).set(t))
			e.Nack(e.Expect(rds, "web"), "first")
			want(map[string]string{"envoy route": "first"})
			r.source.publish(small().with(routes("web", 3)).set(t))
			e.Nack(e.Expect(rds, "web"), "second")
			want(map[string]string{"envoy route": "second"})
			r.source.publish(small().with(routes("web", 4)).set(t))
			e.ExpectAck(rds, "web")
			want(map[string]string{})
			r.source.publish(small().with(routes("web", 5)).set(t))
			e.Nack(e.Expect(rds, "web"), "third")
			want(map[string]string{"envoy route": "third"})
			e.Disconnect()
			want(map[string]string{})
			if reported.total != 3 || reported.nacks != 3 {
				t.Errorf("%d rejections were reported, and %d of them as new, want 3", reported.total, reported.nacks)
			}
		})
	}
}

// An Envoy keeps the version of a listener that it has accepted; one that it has never accepted is missing.
func TestARejectionSaysWhatTheEnvoyLacks(t *testing.T) {
	for _, p := range fakeenvoy.Protocols {
		synctest.Test(t, func(t *testing.T) {
			reported := &fakeObserver{now: map[string]string{}}
			r := newHarnessWith(t, p, xds.Options{Observer: reported})
			want := func(names []string, message string) {
				t.Helper()
				synctest.Wait()
				if !slices.Equal(reported.last.Missing, names) || reported.last.Message != message || reported.last.AcceptedAt.IsZero() {
					t.Errorf("%s: reported %+v, want that %q is missing, because of %q", p, reported.last, names, message)
				}
			}
			e := r.warm(small())
			r.source.publish(small().with(listener("http", 2, "web")).set(t))
			e.Nack(e.Expect(lds, "http"), "of http")
			e.ExpectAck(rds, "web")
			want(nil, "of http")
			r.source.publish(small().with(listener("http", 3, "web"), listener("a", 1), listener("b", 1)).set(t))
			e.Nack(e.Expect(lds, "a", "b", "http"), "port of b in use")
			e.ExpectAck(rds, "web")
			want([]string{"b"}, "port of b in use")
			r.source.publish(small().with(listener("http", 3, "web"), listener("a", 1), listener("b", 2)).set(t))
			e.Nack(e.Expect(lds, r.full([]string{"a", "b", "http"}, "b")...), "still in use")
			want([]string{"b"}, "still in use")
			r.source.publish(small().with(listener("http", 3, "web"), listener("a", 1), listener("b", 3)).set(t))
			e.ExpectAck(lds, r.full([]string{"a", "b", "http"}, "b")...)
			r.source.publish(small().with(listener("http", 3, "web"), listener("a", 1), listener("b", 4)).set(t))
			e.Nack(e.Expect(lds, r.full([]string{"a", "b", "http"}, "b")...), "b again")
			want(nil, "b again")
		})
	}
}

// In the delta protocol, a response about other listeners does not send a rejected one again.
func TestAnEnvoyLacksARejectedListenerUntilItIsSentAgainOrRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reported := &fakeObserver{now: map[string]string{}}
		r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Observer: reported})
		want := func(now map[string]string, names ...string) {
			t.Helper()
			synctest.Wait()
			if diff := cmp.Diff(now, reported.now); diff != "" {
				t.Errorf("wanted -, reported +:\n%s", diff)
			}
			if !slices.Equal(reported.last.Missing, names) {
				t.Errorf("%q is reported as missing, want %q", reported.last.Missing, names)
			}
		}
		e := r.warm(small())
		all := small().with(listener("a", 1), listener("b", 1))
		r.source.publish(all.set(t))
		e.Nack(e.Expect(lds, "a", "b"), "a and b are bad")
		first := map[string]string{"envoy listener": "a and b are bad"}
		want(first, "a", "b")

		all = all.with(listener("c", 1))
		r.source.publish(all.set(t))
		e.ExpectAck(lds, "c")
		want(first, "a", "b")

		all = all.with(listener("c", 2))
		r.source.publish(all.set(t))
		e.Nack(e.Expect(lds, "c"), "c is bad")
		second := map[string]string{"envoy listener": "c is bad"}
		want(second, "a", "b")

		all = all.with(listener("b", 2))
		r.source.publish(all.set(t))
		e.ExpectAck(lds, "b")
		want(second, "a")

		r.source.publish(all.without(listener("a", 1)).set(t))
		r.expectRemoved(e, lds, "a")
		want(second)

		r.source.publish(all.without(listener("a", 1)).with(listener("c", 3)).set(t))
		e.ExpectAck(lds, "c")
		want(map[string]string{})
		if reported.nacks != 2 {
			t.Errorf("%d rejections were reported as new, want 2", reported.nacks)
		}
	})
}

// The latest rejection is over before an earlier one.
func TestTheEarlierRejectionIsReportedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reported := &fakeObserver{now: map[string]string{}}
		r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Observer: reported})
		e := r.warm(small())
		all := small().with(listener("a", 1))
		r.source.publish(all.set(t))
		e.Nack(e.Expect(lds, "a"), "first")
		all = all.with(listener("b", 1))
		r.source.publish(all.set(t))
		e.Nack(e.Expect(lds, "b"), "second")
		synctest.Wait()
		if got := reported.last; !slices.Equal(got.Resources, []string{"a", "b"}) || got.Message != "second" {
			t.Errorf("two are refused: %+v", got)
		}
		all = all.with(listener("b", 2))
		r.source.publish(all.set(t))
		e.ExpectAck(lds, "b")
		synctest.Wait()
		if got := reported.last; !slices.Equal(got.Resources, []string{"a"}) || got.Message != "first" || !got.Repeated || reported.nacks != 2 {
			t.Errorf("one is still refused: %+v, %d NACKs", got, reported.nacks)
		}
	})
}

// Envoy cuts off a long message, so a name that is not in it may be refused, too.
func TestAMessageThatIsCutOffNamesNotAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reported := &fakeObserver{now: map[string]string{}}
		r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Observer: reported})
		e := r.warm(small())
		r.source.publish(small().with(listener("a:1", 1), listener("b:1", 1)).set(t))
		e.Nack(e.Expect(lds, "a:1", "b:1"), "a:1 is b...(truncated)")
		synctest.Wait()
		if got := reported.last.Resources; !slices.Equal(got, []string{"a:1", "b:1"}) {
			t.Errorf("refused are %q, want both", got)
		}
	})
}

// The message names port 8080, and so not port 80.
func TestANameThatBeginsAnotherIsNotTheRejectedOne(t *testing.T) {
	for message, want := range map[string]string{
		"http:0.0.0.0:8080: bad":                   "http:0.0.0.0:8080",
		"http:0.0.0.0:8080 is not http:0.0.0.0:80": "http:0.0.0.0:80 http:0.0.0.0:8080",
		"of http:0.0.0.0:80":                       "http:0.0.0.0:80",
	} {
		synctest.Test(t, func(t *testing.T) {
			reported := &fakeObserver{now: map[string]string{}}
			r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Observer: reported})
			e := r.warm(small())
			r.source.publish(small().with(listener("http:0.0.0.0:80", 1), listener("http:0.0.0.0:8080", 1)).set(t))
			e.Nack(e.Expect(lds, "http:0.0.0.0:80", "http:0.0.0.0:8080"), message)
			synctest.Wait()
			if got := strings.Join(reported.last.Missing, " "); got != want {
				t.Errorf("%q: %q is reported as missing, want %q", message, got, want)
			}
		})
	}
}

func TestEnvoysThatLackAHeldBackListenerAreReported(t *testing.T) {
	for _, p := range fakeenvoy.Protocols {
		synctest.Test(t, func(t *testing.T) {
			reported := &fakeObserver{now: map[string]string{}}
			r := newHarnessWith(t, p, xds.Options{Observer: reported})
			want := func(ended bool, names ...string) {
				t.Helper()
				synctest.Wait()
				if !slices.Equal(reported.heldBack, names) || reported.ended != ended {
					t.Errorf("%s: %q is reported (ended: %v), want %q", p, reported.heldBack, reported.ended, names)
				}
			}
			had := r.warm(small())
			r.source.publish(small().holdingBack(t, "http"))
			had.ExpectNone()
			want(false) // it keeps the one that it has
			had.Disconnect()

			e := r.connect()
			e.Subscribe(lds)
			e.ExpectAck(lds)
			want(false, "http")
			r.source.publish(small().set(t))
			e.ExpectAck(lds, "http")
			want(false)
			r.source.publish(small().with(listener("tcp", 7)).holdingBack(t, "tcp"))
			want(false, "tcp")
			e.Disconnect()
			want(true)
		})
	}
}

// An Envoy that comes from another Usher may have the listener, and lacks nothing then.
func TestAReconnectedEnvoyKeepsAHeldBackListener(t *testing.T) {
	for p, had := range map[fakeenvoy.Protocol]fakeenvoy.Options{
		fakeenvoy.SotW:  {VersionInfo: map[string]string{lds: "an earlier one"}},
		fakeenvoy.Delta: {Has: map[string]map[string]string{lds: {"http": "an earlier one"}}},
	} {
		synctest.Test(t, func(t *testing.T) {
			reported := &fakeObserver{now: map[string]string{}}
			r := newHarnessWith(t, p, xds.Options{Observer: reported})
			r.source.publish(small().with(listener("tcp", 7)).holdingBack(t, "http", "other"))
			e := r.connectWith(had)
			e.Subscribe(lds)
			synctest.Wait()
			want := []string{"other"}
			if p == fakeenvoy.SotW {
				want = nil // what it has is not known
			}
			if !slices.Equal(reported.heldBack, want) {
				t.Errorf("%s: %q is reported, want %q", p, reported.heldBack, want)
			}
		})
	}
}
