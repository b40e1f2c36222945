// Package consul watches Consul's HTTP API and turns its responses into snapshots of ingress gateways.
//
//	Client        sends one request: a read, or an ACL check
//	watchManager  runs one watch (a repeated blocking query) for each query that is needed
//	gatewayWatch  publishes the snapshots of one gateway
//	Watcher       has one watchManager, and one gatewayWatch for each Watch
//
// A snapshot is a pure function (buildSnapshot) of the results of the queries and of the state that the last build
// returned. A build names the queries that it needs, and the gatewayWatch then watches exactly these. So a service that
// goes away needs no special handling: the next snapshot does not have it.
package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/retry"
	"github.com/usherproxy/usher/internal/statedir"
)

// WatcherOptions tune a Watcher; the zero value is good.
type WatcherOptions struct {
	// Wait is how long a blocking query waits for a change, less up to half of it; 0 means 10 minutes, the most that
	// Consul allows, and 30 seconds if every query needs its own connection.
	Wait time.Duration
	// HealthTimeout bounds how long a snapshot waits for the first response about a target's health; 0 means 2 seconds.
	HealthTimeout time.Duration
	// AnswerTimeout bounds how long a snapshot waits for the first responses that a listener needs. It is also how long
	// Consul has to refuse a query before the refusal becomes a problem. 0 means 10 seconds.
	AnswerTimeout time.Duration
	// State is where the last valid answers are saved, to be used after a restart while Consul does not answer. Nil: they
	// are not saved. It stays open while the Watcher runs.
	State *statedir.Dir
}

// Watcher makes snapshots of gateways from Consul's responses. Gateways share the watches that they have in common.
type Watcher struct {
	client   *Client
	options  WatcherOptions
	manager  *watchManager
	signer   *signer
	watchdog *watchdog
	store    *stateStore // nil without a state directory
	// permissions are what Usher's token may do.
	permissions *permissionChecker
	// readyWatches are the watches that Run has started for Ready; nil while Run does not run.
	readyWatches atomic.Pointer[[]*watch]
	// published is how many of the watched gateways have a snapshot.
	published atomic.Int32
	// instances has state.instances of gateways that were watched before, by gateway.ID.
	instances sync.Map

	mu sync.Mutex // guards running
	// running has for each gateway the channel that is closed when its latest Watch has ended.
	running map[gateway.ID]chan struct{}
}

// NewWatcher returns a Watcher. It sends no query yet.
func NewWatcher(c *Client, o WatcherOptions) *Watcher {
	wait := 10 * time.Minute
	if c.maxConnections() > 0 {
		wait = plainWait
	}
	o.Wait = cmp.Or(o.Wait, wait)
	o.HealthTimeout = cmp.Or(o.HealthTimeout, 2*time.Second)
	o.AnswerTimeout = cmp.Or(o.AnswerTimeout, 10*time.Second)
	m := newWatchManager(c, o.Wait)
	w := &Watcher{client: c, options: o, manager: m, signer: &signer{client: c}, watchdog: newWatchdog(c, m), running: map[gateway.ID]chan struct{}{}}
	if o.State != nil {
		m.keepAnswers, w.store = true, openStateStore(o.State, c)
	}
	w.permissions = &permissionChecker{client: c, serves: func() bool { return w.published.Load() > 0 }}
	return w
}

// Run runs what all gateways share until ctx ends: the watchdog, the refresh of queries that would miss a change, and
// two watches. These show Ready whether Consul answers Usher's token, and keep the last valid proxy-defaults.
func (w *Watcher) Run(ctx context.Context) error {
	s := w.manager.subscribe()
	defer s.close()
	roots, defaults := query{queryType: rootsType}, partitionQuery(proxyDefaultsType, w.client.partition)
	s.set(map[query]bool{roots: true, defaults: true}, []query{roots, defaults}) //nolint:contextcheck // a shared watch outlives its first subscriber
	w.readyWatches.Store(&[]*watch{s.watches[roots], s.watches[defaults]})
	defer w.readyWatches.Store(nil)
	var parts sync.WaitGroup
	if login := w.client.tokens.login; login != nil {
		parts.Go(func() { login.run(ctx, w.client, func() { notify(w.watchdog.recovered) }) })
	}
	parts.Go(func() { w.permissions.run(ctx) })
	if w.store != nil {
		parts.Go(func() { w.store.run(ctx) })
	}
	parts.Go(func() { w.watchdog.run(ctx) })
	parts.Go(func() { w.manager.runRefreshes(ctx, w.watchdog.recovered) })
	parts.Wait()
	return nil
}

// Ready returns nil if Consul answers, and otherwise the reason why not, within ten seconds. It does not say whether
// Usher has something to serve: Usher keeps the last valid responses while Consul is away. The query for the mesh's roots
// needs no permission. The query for proxy-defaults shows whether Consul knows Usher's token. A token with which Usher can
// serve no gateway counts as no answer.
func (w *Watcher) Ready() error {
	watches := w.readyWatches.Load()
	if watches == nil {
		return errors.New("consul is not being watched yet; report it if this lasts")
	}
	err := w.watchdog.failure()
	if login := w.client.tokens.login; err == nil && login != nil {
		err = login.failure()
	}
	for _, watch := range *watches {
		r := w.manager.resultOf(watch)
		if r.isEmpty() {
			r.err = errNoAnswerYet
		}
		err = cmp.Or(err, r.err)
	}
	if err == nil {
		err = w.permissions.failure()
	}
	if err != nil {
		return fmt.Errorf("consul at %s: %w", w.client.Address(), err)
	}
	return nil
}

// HasSaved reports whether there is a saved state with which Usher can serve new Envoys now, while Consul does not answer.
func (w *Watcher) HasSaved() bool { return w.store.canServe(time.Now()) }

// Address returns the address of Consul's HTTP API that is in use.
func (w *Watcher) Address() string { return w.client.Address() }

// Warning returns what could be improved although Consul answers; "" if there is nothing.
func (w *Watcher) Warning() string {
	lines := []string{w.watchdog.warning(), w.manager.limiter.warning()}
	return strings.Join(slices.DeleteFunc(lines, func(line string) bool { return line == "" }), "\n")
}

// WatchNames calls put with the sorted names of the ingress-gateway entries, after each change, until ctx ends. If Consul's
// ACLs hide some, put gets nil.
func (w *Watcher) WatchNames(ctx context.Context, put func([]string)) error {
	s := w.manager.subscribe()
	defer s.close()
	q := partitionQuery(entriesType, w.client.partition)
	s.set(map[query]bool{q: true}, []query{q}) //nolint:contextcheck // a shared watch outlives its first subscriber
	for {
		s.takeUpdates()
		if list, ok := s.results[q].value.(*entries); ok {
			var names []string
			if !list.filtered {
				names = slices.AppendSeq([]string{}, maps.Keys(list.byName))
				slices.Sort(names)
			}
			put(names)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
	}
}

// Watch calls publish with a snapshot of the gateway as soon as all of it is known, and with a new one whenever
// something changes. publish must not block. Watch returns nil when ctx has ended, and only then. Watch a gateway only
// once at a time: Watch begins when an earlier one of the same gateway, whose ctx has ended, has returned.
func (w *Watcher) Watch(ctx context.Context, id gateway.ID, publish func(*gateway.Snapshot)) error {
	if id.Name == "" {
		return errors.New("the gateway has no name")
	}
	defer w.begin(id)()
	published := false
	g := &gatewayWatch{
		id: id, client: w.client, signer: w.signer, options: w.options,
		subscription: w.manager.subscribe(), publishSnapshot: func(s *gateway.Snapshot) {
			if !published {
				published = true
				w.published.Add(1)
			}
			publish(s)
		},
	}
	answers, certificate := w.store.begin(id)
	w.manager.offer(answers)
	offered := slices.Collect(maps.Keys(answers))
	g.store, g.saved = w.store, certificate
	last, _ := w.instances.Load(id)
	g.state.instances, _ = last.(map[instanceID]*gateway.Instance)
	defer func() { //nolint:contextcheck // the certificate is only stopped
		g.setCertificate(nil)
		w.client.metrics.removeCertificate(id)
		w.client.metrics.removeRestored(id)
		g.subscription.close()
		w.manager.withdraw(offered...)
		w.store.end(id)
		if published {
			w.published.Add(-1)
		}
		if len(g.state.instances) == 0 {
			w.instances.Delete(id)
		} else {
			w.instances.Store(id, g.state.instances)
		}
	}()
	g.run(ctx)
	return nil
}

// begin waits for the end of an earlier Watch of a gateway, which would otherwise clean up what the new one has. The
// caller calls end at last.
func (w *Watcher) begin(id gateway.ID) (end func()) {
	done := make(chan struct{})
	w.mu.Lock()
	earlier := w.running[id]
	w.running[id] = done
	w.mu.Unlock()
	if earlier != nil {
		<-earlier
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.running[id] == done {
			delete(w.running, id)
		}
		close(done)
	}
}

// A blocking query to a dead Consul looks like one that waits for a change. So the watchdog sends a small non-blocking
// query every few seconds, over a separate connection. It detects an outage within watchdogPause plus watchdogTimeout.
// With several addresses it is the one part that decides which of them is in use.
const (
	watchdogPause   = 4 * time.Second
	watchdogTimeout = 5 * time.Second
	watchdogRetry   = time.Second // the pause while Consul does not answer, less up to half of it
)

// heartbeat is the watchdog's query. The response has 2 KiB, needs no permission, and may come from any server.
var heartbeat = query{queryType: heartbeatType()}

// heartbeatType returns a type that differs from rootsType: the watchdog and the watch of the roots can fail both.
func heartbeatType() *queryType {
	t := *rootsType
	return &t
}

// Of several addresses of Consul, the watchdog keeps one in use that answers. If that does not answer, it uses the next one
// that does. It does not go back when the address before answers again: each change reads everything again.
const (
	// stayTime is for how long after a change one failure is not enough for the next change, but takes stayFailures in a row:
	// agents that fail by turns should not have Usher read everything from each of them, again and again.
	stayTime     = 30 * time.Second
	stayFailures = 3
	// othersPause is the time between two checks whether the addresses that are not in use answer.
	othersPause = 15 * time.Second
)

// watchdog checks whether Consul answers at all, and at which address.
type watchdog struct {
	client    *Client
	manager   *watchManager
	recovered chan struct{} // receives when Consul answers again, or at another address; its capacity is 1
	// err points to the reason why Consul does not answer, or to nil. Only the goroutine of run writes it.
	err atomic.Pointer[error]
	// silent has the addresses that are not in use and do not answer, for warning. Only the goroutine of run writes it.
	silent atomic.Pointer[string]

	// Only the goroutine of run uses these.
	clock     clockCheck
	answered  bool // Consul has answered once
	failures  int  // in a row
	changedAt time.Time
	checkedAt time.Time         // when the other addresses were last checked
	checked   chan []checkup    // receives the results of a check; its capacity is 1
	down      map[*target]error // the other addresses that do not answer
}

// checkup is the result of a check of an address.
type checkup struct {
	of  *target
	err error // nil: it answers
}

var errNoAnswerYet = errors.New("no answer yet")

func newWatchdog(c *Client, m *watchManager) *watchdog {
	d := &watchdog{
		client: c, manager: m, recovered: make(chan struct{}, 1), clock: clockCheck{client: c},
		checked: make(chan []checkup, 1), down: map[*target]error{},
	}
	d.err.Store(&errNoAnswerYet)
	d.silent.Store(new(string))
	return d
}

// failure returns why Consul does not answer, or nil if it does.
func (d *watchdog) failure() error { return *d.err.Load() }

// warning returns which addresses do not answer while another one does; "" for none.
func (d *watchdog) warning() string { return *d.silent.Load() }

// run sends the queries until ctx ends.
func (d *watchdog) run(ctx context.Context) {
	defer d.client.watchdogHTTP.CloseIdleConnections()
	var checks sync.WaitGroup
	defer checks.Wait()
	for ctx.Err() == nil {
		begin := time.Now()
		r, err := d.client.try(ctx, d.client.targets.current())
		d.clock.observe(r.date, begin, time.Now())
		if err != nil && ctx.Err() == nil {
			err = d.useNext(ctx, err)
		}
		if ctx.Err() != nil {
			return
		}
		d.record(err)
		d.checkOthers(ctx, &checks)
		d.pause(ctx, err != nil)
	}
}

// pause waits until the next query is due. While Consul answers, that is at once when another query of Usher had no answer
// from one of several addresses, but not more often than while it does not.
func (d *watchdog) pause(ctx context.Context, failed bool) {
	if failed {
		sleep(ctx, retry.Jitter(watchdogRetry))
		return
	}
	sleep(ctx, watchdogRetry)
	var suspect chan struct{}
	if len(d.client.targets.all) > 1 {
		suspect = d.client.targets.suspect
	}
	select {
	case <-ctx.Done():
	case <-suspect:
	case <-time.After(watchdogPause - watchdogRetry):
	}
}

// useNext makes the client use the next address that answers, because that in use did not, and returns nil. If none answers,
// or it is too early for a change, it returns why not.
func (d *watchdog) useNext(ctx context.Context, err error) error {
	others := d.client.targets.others()
	if d.failures++; len(others) == 0 || time.Since(d.changedAt) < stayTime && d.failures < stayFailures {
		return err
	}
	results := d.client.tryAll(ctx, others)
	if ctx.Err() != nil {
		return err
	}
	before := d.client.targets.current()
	for i, failed := range results {
		if failed == nil {
			d.use(others[i], err)
			break
		}
	}
	if d.client.targets.current() == before {
		for i, other := range others {
			err = fmt.Errorf("%w; %s does not answer either: %w", err, other, results[i])
		}
		return err
	}
	now := []checkup{{before, err}}
	for i, other := range others {
		now = append(now, checkup{other, results[i]})
	}
	d.note(now, before)
	return nil
}

// use makes the client use an address that answers. why says why that before did not.
func (d *watchdog) use(next *target, why error) {
	c := d.client
	c.logger.Warn("consul does not answer at one of its addresses; usher uses another one", "consul", c.Address(), "error", why, "now", next.String())
	c.targets.inUse.Store(next)
	c.metrics.setAddressInUse(c.targets)
	c.metrics.addressChanges.Inc()
	d.changedAt = time.Now()
	notify(d.recovered)
}

// checkOthers checks the addresses that are not in use, from time to time, and notes the results of the last check.
func (d *watchdog) checkOthers(ctx context.Context, checks *sync.WaitGroup) {
	select {
	case results := <-d.checked:
		d.note(results, nil)
	default:
	}
	others := d.client.targets.others()
	if len(others) == 0 || time.Since(d.checkedAt) < othersPause {
		return
	}
	d.checkedAt = time.Now()
	checks.Go(func() {
		var results []checkup
		for i, err := range d.client.tryAll(ctx, others) {
			results = append(results, checkup{others[i], err})
		}
		if ctx.Err() == nil {
			d.checked <- results
		}
	})
}

// note records which addresses do not answer. The log has a line when one of them ceases to, unless it is logged already, and
// when it answers again.
func (d *watchdog) note(results []checkup, logged *target) {
	inUse := d.client.targets.current()
	for _, r := range results {
		was := d.down[r.of]
		delete(d.down, r.of)
		switch {
		case r.of == inUse:
			continue
		case r.err != nil && was == nil && r.of != logged:
			d.client.logger.Warn("consul does not answer at an address that usher would use next", "consul", r.of.String(), "error", r.err)
		case r.err == nil && was != nil:
			d.client.logger.Info("consul answers at an address that usher does not use at the moment", "consul", r.of.String(), "in_use", inUse.String())
		}
		if r.err != nil {
			d.down[r.of] = r.err
		}
	}
	text := ""
	for _, t := range d.client.targets.all {
		if err := d.down[t]; err != nil && t != inUse {
			text += fmt.Sprintf("Consul does not answer at %s, and Usher uses %s: %v\n", t, inUse, err)
		}
	}
	text = strings.TrimSuffix(text, "\n")
	d.silent.Store(&text)
}

func (d *watchdog) record(err error) {
	was := d.failure()
	d.answered = d.answered || err == nil
	d.err.Store(&err)
	d.client.metrics.up.Set(0)
	if err == nil {
		d.failures = 0
		d.client.metrics.up.Set(1)
		d.client.metrics.lastAnswer.Set(float64(time.Now().Unix()))
	}
	if was == errNoAnswerYet { //nolint:errorlint // it is never wrapped
		was = nil
	} else if was != nil && err == nil {
		notify(d.recovered)
	}
	d.manager.mu.Lock()
	defer d.manager.mu.Unlock()
	d.manager.logFailure(heartbeat, was, err, failureContext{hasAnswer: d.answered})
}

// notify sends on a channel of capacity 1. It never blocks.
func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // a notification is pending already
	}
}
