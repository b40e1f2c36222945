package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/retry"
	"github.com/usherproxy/usher/internal/settings"
)

// A gateway is watched because of its Envoy, or because Options.Gateways has it.
func TestAWatchThatEndsIsStartedAgain(t *testing.T) {
	edgeID := gateway.ID{Name: "edge"}
	for _, c := range []struct {
		name      string
		permanent []gateway.ID
		end       error
		reason    string
	}{
		{"of an Envoy's gateway, with an error", nil, errors.New("broken"), "broken"},
		{"of an Envoy's gateway, without a reason", nil, nil, "no reason given"},
		{"of a gateway without an Envoy", []gateway.ID{edgeID}, errors.New("broken"), "broken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *testPlane) {
				var e *testEnvoy
				if c.permanent == nil {
					e = r.connect(edge)
				}
				r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
				r.source.fail <- c.end
				synctest.Wait()
				what := `gateway=edge where="gateway \"edge\"" what="the watch ended: ` + c.reason +
					`; report it if this lasts. Until Usher recovers, the gateway's Envoys keep what they have"`
				r.wantLog("msg=problem " + what + " severity=degraded")
				if n := r.problemCount("edge"); n != 1 {
					t.Errorf("usher_config_problems is %v, want 1", n)
				}
				r.source.wantEvents(t, "watch edge")
				if late := r.connect(edge); late.listener(t, anyAddress) == nil {
					t.Error("an Envoy that connects meanwhile does not get what the first watch read")
				} else {
					late.leave()
					synctest.Wait()
				}

				time.Sleep(retry.LongestPause)
				r.source.wantEvents(t, "watch edge", "watch edge")
				r.put(snapshotWithPort("edge", 9091))
				if e == nil {
					e = r.connect(edge) // it does not wait
				}
				if e.listener(t, anyAddress) == nil || len(e.ended) > 0 {
					t.Error("the Envoy does not get what the second watch read, or its stream has ended")
				}
				r.wantLog("msg=problem "+what+" severity=degraded", `msg="problem over" `+what)
				e.leave()
				synctest.Wait()
			}, func(o *Options) { o.Gateways = c.permanent })
		})
	}
}

// A source that always fails must not cost more with each attempt, nor fill the log.
func TestAWatchThatAlwaysEndsIsNotStartedAgainAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		begin, most := time.Now(), 2*int(time.Hour/retry.LongestPause)+20
		for range most {
			r.source.fail <- errors.New("broken")
		}
		if took := time.Since(begin); took < time.Hour {
			t.Errorf("the gateway was watched %d times in %v, want an hour at least", most, took)
		}
		if n := strings.Count(r.log.String(), "msg=problem"); n != 1 || len(e.ended) > 0 {
			t.Errorf("%d lines in the log, want 1; the Envoy's stream has ended: %v", n, len(e.ended) > 0)
		}
		e.leave()
		synctest.Wait()
	})
}

// A source that fails once a day is no source that always fails.
func TestAWatchThatWasGoodIsStartedAgainSoon(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		for range 20 {
			r.source.fail <- errors.New("broken")
		}
		time.Sleep(24 * time.Hour)
		r.source.fail <- errors.New("broken")
		begin := time.Now()
		r.source.fail <- errors.New("broken") // of the next watch
		if took := time.Since(begin); took > retry.FirstPause {
			t.Errorf("after a good day, it is started again after %v, want at most %v", took, retry.FirstPause)
		}
		e.leave()
		synctest.Wait()
	})
}

func TestTheEndOfAWatchWithItsContextIsNoProblem(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	watchAgain(ctx, slog.New(slog.DiscardHandler), "watch", func() error {
		cancel()
		return ctx.Err()
	}, func(err error) { t.Errorf("it is reported: %v", err) })
}

// endingBalancers ends the watches when and how the test wants it.
type endingBalancers struct {
	*fakeBalancers
	end chan func()
}

func (f endingBalancers) Watch(ctx context.Context, id gateway.ID, service gateway.KubernetesService, put func(*gateway.Balancer)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() { f.fakeBalancers.Watch(ctx, id, service, put) })
	select {
	case <-ctx.Done():
	case end := <-f.end:
		cancel()
		watching.Wait()
		end()
	}
}

func TestAWatchOfABalancerThatEndsIsStartedAgain(t *testing.T) {
	wantBalancerWatchedAgain(t, func() {}, "the watch ended: no reason given; report it if this lasts. ")
}

// wantBalancerWatchedAgain ends the watch of a load balancer. Its listener stays, a problem begins with what, and the
// listener follows the balancer again after a pause.
func wantBalancerWatchedAgain(t *testing.T, end func(), what string) {
	t.Helper()
	inKubernetes(t, func(t *testing.T, r *testPlane, b *fakeBalancers) {
		balancers := endingBalancers{b, make(chan func())}
		r.plane.options.Balancers = balancers
		e := r.connect(edge)
		r.put(snapshot(behindService("edge")))
		b.wantWatched(t, "edge")
		b.put("edge", withMode(settings.Strict))
		strict := e.listener(t, anyAddress).Version()
		balancers.end <- end
		b.wantWatched(t)
		want := `where="Kubernetes Service consul/edge" what="` + what
		if n := r.problemCount("edge"); n != 1 || !strings.Contains(r.log.String(), want) {
			t.Errorf("%v problems, want 1 with %s:\n%s", n, want, &r.log)
		}
		if got := e.listener(t, anyAddress); got == nil || got.Version() != strict {
			t.Error("the listener did not stay")
		}
		time.Sleep(retry.LongestPause)
		b.wantWatched(t, "edge")
		b.put("edge", withMode(settings.Off))
		if got := e.listener(t, anyAddress); got == nil || got.Version() == strict || r.problemCount("edge") != 0 {
			t.Errorf("the listener does not follow after it is over; %v problems", r.problemCount("edge"))
		}
		e.leave()
	})
}
