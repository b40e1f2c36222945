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

// gatewayWatch publishes the snapshots of one gateway. It belongs to the goroutine of one Watch. If nothing but endpoints
// has changed, it puts these into the last snapshot. After any other change it builds a snapshot from all results and
// its state. Then it subscribes to the queries that the snapshot needs, and starts or stops the certificate for clients.
type gatewayWatch struct {
	id              gateway.ID
	client          *Client
	subscription    *subscription
	options         WatcherOptions
	signer          *signer
	publishSnapshot func(*gateway.Snapshot)
	store           *stateStore   // nil without a state directory
	saved           *gateway.Leaf // the certificate for clients that the store had; nil if there is none

	state       state
	builtAt     time.Time
	certificate *certificate // the one for clients; nil if the gateway needs none
	logged      string       // what the log last named as missing
}

// run calls step whenever a result changes, and when a deadline passes.
func (w *gatewayWatch) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := w.step(time.Now()) //nolint:contextcheck // a shared watch outlives its first subscriber
		select {
		case <-ctx.Done():
		case <-w.subscription.wake:
		case <-time.After(wait):
		}
	}
}

const (
	noDeadline   = time.Hour             // the time until the next step if there is no deadline
	debounceTime = 50 * time.Millisecond // how long first results are collected while others are outstanding
)

// step takes the updates and returns how long run may wait before the next step. After a panic it keeps the last
// snapshot and adds a problem to it.
func (w *gatewayWatch) step(now time.Time) (wait time.Duration) {
	err := guard.Run(w.client.logger, "consul snapshot", func() error {
		wait = w.apply(now)
		return nil
	})
	if err == nil {
		return wait
	}
	w.state.endpointQueries = nil
	panicked := problem.Problem{
		Where: fmt.Sprintf("gateway %q", w.id.String()),
		What:  "the last valid configuration stays in use; please report this: " + err.Error(),
	}
	if last := w.state.last; last != nil && !slices.Contains(last.Problems, panicked) {
		next := *last
		next.Problems = append(slices.Clone(last.Problems), panicked)
		w.publish(&next)
	}
	return noDeadline
}

// apply publishes a snapshot if the updates make a new one that is complete.
func (w *gatewayWatch) apply(now time.Time) (wait time.Duration) {
	updates, onlyFirst := w.subscription.takeUpdates()
	if next := w.patchEndpoints(updates, now); next != nil {
		w.publish(next)
		w.store.update(w.id, updates)
		return w.state.untilNext(now, noDeadline)
	}
	// A gateway begins with a first result for each of its services, and a build takes the longer the more services
	// there are. So wait for more of them.
	if onlyFirst && len(updates) > 0 && w.subscription.lacksResults() {
		if left := debounceTime - now.Sub(w.builtAt); left > 0 {
			return left
		}
	}
	w.builtAt = now
	b := w.build(now)
	w.state = b.next
	if len(b.missing) > 0 {
		w.logMissing(b)
		w.publishProblems(b)
		return b.next.untilNext(now, b.rebuildAfter)
	}
	w.setCertificate(b.certRequest)
	if b.waits {
		return b.rebuildAfter
	}
	if w.logged != "" {
		w.logged = ""
		w.client.logger.Info("the gateway's configuration in consul is complete again", "gateway", w.id.String())
	}
	w.publish(b.snapshot)
	w.save(b)
	return b.next.untilNext(now, b.rebuildAfter)
}

// publishProblems publishes the last snapshot with the problems of a build that has lacked something for a while: a
// certificate of it may expire meanwhile.
func (w *gatewayWatch) publishProblems(b *snapshotBuild) {
	last := w.state.last
	if last == nil || !b.missingForLong || slices.Equal(last.Problems, b.snapshot.Problems) {
		return
	}
	next := *last
	next.Problems = b.snapshot.Problems
	w.publish(&next)
}

// save gives the store what a complete snapshot was built from. If Consul says that the gateway is not registered, there
// is nothing to save.
func (w *gatewayWatch) save(b *snapshotBuild) {
	if b.unregistered {
		w.store.replace(w.id, nil, nil, nil)
		return
	}
	if b.keepsLast {
		return // a restart with the results would lose the last pair
	}
	w.store.replace(w.id, w.subscription.results, w.certificate.current(), b.snapshot)
}

// build builds a snapshot and subscribes to the queries that it needs. If another gateway has a result for a new one of
// these already, it builds again.
func (w *gatewayWatch) build(now time.Time) *snapshotBuild {
	results, certificate := w.subscription.results, w.certificate.current()
	in := input{id: w.id, now: now, results: results, certificate: certificate, options: w.options, keyless: w.store.isKeyless()}
	for {
		b := buildSnapshot(in, w.state)
		if !w.subscription.set(b.queries, b.unanswered) {
			return b
		}
	}
}

// publish publishes a snapshot unless it is the last one.
func (w *gatewayWatch) publish(next *gateway.Snapshot) {
	if next == w.state.last {
		return
	}
	if last := w.state.last; last == nil || leafOf(last) != leafOf(next) {
		w.client.metrics.setCertificate(w.id, leafOf(next))
	}
	w.logRestored(next)
	w.state.last = next
	w.client.metrics.snapshots.Inc()
	w.client.metrics.setRestored(w.id, next)
	w.publishSnapshot(next)
}

// logRestored logs when the gateway begins to be served from the state directory, and when it no longer is.
func (w *gatewayWatch) logRestored(next *gateway.Snapshot) {
	was := w.state.last != nil && !w.state.last.Restored.IsZero()
	switch is := !next.Restored.IsZero(); {
	case is && !was:
		w.client.logger.Warn("consul does not answer everything yet; the gateway is served with answers that were saved",
			"gateway", w.id.String(), "saved", next.Restored.UTC(), "consul", w.client.Address())
	case was && !is:
		w.client.logger.Info("consul has answered everything; nothing of the gateway is from the state directory any more", "gateway", w.id.String())
	}
}

// patchEndpoints returns the last snapshot with other endpoints, if nothing else has changed, else nil. This is the
// most frequent change, and takes the same time for a gateway with few and with thousands of services.
func (w *gatewayWatch) patchEndpoints(updates map[query]queryResult, now time.Time) *gateway.Snapshot {
	if w.state.endpointQueries == nil || len(updates) == 0 || w.certificate.current() != w.state.certificate || w.state.expires(now) {
		return nil
	}
	next := *w.state.last
	for q, r := range updates {
		e, _ := r.value.(*gateway.Endpoints)
		targets := w.state.endpointQueries[q]
		if e == nil || r.err != nil || len(targets) == 0 {
			return nil
		}
		for _, id := range targets {
			next.Endpoints = next.Endpoints.With(id, e)
		}
	}
	if next.Endpoints == w.state.last.Endpoints {
		return w.state.last
	}
	return &next
}

// logMissing logs what a snapshot lacks, if something has been missing for a while.
func (w *gatewayWatch) logMissing(b *snapshotBuild) {
	missing := strings.Join(b.missing, "; ")
	if b.missingForLong && missing != w.logged {
		w.logged = missing
		w.client.logger.Warn("the gateway's configuration in consul is incomplete; Envoys keep what they have", "gateway", w.id.String(), "missing", missing)
	}
}

// setCertificate starts, changes or stops the certificate for clients; nil means none.
func (w *gatewayWatch) setCertificate(r *certRequest) {
	switch {
	case r == nil && w.certificate != nil:
		w.certificate.close()
		w.signer.release()
		w.certificate = nil
	case r != nil && w.certificate == nil:
		w.signer.acquire()
		w.certificate = (&certificate{id: w.id, sign: w.signer.sign, client: w.client, wake: w.subscription.wake, saved: w.saved}).start()
	}
	if r != nil {
		w.certificate.requests.Put(*r)
	}
}
