package consul

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/problem"
)

// source publishes the snapshots of one gateway. It belongs to the goroutine of one
// Watch. Whenever a result changes, it compiles a snapshot from all results and its
// state. Then it subscribes to the queries that the snapshot needs, and starts or stops
// the certificate for clients.
type source struct {
	id              gateway.ID
	client          *Client
	subscription    *subscription
	healthTimeout   time.Duration // see WatcherOptions
	answerTimeout   time.Duration // see WatcherOptions
	signer          *signer
	publishSnapshot func(*gateway.Snapshot)

	state      state
	compiledAt time.Time
	// certificate is the one for clients; nil if the gateway needs none.
	certificate *certificate
	logged      string // what the log last named as missing
}

// run compiles a snapshot whenever a result changes, and when a time limit of the last
// one ends.
func (s *source) run(ctx context.Context) {
	for ctx.Err() == nil {
		delay := s.step(time.Now()) //nolint:contextcheck // a shared watch outlives its first subscriber
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
		case <-s.subscription.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// noDelay is how long a source sleeps if no time limit runs.
const noDelay = time.Hour

// step takes the updates and returns how long run may wait before the next step.
// After a panic it keeps the last snapshot and adds a problem to it.
func (s *source) step(now time.Time) (delay time.Duration) {
	err := guard.Run(s.client.logger, "consul snapshot", func() error {
		delay = s.update(now)
		return nil
	})
	if err == nil {
		return delay
	}
	s.state.endpointQueries = nil
	panicked := problem.Problem{
		Where: fmt.Sprintf("gateway %q", s.id.String()),
		What:  "the last good configuration stays in use: " + err.Error(),
	}
	if last := s.state.last; last != nil && !slices.Contains(last.Problems, panicked) {
		next := *last
		next.Problems = append(slices.Clone(last.Problems), panicked)
		s.publish(&next)
	}
	return noDelay
}

// update publishes a snapshot if there is a new one that is complete.
func (s *source) update(now time.Time) (delay time.Duration) {
	updates, onlyFirst := s.subscription.takeUpdates()
	if next := s.patchEndpoints(updates); next != nil {
		s.publish(next)
		return noDelay
	}
	// A gateway begins with a first answer for each of its services, and compiling takes
	// the longer the more services there are. So wait for more of them.
	if onlyFirst && len(updates) > 0 && len(s.subscription.unanswered) > 0 {
		if left := debounceTime - now.Sub(s.compiledAt); left > 0 {
			return left
		}
	}
	s.compiledAt = now
	c := s.compile(now)
	s.state = c.next
	if len(c.missing) > 0 {
		s.logMissing(c)
		return c.delay
	}
	s.setCertificate(c.certRequest)
	if c.waits {
		return c.delay
	}
	if s.logged != "" {
		s.logged = ""
		s.client.logger.Info("the snapshot is complete again", "gateway", s.id.String())
	}
	s.publish(c.snapshot)
	return c.delay
}

// debounceTime is how long first answers are collected while others are outstanding.
const debounceTime = 50 * time.Millisecond

// compile compiles a snapshot and subscribes to the queries that it needs. If another
// gateway has a result for a new one of these already, it compiles again.
func (s *source) compile(now time.Time) *compilation {
	for {
		c := compile(input{
			id: s.id, now: now, results: s.subscription.results, certificate: s.certificate.current(),
			grpcAddress: s.client.grpcAddress, healthTimeout: s.healthTimeout, answerTimeout: s.answerTimeout,
		}, s.state)
		if !s.subscription.set(c.queries, c.unanswered) {
			return c
		}
	}
}

// publish publishes a snapshot unless it is the last one.
func (s *source) publish(next *gateway.Snapshot) {
	if next == s.state.last {
		return
	}
	s.state.last = next
	s.client.metrics.snapshots.Inc()
	s.publishSnapshot(next)
}

// patchEndpoints returns the last snapshot with other endpoints, if nothing else has
// changed, else nil. This is the most frequent change, and takes the same time for a
// gateway with few and with thousands of services.
func (s *source) patchEndpoints(updates map[query]watchResult) *gateway.Snapshot {
	if s.state.endpointQueries == nil || len(updates) == 0 || s.certificate.current() != s.state.certificate {
		return nil
	}
	next := *s.state.last
	for q, r := range updates {
		e, _ := r.value.(*gateway.Endpoints)
		targets := s.state.endpointQueries[q]
		if e == nil || r.err != nil || len(targets) == 0 {
			return nil
		}
		for _, id := range targets {
			next.Endpoints = next.Endpoints.With(id, e)
		}
	}
	if next.Endpoints == s.state.last.Endpoints {
		return s.state.last
	}
	return &next
}

// logMissing logs what a snapshot lacks, if something has been missing for a while.
func (s *source) logMissing(c *compilation) {
	missing := strings.Join(c.missing, "; ")
	if c.incompleteLong && missing != s.logged {
		s.logged = missing
		s.client.logger.Warn("cannot build a complete snapshot; keeping the last one",
			"gateway", s.id.String(), "missing", missing)
	}
}

// setCertificate starts, changes or stops the certificate for clients; nil means none.
func (s *source) setCertificate(r *certRequest) {
	if r == nil {
		s.stopCertificate()
		return
	}
	if s.certificate == nil {
		s.signer.acquire()
		s.certificate = (&certificate{
			id: s.id, sign: s.signer.sign, client: s.client, notify: s.subscription.notify,
		}).start()
	}
	s.certificate.setRequest(*r)
}

func (s *source) stopCertificate() {
	if s.certificate == nil {
		return
	}
	s.certificate.close()
	s.signer.release()
	s.certificate = nil
}
