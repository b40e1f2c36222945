// Package consul watches Consul's HTTP API and turns its answers into snapshots of
// ingress gateways.
//
//	Client        sends one request: a read, or an ACL check
//	watchManager  runs one watch (a repeated blocking query) for each query that is needed
//	source        publishes the snapshots of one gateway
//	Watcher       has one watchManager, and one source for each Watch
//
// A snapshot is a pure function (compile) of the results of the queries and of the
// state that the last compilation returned. A compilation names the queries that it
// needs, and the source then watches exactly these. So a service that goes away needs
// no special handling: the next snapshot does not have it.
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
	// 30 seconds if every query needs its own connection.
	Wait time.Duration
	// HealthTimeout bounds how long a snapshot waits for the first answer about the
	// health of a target; 0 means 2 seconds.
	HealthTimeout time.Duration
	// AnswerTimeout bounds how long a snapshot waits for the first answers that a
	// listener needs. It is also how long Consul has to refuse an answer before the
	// refusal becomes a problem. 0 means 10 seconds.
	AnswerTimeout time.Duration
}

// Watcher makes snapshots of gateways from Consul's answers. Gateways share the watches
// that they have in common.
type Watcher struct {
	client   *Client
	options  WatcherOptions
	manager  *watchManager
	signer   *signer
	watchdog *watchdog
	// health are the watches that Run has started for Ready; nil while Run does not run.
	health atomic.Pointer[[]*watch]
	// settings has, by gateway.ID, the last good settings of the instances
	// (map[instanceID]settings.Layer) of gateways that were watched before.
	settings sync.Map
}

// NewWatcher returns a Watcher. It sends no query yet.
func NewWatcher(c *Client, o WatcherOptions) *Watcher {
	if o.Wait <= 0 {
		o.Wait = 10 * time.Minute
		if c.maxConnections() > 0 {
			o.Wait = plainWait
		}
	}
	if o.HealthTimeout <= 0 {
		o.HealthTimeout = 2 * time.Second
	}
	if o.AnswerTimeout <= 0 {
		o.AnswerTimeout = 10 * time.Second
	}
	m := newWatchManager(c, o.Wait)
	return &Watcher{client: c, options: o, manager: m, signer: &signer{client: c}, watchdog: newWatchdog(c, m)}
}

// Run runs the shared parts of all gateways until ctx ends. These are two watches,
// the watchdog, and the refresh of queries that would miss a change. The watches show
// Ready whether Consul answers Usher's token, and keep the last good proxy-defaults.
func (w *Watcher) Run(ctx context.Context) error {
	s := w.manager.subscribe()
	defer s.close()
	roots, defaults := query{queryType: rootsType}, partitionQuery(proxyDefaultsType, w.client.partition)
	s.set(map[query]bool{roots: true, defaults: true}, []query{roots, defaults}) //nolint:contextcheck // a shared watch outlives its first subscriber
	health := []*watch{s.watches[roots], s.watches[defaults]}
	w.health.Store(&health)
	defer w.health.Store(nil)
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
	health := w.health.Load()
	if health == nil {
		return errors.New("consul is not being watched")
	}
	err := w.watchdog.failure()
	for _, watch := range *health {
		r := w.manager.resultOf(watch)
		switch {
		case err != nil:
		case r.isEmpty():
			err = errNoAnswerYet
		default:
			err = r.err
		}
	}
	if err != nil {
		return fmt.Errorf("consul at %s: %w", w.client.Address(), err)
	}
	return nil
}

// Warning returns in one line what could be improved although Consul answers; "" if
// there is nothing.
func (w *Watcher) Warning() string { return w.manager.limiter.warning() }

// Watch calls publish with a snapshot of the gateway as soon as all of it is known, and
// with a new one whenever something changes. publish must not block. Watch returns nil
// when ctx has ended, and only then. Watch a gateway only once at a time.
func (w *Watcher) Watch(ctx context.Context, id gateway.ID, publish func(*gateway.Snapshot)) error {
	if id.Name == "" {
		return errors.New("the gateway has no name")
	}
	s := &source{
		id: id, client: w.client, subscription: w.manager.subscribe(), signer: w.signer, publishSnapshot: publish,
		healthTimeout: w.options.HealthTimeout, answerTimeout: w.options.AnswerTimeout,
	}
	if last, ok := w.settings.Load(id); ok {
		s.state.settings, _ = last.(map[instanceID]settings.Layer)
	}
	defer func() {
		s.stopCertificate()
		s.subscription.close()
		if len(s.state.settings) == 0 {
			w.settings.Delete(id)
		} else {
			w.settings.Store(id, s.state.settings)
		}
	}()
	s.run(ctx)
	return nil
}
