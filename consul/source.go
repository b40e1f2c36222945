package consul

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// source makes the snapshots of one gateway. It belongs to the goroutine of one
// Watch.
type source struct {
	id            gateway.ID
	client        *Client
	subscription  *subscription
	healthTimeout time.Duration
	// patience is how long something has to be wrong before it becomes a problem.
	answerTimeout   time.Duration
	signer          *signer
	publishSnapshot func(*gateway.Snapshot)

	last *gateway.Snapshot // the one handed on last; nil before the first
	// wasRegistered is true once an instance of the gateway was registered.
	wasRegistered bool
	// answers are the queries for instances, with the targets that they answer
	// for, of the last snapshot; nil unless it was complete in every respect.
	endpointQueries map[query][]string
	// serving keeps the certificate that clients see; nil while nobody needs one.
	certificate *certificate
	certState   *certState // what was known of it when the last snapshot was built
	// own are the instances' own settings, for their memory.
	settings map[instanceID]settings.Layer
	// bad says since when the own settings of an instance are.
	badSince map[instanceID]time.Time
	// local is the local datacenter; empty until it is known.
	datacenter string
	// unsettled says since when the health of a target is being waited for.
	pendingSince map[string]time.Time
	// lacking maps each thing that is wrong to the time when it began; see
	// build.lasted.
	wrongSince map[string]time.Time
	// waiting is since when something else is missing; zero when nothing is.
	incompleteSince time.Time
	logged          string    // what the log was last told to be missing
	builtAt         time.Time // when all facts were last looked at
}

// run builds a snapshot whenever a fact changes, or when it has waited long
// enough for a target's health.
func (s *source) run(ctx context.Context) {
	for ctx.Err() == nil {
		again := s.step(time.Now()) //nolint:contextcheck // a shared query outlives whoever asks first
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
		case <-s.subscription.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// idle is how long a source sleeps when nothing but a fact can wake it.
const noDelay = time.Hour

// step looks at the facts and returns how long run may wait before the next step.
// After a panic it keeps the last snapshot and adds a problem to it.
func (s *source) step(now time.Time) (again time.Duration) {
	err := guard.Run(s.client.logger, "consul snapshot", func() error {
		again = s.update(now)
		return nil
	})
	if err == nil {
		return again
	}
	s.endpointQueries = nil
	broken := problem.Problem{Where: fmt.Sprintf("gateway %q", s.id.String()), What: "the last good configuration stays: " + err.Error()}
	if s.last != nil && !slices.Contains(s.last.Problems, broken) {
		next := *s.last
		next.Problems = append(slices.Clone(next.Problems), broken)
		s.publish(&next)
	}
	return noDelay
}

// look makes a snapshot of the facts and hands it on if it is complete and new.
func (s *source) update(now time.Time) time.Duration {
	news := s.subscription.takeUpdates()
	if next := s.patchEndpoints(news); next != nil {
		if next != s.last {
			s.publish(next)
		}
		return s.mergeDelay(now)
	}
	if left := s.debounce(now, news); left > 0 {
		return left
	}
	s.builtAt = now
	b := s.build(now)
	s.subscription.releaseUnused()
	s.endpointQueries, s.wrongSince = b.patchable(), b.wrong
	if len(b.missing) > 0 {
		return min(b.delay, s.logIncomplete(now, strings.Join(b.missing, "; ")))
	}
	if left := s.waitForHealth(now, b.pending); left > 0 {
		return left
	}
	s.logComplete()
	if s.last == nil || !equalSnapshots(s.last, b.snapshot) {
		s.publish(b.reuse(s.last))
	}
	return min(b.delay, s.mergeDelay(now))
}

// gatherTime is how long first answers are gathered before they are looked at,
// while there are more to come.
const debounceTime = 50 * time.Millisecond

// gather says how long to wait for more first answers. A gateway begins with
// one for each of its services, and one look costs as much as there are
// services. Whatever else is new is looked at right away.
func (s *source) debounce(now time.Time, news map[query]watchResult) time.Duration {
	first := true
	for q := range news {
		first = first && s.subscription.unanswered[q]
		delete(s.subscription.unanswered, q)
	}
	if !first || len(news) == 0 || len(s.subscription.unanswered) == 0 {
		return 0
	}
	return debounceTime - now.Sub(s.builtAt)
}

func (s *source) publish(next *gateway.Snapshot) {
	s.last = next
	s.client.metrics.snapshot()
	s.publishSnapshot(next)
}

// patch gives the last snapshot with other instances, if nothing else has
// changed; the last one itself, if it has them already. It is what happens most,
// and need not cost what a gateway with thousands of services costs.
func (s *source) patchEndpoints(news map[query]watchResult) *gateway.Snapshot {
	if s.endpointQueries == nil || len(news) == 0 || s.certificate.current() != s.certState {
		return nil
	}
	next := *s.last
	for q, f := range news {
		e, _ := f.value.(*gateway.Endpoints)
		targets := s.endpointQueries[q]
		if e == nil || f.err != nil || len(targets) == 0 {
			return nil
		}
		for _, id := range targets {
			next.Endpoints = next.Endpoints.With(id, e)
		}
	}
	if next.Endpoints == s.last.Endpoints {
		return s.last
	}
	return &next
}

// settle says how long to wait for the health of the targets. Were a chain
// handed on before the health of its new target, its routes would lead to a
// cluster that Envoy cannot use yet; but a target that stays silent must not
// hold up everything else.
func (s *source) waitForHealth(now time.Time, targets []string) time.Duration {
	var left time.Duration
	since := make(map[string]time.Time, len(targets))
	for _, t := range targets {
		begin, known := s.pendingSince[t]
		if !known {
			begin = now
		}
		since[t] = begin
		left = max(left, s.healthTimeout-now.Sub(begin))
	}
	s.pendingSince = since
	return left
}

// wait logs what is missing, once it has been missing for a while.
func (s *source) logIncomplete(now time.Time, missing string) time.Duration {
	if s.incompleteSince.IsZero() {
		s.incompleteSince = now
	}
	if left := s.healthTimeout - now.Sub(s.incompleteSince); left > 0 {
		return left
	}
	if missing != s.logged {
		s.logged = missing
		s.client.logger.Warn("the gateway is not known completely; nothing new is handed on",
			"gateway", s.id.String(), "missing", missing)
	}
	return noDelay
}

func (s *source) logComplete() {
	s.incompleteSince = time.Time{}
	if s.logged != "" {
		s.logged = ""
		s.client.logger.Info("the gateway is known completely", "gateway", s.id.String())
	}
}

// same says whether two snapshots of a source say the same. Parts that did not
// change have kept their pointers.
func equalSnapshots(a, b *gateway.Snapshot) bool {
	return a.Datacenter == b.Datacenter && a.DualStack == b.DualStack &&
		a.Entry == b.Entry && a.Mesh == b.Mesh && a.Roots == b.Roots && a.Leaf == b.Leaf && a.DownstreamLeaf == b.DownstreamLeaf &&
		reflect.DeepEqual(a.ProxyDefaults, b.ProxyDefaults) &&
		slices.EqualFunc(a.Services, b.Services, equalServices) &&
		maps.Equal(a.Chains, b.Chains) &&
		a.Endpoints.Equal(b.Endpoints) &&
		maps.Equal(a.MeshGateways, b.MeshGateways) &&
		maps.Equal(a.Peers, b.Peers) &&
		slices.Equal(a.Instances, b.Instances) &&
		slices.Equal(a.Problems, b.Problems)
}

func equalServices(a, b gateway.Service) bool {
	return a.Service == b.Service && a.Port == b.Port && a.Protocol == b.Protocol &&
		a.FromWildcard == b.FromWildcard && slices.Equal(a.Hosts, b.Hosts)
}
