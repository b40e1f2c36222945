// Package consul watches Consul's HTTP API and turns what it answers into
// snapshots of ingress gateways.
//
//	Client     asks once: a read, or an ACL question
//	hub        keeps every question that somebody has as one blocking query
//	source     of one gateway: which facts it needs, and a Snapshot from them
//	Watcher    one hub, and a source for every Watch
//
// A source holds no state but the facts: whenever one changes, it works out
// afresh which facts it needs and builds a new Snapshot. A service that goes
// away is not removed anywhere; it is no longer there in the next one.
package consul

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// WatcherOptions tune a Watcher; the zero value is good.
type WatcherOptions struct {
	// Wait is how long a blocking query waits for a change, less up to half of
	// it; 0 means 10 minutes, the most that Consul allows
	// (https://developer.hashicorp.com/consul/api-docs/features/blocking), and
	// 30 seconds where every query holds a connection of its own.
	Wait time.Duration
	// Hold bounds how long a snapshot waits for the first answer about the
	// health of a target; 0 means 2 seconds.
	HealthTimeout time.Duration
	// Patience bounds how long a snapshot waits for the first answers that a
	// listener needs. It is also how long Consul has to refuse an answer before the
	// refusal becomes a problem. 0 means 10 seconds.
	AnswerTimeout time.Duration
}

// Watcher makes snapshots of gateways from what Consul says. Gateways share
// the queries that they have in common.
type Watcher struct {
	client        *Client
	manager       *watchManager
	healthTimeout time.Duration
	// patience is WatcherOptions.Patience.
	answerTimeout time.Duration
	signer        *signer

	watchdog      *watchdog
	healthWatches atomic.Pointer[[]*watch] // the queries of Run; nil while it does not run

	mu sync.Mutex
	// own keeps the settings that instances had when they were last good, for
	// gateways that are not being watched at the moment.
	lastSettings map[gateway.ID]map[instanceID]settings.Layer
}

// NewWatcher makes a Watcher; it asks nothing yet.
func NewWatcher(c *Client, o WatcherOptions) *Watcher {
	if o.Wait <= 0 {
		o.Wait = 10 * time.Minute
		if c.connections() > 0 {
			o.Wait = plainWait
		}
	}
	if o.HealthTimeout <= 0 {
		o.HealthTimeout = 2 * time.Second
	}
	if o.AnswerTimeout <= 0 {
		o.AnswerTimeout = 10 * time.Second
	}
	h := newWatchManager(c, o.Wait)
	return &Watcher{
		client: c, manager: h, watchdog: newWatchdog(c, h), healthTimeout: o.HealthTimeout, answerTimeout: o.AnswerTimeout,
		signer: &signer{client: c}, lastSettings: map[gateway.ID]map[instanceID]settings.Layer{},
	}
}

// Run runs the shared parts of all gateways until ctx ends. These are two queries,
// the watchdog, and the refresh of queries that would miss a change. The queries
// show Ready whether Consul answers Usher's token, and keep the last good
// proxy-defaults.
func (w *Watcher) Run(ctx context.Context) error {
	l := w.manager.subscribe()
	defer l.close()
	var beat []*watch
	for _, q := range []query{{queryType: rootsType}, partitionQuery(proxyDefaultsType, w.client.partition)} {
		l.get(q) //nolint:contextcheck // a shared query outlives whoever asks first
		beat = append(beat, l.watches[q].watch)
	}
	w.healthWatches.Store(&beat)
	defer w.healthWatches.Store(nil)
	var parts sync.WaitGroup
	parts.Go(func() { w.watchdog.run(ctx) })
	parts.Go(func() { w.manager.runRefreshes(ctx, w.watchdog.recovered) })
	parts.Wait()
	return nil
}

// Ready returns nil if Consul answers, and otherwise the reason why not. It does not
// say whether Usher has something to serve: Usher keeps the last good answers while
// Consul is away. The watchdog detects within ten seconds that Consul does not
// answer. The query for the mesh's roots needs no right. The query for
// proxy-defaults shows whether Consul knows Usher's token.
func (w *Watcher) Ready() error {
	beat := w.healthWatches.Load()
	if beat == nil {
		return errors.New("consul is not being watched")
	}
	if err := w.watchdog.failure(); err != nil {
		return fmt.Errorf("consul at %s: %w", w.client.Address(), err)
	}
	for _, watch := range *beat {
		f := w.manager.result(watch)
		switch {
		case f.err != nil:
			return fmt.Errorf("consul at %s: %w", w.client.Address(), f.err)
		case f.value == nil:
			return fmt.Errorf("consul at %s: no answer yet", w.client.Address())
		}
	}
	return nil
}

// Warning gives what an operator can mend although Consul answers, in one line;
// "" if there is nothing.
func (w *Watcher) Warning() string { return w.manager.limiter.warning() }

// Watch calls put with a snapshot of the gateway as soon as all of it is known,
// and with a new one whenever something changes. put must not block. Watch
// gives nil when ctx has ended, and only then. One gateway should be watched
// only once at a time.
func (w *Watcher) Watch(ctx context.Context, id gateway.ID, put func(*gateway.Snapshot)) error {
	if id.Name == "" {
		return errors.New("the gateway has no name")
	}
	s := &source{id: id, subscription: w.manager.subscribe(), healthTimeout: w.healthTimeout, answerTimeout: w.answerTimeout, settings: w.settingsOf(id), client: w.client, signer: w.signer, publishSnapshot: put}
	defer func() {
		s.stopCertificate()
		s.subscription.close()
		w.keepSettings(id, s.settings)
	}()
	s.run(ctx)
	return nil
}

func (w *Watcher) settingsOf(id gateway.ID) map[instanceID]settings.Layer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lastSettings[id]
}

func (w *Watcher) keepSettings(id gateway.ID, own map[instanceID]settings.Layer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(own) == 0 {
		delete(w.lastSettings, id)
		return
	}
	w.lastSettings[id] = own
}
