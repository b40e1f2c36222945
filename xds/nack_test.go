package xds_test

import (
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

func TestRejectionIsLoggedOnceAndCounted(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(small().with(routes("web", 2)).set(t))
		e.Nack(e.Expect(rds, "web"), "no such cluster")
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
		for _, want := range []string{"envoy=envoy", "type=route", "version=", "nonce=", "resources=[web]", `error="no such cluster"`} {
			if !strings.Contains(lines[0], want) {
				t.Errorf("%s is missing from %s", want, lines[0])
			}
		}
		if got := r.count("usher_xds_nacks_total", "route"); got != 1 {
			t.Errorf("%v NACKs counted, want 1", got)
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
func TestPrivateKeyInARejectionIsNotLogged(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		for i, message := range []string{
			`bad: inline_string: "-----BEGIN EC PRIVATE KEY-----\nSESAME\n-----END EC PRIVATE KEY-----\n" }`,
			"bad: -----BEGIN PRIVATE KEY-----\nSESAME",
		} {
			r.source.publish(small().with(routes("web", 2+i)).set(t))
			e.Nack(e.Expect(rds, "web"), message)
			e.ExpectNone()
		}
		if strings.Contains(r.log.String(), "SESAME") || strings.Count(r.log.String(), "(private key)") != 2 {
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

// fakeRejections stores the reports.
type fakeRejections struct {
	now   map[string]string // messages by type
	total int
}

func (r *fakeRejections) Rejected(n xds.Node, t xds.Type, what xds.Rejection) func() {
	r.total++
	key := n.ID + " " + t.String()
	message := what.Message
	r.now[key] = message
	return func() {
		if r.now[key] == message {
			delete(r.now, key)
		}
	}
}

func TestARejectionIsReportedWhileItLasts(t *testing.T) {
	for _, p := range fakeenvoy.Protocols {
		synctest.Test(t, func(t *testing.T) {
			reported := &fakeRejections{now: map[string]string{}}
			r := newHarnessWith(t, p, xds.Options{Rejections: reported})
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
			if reported.total != 3 {
				t.Errorf("%d rejections were reported, want 3", reported.total)
			}
		})
	}
}
