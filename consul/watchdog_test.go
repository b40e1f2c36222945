package consul

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

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
