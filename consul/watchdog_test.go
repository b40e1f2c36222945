package consul

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/problem"
)

// secondsBetween returns how long before a time a metric is, within a second.
func secondsBetween(metric prometheus.Gauge, later time.Time) float64 {
	return float64(later.Unix()) - testutil.ToFloat64(metric)
}

func TestAFrozenConsulIsNoticedWithinSeconds(t *testing.T) {
	overHTTPAndHTTPS(t, func(t *testing.T, address string) {
		c := newBubbleConsul(stateAt(900, webServices, webAt1))
		metrics := NewMetrics(nil)
		log := &logRecorder{}
		client := c.client(t, address, metrics)
		client.logger = slog.New(log)
		w := NewWatcher(client, WatcherOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := subscribeTo(ctx, t, w, servicesQuery)
		timeUntil(t, func() bool { return w.Ready() == nil })
		if up := testutil.ToFloat64(metrics.up); up != 1 {
			t.Errorf("usher_consul_up is %v while Consul answers", up)
		}
		log.take()

		for range 3 {
			time.Sleep(time.Minute)
			c.freeze(false)
			frozen := time.Now()
			if t1 := timeUntil(t, func() bool { return w.Ready() != nil }); t1 > 10*time.Second {
				t.Errorf("it was noticed after %v, want at most 10 s", t1)
			}
			if err := w.Ready(); !strings.Contains(err.Error(), "consul:850") || !strings.Contains(err.Error(), "no answer within 5s") {
				t.Errorf("the status is %q", err)
			}
			if up := testutil.ToFloat64(metrics.up); up != 0 {
				t.Errorf("usher_consul_up is %v while Consul is frozen", up)
			}
			time.Sleep(10 * time.Second)
			if before := secondsBetween(metrics.lastAnswer, frozen); before < 0 || before > watchdogPause.Seconds() {
				t.Errorf("the last answer came %v s before Consul froze, want at most the time between two queries", before)
			}
			c.thaw()
			if t1 := timeUntil(t, func() bool { return w.Ready() == nil }); t1 > 2*time.Second {
				t.Errorf("that it answers again was noticed after %v", t1)
			}
		}
		lines := 0
		for _, line := range log.take() {
			if strings.HasPrefix(line, "WARN cannot read from consul") || strings.HasPrefix(line, "INFO consul answers such queries again") {
				lines++
			}
		}
		if lines != 6 {
			t.Errorf("the log has %d lines about three outages, want one at the beginning and one at the end of each", lines)
		}
		l.close()
		cancel()
	})
}

// TestQueriesOnDeadConnectionsAreAskedAgain interrupts the network. After that, the
// old connections stay dead.
func TestQueriesOnDeadConnectionsAreAskedAgain(t *testing.T) {
	overHTTPAndHTTPS(t, func(t *testing.T, address string) {
		c := newBubbleConsul(stateAt(900, webServices, webAt1))
		w := NewWatcher(c.client(t, address, nil), WatcherOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := subscribeTo(ctx, t, w, servicesQuery)
		timeUntil(t, func() bool { return w.Ready() == nil && servicesOf(l) == 1 })
		time.Sleep(time.Second)
		c.freeze(true)
		timeUntil(t, func() bool { return w.Ready() != nil })
		c.set(false, stateAt(901, bothServices, webAt2))
		c.thaw()
		if t1 := timeUntil(t, func() bool { return servicesOf(l) == 2 }); t1 > 5*time.Second {
			t.Errorf("what had changed was seen %v after Consul was there again", t1)
		}
		l.close()
		cancel()
	})
}

func TestBeforeTheFirstAnswerConsulIsNotReady(t *testing.T) {
	w := newFakeConsul(t).watcher(t)
	if err := w.Ready(); err == nil {
		t.Error("ready before anything was asked")
	}
	if err := w.watchdog.failure(); !errors.Is(err, errNoAnswerYet) {
		t.Errorf("the watchdog says %v", err)
	}
}

func TestReadySaysThatConsulDoesNotKnowTheToken(t *testing.T) {
	c := newFakeConsul(t)
	c.set("/v1/connect/ca/roots", reply{body: `{"TrustDomain": "x.consul", "Roots": [{"RootCert": "pem"}]}`})
	c.set("/v1/config/proxy-defaults", reply{status: http.StatusForbidden, body: "ACL not found"})
	w := c.watcher(t)
	run(t, w.Run)
	until(t, func() bool {
		err := w.Ready()
		return err != nil && strings.Contains(err.Error(), "ACL not found")
	})
	c.set("/v1/config/proxy-defaults", reply{body: "[]"})
	until(t, func() bool { return w.Ready() == nil })
}

// TestOnlyAnAnswerEndsAnOutage checks that the log claims neither a last valid answer that there never was, nor the end of an
// outage because a query stops or fails in another way.
func TestOnlyAnAnswerEndsAnOutage(t *testing.T) {
	m := &watchManager{failures: map[failureType]*failure{}}
	var log attrRecorder
	var reported []string
	m.client = &Client{targets: newTargets([]*target{{}}), logger: slog.New(&log), report: func(_ string, problems []problem.Problem) {
		reported = nil
		for _, p := range problems {
			reported = append(reported, p.Severity.String()+" "+p.What)
		}
	}}
	refused, away := errors.New("500"), &callError{outcome: outcomeUnreachable, err: errors.New("connection refused")}
	for _, step := range []struct {
		was, is error
		c       failureContext
		want    string // how the only line begins; empty: there is none
		problem string // how the only problem begins; empty: there is none
	}{
		{nil, refused, failureContext{}, "WARN cannot read from consul, and there is no last valid answer", "outage it fails: 500; it has never answered, so Usher serves nothing"},
		{refused, away, failureContext{}, "WARN cannot read from consul, and there is no last valid answer", "outage it does not answer: connection refused; it has never answered"},
		{away, nil, failureContext{stopped: true}, "", ""},
		{nil, away, failureContext{hasAnswer: true}, "WARN cannot read from consul; using the last valid answer", "degraded it does not answer: connection refused; Usher uses the last valid answer"},
		{away, nil, failureContext{hasAnswer: true}, "INFO consul answers such queries again", ""},
	} {
		m.logFailure(heartbeat, step.was, step.is, step.c)
		lines := log.take()
		if len(lines) > 1 || (len(lines) == 1) != (step.want != "") || len(lines) == 1 && !strings.HasPrefix(lines[0], step.want) {
			t.Errorf("from %v to %v (%+v) the log has %q, want %q", step.was, step.is, step.c, lines, step.want)
		}
		if (len(reported) == 1) != (step.problem != "") || len(reported) > 1 || len(reported) == 1 && !strings.HasPrefix(reported[0], step.problem) {
			t.Errorf("from %v to %v (%+v) the problems are %q, want %q", step.was, step.is, step.c, reported, step.problem)
		}
	}
	if len(m.failures) != 0 {
		t.Errorf("failures are left: %v", m.failures)
	}
}
