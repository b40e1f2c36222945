package loadbalancer

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/latest"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// DefaultGrace is how long a cloud gets to follow a change of a Service.
const DefaultGrace = 10 * time.Minute

// Options are the options of a Watcher. Client, Logger and Metrics are required.
type Options struct {
	Client rest.Interface
	// Grace is the grace period: how long a listener accepts connections both with and without a PROXY header after
	// its Service changed. Zero: there is none. All Ushers of a gateway need the same.
	Grace   time.Duration
	Logger  *slog.Logger
	Metrics *Metrics
	// Record is the ConfigMap of the record. It must exist. Zero: there is no record, and a restarted Usher has only
	// the history that the API server keeps.
	Record types.NamespacedName
	// Evidence reports what connections show. Nil: listeners go by their Service alone.
	Evidence EvidenceSource
	// Memory keeps what is known across restarts. Nil: after a restart, listeners wait for the API server.
	Memory Memory
}

// Watcher watches Services. Use NewWatcher; the methods may be called from any goroutine.
type Watcher struct {
	o Options
}

// NewWatcher returns a watcher. It connects when Watch is called.
func NewWatcher(o Options) *Watcher { return &Watcher{o} }

// Warning returns a line for each listener in a grace period; empty if there is none.
func (w *Watcher) Warning() string { return w.o.Metrics.warning(time.Now()) }

// Watch calls put with what follows from a Service for the listeners of a gateway, whenever that changes, until ctx
// ends; put must not block. It calls put first after the first answer or error of the API server.
func (w *Watcher) Watch(ctx context.Context, of gateway.ID, id gateway.KubernetesService, put func(*gateway.Balancer)) {
	watcher := &serviceWatcher{client: w.o.Client, log: w.o.Logger, id: id, events: latest.New[serviceEvent]()}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running.Go(func() { watcher.run(ctx) })
	reports := latest.New[evidence.Ports]()
	if w.o.Evidence != nil {
		running.Go(func() { w.watchEvidence(ctx, of, id, reports.Put) })
	}

	r := newReconciler(w.o, id, put, time.Now)
	defer r.Metrics.update(id, false, nil)
	timer := time.NewTimer(idle)
	defer timer.Stop()
	r.memory = newMemory(w.o.Memory, of, id, w.o.Logger)
	running.Go(func() { r.memory.run(ctx) })
	if r.restore() {
		timer.Reset(restoredWait)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case r.event = <-watcher.events.C():
			r.pending, r.started = true, true
		case ports := <-reports.C():
			r.observe(ports)
		case r.memoryProblem = <-r.memory.failed.C():
		case <-timer.C:
			r.started = r.started || r.state.Ports != nil // restoredWait is over
		}
		if r.started {
			timer.Reset(r.step(ctx))
		}
	}
}

// watchEvidence watches what connections show, until ctx ends. After a panic it starts again.
func (w *Watcher) watchEvidence(ctx context.Context, of gateway.ID, id gateway.KubernetesService, put func(evidence.Ports)) {
	for ctx.Err() == nil {
		err := guard.Run(w.o.Logger, "evidence", func() error {
			w.o.Evidence.Watch(ctx, of, id, put)
			return nil
		})
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryDelay):
		}
	}
}

// idle is how long a reconciler sleeps when only an event can wake it.
const idle = time.Hour

// reconciler turns the events of one Service, and what its connections show, into what follows for listeners. It has no
// goroutine.
type reconciler struct {
	Options
	id  gateway.KubernetesService
	put func(*gateway.Balancer)
	now func() time.Time

	event   serviceEvent // the last one
	started bool         // there was an event
	pending bool         // event is not applied yet
	state   serviceState

	watchedSince time.Time                // since when there would be reports about connections
	observed     map[int]observation      // what they show, by port
	sightings    map[sightingKey]sighting // what problems about them say
	unshared     bool                     // state has a finding that may not be recorded
	nextShare    time.Time                // when to look for the findings of other replicas

	memory        *memory
	memoryProblem *problem.Problem // why nothing is remembered; nil: it is

	problems       []problem.Problem // of the Service
	recordProblems []problem.Problem // why the other replicas may not have the state
	panicProblems  []problem.Problem // the panic while event was applied
	published      *gateway.Balancer // what was put last; before that, without ports
	reasons        map[int]string    // what connections had shown when a mode changed last, where that decided, by port
}

func newReconciler(o Options, id gateway.KubernetesService, put func(*gateway.Balancer), now func() time.Time) *reconciler {
	return &reconciler{
		Options: o, id: id, put: put, now: now, watchedSince: now(), published: &gateway.Balancer{},
		observed: map[int]observation{}, sightings: map[sightingKey]sighting{}, reasons: map[int]string{},
		memory: newMemory(nil, gateway.ID{}, id, o.Logger),
	}
}

// restore takes the state that is remembered. It reports whether there is one.
func (r *reconciler) restore() bool {
	r.state = r.memory.restore(r.now())
	if r.Evidence == nil {
		r.state = r.state.withoutFindings()
	}
	return r.state.ResourceVersion != ""
}

// observe stores reports about connections for the next step. Their ports are all that Envoys have reported of late.
func (r *reconciler) observe(ports evidence.Ports) {
	for port, summary := range ports {
		o, known := r.observed[port]
		if !known {
			o.watchedSince = r.watchedSince
		}
		r.observed[port] = o.after(summary)
	}
}

// step applies a pending event, publishes what follows now, and returns when to call it again.
func (r *reconciler) step(ctx context.Context) (wake time.Duration) {
	err := guard.Run(r.Logger, "kubernetes", func() error {
		if r.pending || len(r.recordProblems) > 0 {
			r.applyEvent(ctx)
		}
		r.pending, r.panicProblems = false, nil
		r.applyEvidence(r.now())
		if r.followsAgain(r.now()) && r.sharesFindings() {
			r.share(ctx)
		}
		wake = r.publish(r.now())
		if r.mustShare(r.now()) {
			r.share(ctx)
			wake = r.publish(r.now())
		}
		return nil
	})
	if err != nil {
		r.keepAfterPanic(err)
		return retryDelay
	}
	return wake
}

// applyEvent applies the last event to the state, and to the record. Only at the first event do listeners wait for the
// API server's history and for the record: later, Usher publishes what it knows before it reads the record.
func (r *reconciler) applyEvent(ctx context.Context) {
	now, last := r.now().UTC(), r.state
	if r.event.err == nil && r.event.service != nil && last.Ports == nil {
		last = last.replay(readHistory(ctx, r.Client, r.event.service), now)
	}
	intent := r.readEvent()
	apply := func(recorded serviceState) serviceState {
		if r.Evidence == nil { // other replicas may have one, or this one before
			recorded = recorded.withoutFindings()
		}
		r.state = last.afterEvent(recorded, intent, now)
		return r.state
	}
	apply(serviceState{})
	if !r.mustRecord(last) {
		return
	}
	if len(r.published.Ports) > 0 {
		r.publish(r.now())
	}
	r.recordProblems = nil
	if r.updateRecord(ctx, apply) != nil {
		if last.ResourceVersion == "" {
			r.state.ResourceVersion = "" // so any recorded state takes precedence once it can be read
		}
	}
}

// updateRecord updates the record and sets its problems.
func (r *reconciler) updateRecord(ctx context.Context, next func(recorded serviceState) serviceState) error {
	configMap := newRecord(r.Client, r.Logger, r.Record)
	err := configMap.update(ctx, r.id, next)
	r.nextShare = r.now().Add(shareInterval)
	if err != nil {
		r.recordProblems = []problem.Problem{configMap.problem(err)}
	}
	return err
}

// shareInterval is how often a replica reads the findings of the others. Its listeners do not wait for them: it goes by
// the connections that its own Envoys report, too.
const shareInterval = 30 * time.Second

// mustShare reports whether to exchange findings with the other replicas. After a problem with the record, or while the
// API server does not answer, applyEvent does it once it can.
func (r *reconciler) mustShare(now time.Time) bool {
	return r.sharesFindings() && (r.unshared || !now.Before(r.nextShare))
}

func (r *reconciler) sharesFindings() bool {
	if r.Evidence == nil || r.Record == (types.NamespacedName{}) || r.event.err != nil || len(r.recordProblems) > 0 {
		return false
	}
	for _, l := range r.state.Ports { // also one that this Usher has seen no connections to: others may have
		if l.State == proxyOn || l.State == proxyOff {
			return true
		}
	}
	return false
}

// followsAgain reports whether a listener would become strict now, or off because headers have stopped. Other replicas may
// know why it must not. In all other cases, listeners do not wait for the record.
func (r *reconciler) followsAgain(now time.Time) bool {
	for port, l := range r.state.Ports {
		mode, _ := l.mode(r.Grace, now)
		follows := mode == settings.Strict || mode == settings.Off && l.Finding != nil
		if last := r.published.ForPort(port).Mode; follows && last != mode && last != "" {
			return true
		}
	}
	return false
}

// share exchanges findings with the other replicas. It writes only if the record lacks one.
func (r *reconciler) share(ctx context.Context) {
	err := r.updateRecord(ctx, func(recorded serviceState) serviceState {
		recorded = recorded.plausible(r.now())
		if recorded.ResourceVersion == "" {
			return r.state
		}
		r.state = r.state.withFindings(recorded)
		return recorded.withFindings(r.state)
	})
	r.unshared = r.unshared && err != nil
}

// mustRecord reports whether the last event may be news for the other replicas.
func (r *reconciler) mustRecord(last serviceState) bool {
	if r.Record == (types.NamespacedName{}) || r.event.err != nil {
		return false
	}
	return r.event.service == nil || r.event.service.ResourceVersion != last.ResourceVersion || last.frozen() ||
		len(r.recordProblems) > 0 || r.panicProblems != nil
}

// readEvent returns what the Service asks for; nil if that is unknown. It sets the problems of the Service.
func (r *reconciler) readEvent() *serviceIntent {
	switch {
	case r.event.err != nil:
		r.problems = r.unknown(kubeapi.Explain(r.event.err, serviceRights))
		return nil
	case r.event.service == nil:
		r.problems = r.unknown("Consul's catalog names this Service for the gateway, but this Kubernetes cluster has none; " +
			"check that Usher reads the gateway's cluster (--kubeconfig); else create the Service, or set Usher's proxy_protocol.mode")
		return nil
	}
	intent := readIntent(r.event.service)
	r.problems = intent.problems
	if r.event.late != nil {
		r.problems = append(r.problems, problem.Problem{
			Where: r.id.String(),
			What:  kubeapi.Explain(r.event.late, serviceRights) + ". Usher can read this Service and not watch it, so listeners follow a change a few seconds late",
		})
	}
	return &intent
}

// serviceRights are what Usher needs.
const serviceRights = "get, list and watch on this Service (docs/kubernetes-role.yaml)"

// unknown returns the problem of why it is unknown what the Service asks for.
func (r *reconciler) unknown(why string) []problem.Problem {
	return []problem.Problem{{
		Where: r.id.String(),
		What:  why + ". Meanwhile, listeners with mode auto keep their mode, and listeners that have no mode yet are held back",
	}}
}

// publish puts what follows from the state now, if that is new, and returns when it may change without another event.
func (r *reconciler) publish(now time.Time) time.Duration {
	r.applyEvidence(now)
	next, ends := r.state.balancer(r.Grace, now)
	sightingsEnd := r.updateSightings(now)
	next.Problems = slices.Concat(r.problems, next.Problems, r.evidenceProblems(now), r.recordProblems, r.panicProblems)
	if r.memoryProblem != nil {
		next.Problems = append(next.Problems, *r.memoryProblem)
	}
	r.memory.remember(r.state, next)
	r.Metrics.update(r.id, r.event.err != nil || r.event.service == nil, ends)
	wake := idle
	if len(r.recordProblems) > 0 {
		wake = retryDelay
	}
	for _, end := range ends {
		wake = min(wake, end.Sub(now))
	}
	for _, at := range append(r.evidenceTimes(), sightingsEnd, r.shareTime()) {
		if at.After(now) {
			wake = min(wake, at.Sub(now))
		}
	}
	if !reflect.DeepEqual(r.published, next) {
		r.logChanges(next, ends)
		r.published = next
		r.put(next)
	}
	return wake
}

// applyEvidence applies what connections show now to the state.
func (r *reconciler) applyEvidence(now time.Time) {
	before := r.state.Ports
	r.state, r.observed = r.state.afterConnections(r.observed, r.policy(), now)
	for port, l := range r.state.Ports {
		r.unshared = r.unshared || l.Finding != before[port].Finding
	}
}

func (r *reconciler) policy() policy {
	return policy{grace: r.Grace, hasRecord: r.Record != (types.NamespacedName{})}
}

// evidenceTimes returns when listeners become strict, or off again, if connections go on as they are, and when it becomes a
// problem that they do not.
func (r *reconciler) evidenceTimes() []time.Time {
	var times []time.Time
	for port, l := range r.state.Ports {
		o, p := r.observed[port], r.policy()
		times = append(times, l.strictAt(o, p), l.offAt(o, p), l.unexplainedAt(o, p))
		if f := l.Finding; f != nil && f.Result == foundNone {
			times = append(times, l.Changed.Add(r.Grace))
		}
	}
	return times
}

// shareTime returns when to exchange findings; zero: never.
func (r *reconciler) shareTime() time.Time {
	if !r.sharesFindings() {
		return time.Time{}
	}
	return r.nextShare
}

// keepAfterPanic puts what was put last, with a problem about a panic.
func (r *reconciler) keepAfterPanic(err error) {
	r.panicProblems = r.unknown(err.Error())
	next := *r.published
	if !slices.Contains(next.Problems, r.panicProblems[0]) {
		next.Problems = slices.Concat(next.Problems, r.panicProblems)
	}
	r.published = &next
	r.put(&next)
}

// logChanges logs each listener whose mode changes.
func (r *reconciler) logChanges(next *gateway.Balancer, ends map[int]time.Time) {
	for port, state := range next.Ports {
		last := r.published.Ports[port]
		if last.Mode == state.Mode && last.ProxyVersion == state.ProxyVersion || state.Mode == "" {
			continue
		}
		log := r.Logger.With("service", r.id.Namespace+"/"+r.id.Name, "port", port)
		known := r.reasons[port]
		r.reasons[port] = state.Reason
		if state.Reason != known && state.Reason != "" {
			r.logEvidence(log, last.Mode, state.Mode, state.Reason)
			continue
		}
		log = log.With("mode", string(state.Mode))
		if end, inGrace := ends[port]; inGrace {
			log = log.With("until", end.UTC().Format(time.RFC3339))
		}
		log.Info("listener mode changed to match the load balancer")
	}
}

// logEvidence logs a mode that changes because of what connections have shown.
func (r *reconciler) logEvidence(log *slog.Logger, before, now settings.Mode, why string) {
	write := log.Info
	if now == settings.Permissive {
		write = log.Warn
	}
	write("listener mode changed because of its connections", "from", string(before), "to", string(now), "why", why)
}
