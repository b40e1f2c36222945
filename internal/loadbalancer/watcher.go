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

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/latest"
	"github.com/usherproxy/usher/internal/problem"
)

// DefaultGrace is how long a cloud gets to follow a change of a Service.
const DefaultGrace = 10 * time.Minute

// Options are the options of a Watcher. All but Record are required.
type Options struct {
	Client rest.Interface
	// Grace is the grace period: how long a listener accepts connections both with and without a PROXY header after its
	// Service changed. Zero: there is none. All Ushers of a gateway need the same.
	Grace   time.Duration
	Logger  *slog.Logger
	Metrics *Metrics
	// Record is the ConfigMap of the stateStore. It must exist. Zero: there is no store, and a restarted Usher has only
	// the history that the API server keeps.
	Record types.NamespacedName
}

// Watcher watches Services. Use NewWatcher; the methods may be called from any goroutine.
type Watcher struct {
	o Options
}

// NewWatcher returns a watcher. It connects when Watch is called.
func NewWatcher(o Options) *Watcher { return &Watcher{o} }

// Warning returns the listeners in a grace period and how long each lasts, in one line; empty if there is none.
func (w *Watcher) Warning() string { return w.o.Metrics.warning(time.Now()) }

// Watch calls put with what follows from a Service for listeners, whenever that changes, until ctx ends; put must
// not block. It calls put first after the first answer or error of the API server.
func (w *Watcher) Watch(ctx context.Context, id gateway.KubernetesService, put func(*gateway.Balancer)) {
	watcher := &serviceWatcher{client: w.o.Client, log: w.o.Logger, id: id, events: latest.New[serviceEvent]()}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running.Go(func() { watcher.run(ctx) })

	r := reconciler{Options: w.o, id: id, put: put}
	defer r.Metrics.update(id, false, nil)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case r.event = <-watcher.events.C():
			r.pending = true
		case <-timer.C:
		}
		timer.Reset(r.step(ctx))
	}
}

// idle is how long a reconciler sleeps when only an event can wake it.
const idle = time.Hour

// reconciler turns the events of one Service into what follows for listeners. It has no goroutine.
type reconciler struct {
	Options
	id  gateway.KubernetesService
	put func(*gateway.Balancer)

	event   serviceEvent // the last one
	pending bool         // event is not applied yet
	state   serviceState
	known   bool // an event was applied
	failing bool // it is unknown what the Service asks for

	problems  []problem.Problem // of the Service
	notStored []problem.Problem // why the other replicas may not have the state
	panicked  []problem.Problem // the panic while event was applied
	published *gateway.Balancer // what was put last
}

// step applies a pending event, publishes what follows now, and returns when to call it again.
func (r *reconciler) step(ctx context.Context) (wake time.Duration) {
	err := guard.Run(r.Logger, "kubernetes", func() error {
		if r.pending || len(r.notStored) > 0 {
			r.onEvent(ctx)
		}
		r.pending, r.panicked = false, nil
		wake = r.publish(time.Now())
		return nil
	})
	if err != nil {
		r.keepAfterPanic(err)
		return retryDelay
	}
	return wake
}

// onEvent applies the last event to the state. Where Usher already knows something it publishes before it reads what
// the other replicas have stored, so listeners never wait for the ConfigMap.
func (r *reconciler) onEvent(ctx context.Context) {
	now, last := time.Now().UTC(), r.state
	if r.event.err == nil && r.event.service != nil && last.Ports == nil {
		last = last.replay(readHistory(ctx, r.Client, r.event.service), now)
	}
	observed, ok := r.observe(now)
	if !ok {
		return
	}
	next := func(stored serviceState) serviceState { return last.next(stored, observed) }
	r.state = next(serviceState{})
	if last.ResourceVersion != "" {
		r.publish(time.Now())
	}
	if !r.mustStore(last) {
		return
	}
	r.notStored = nil
	store := stateStore{client: r.Client, log: r.Logger, at: r.Record}
	var err error
	if r.state, err = store.Update(ctx, r.id, next); err != nil {
		r.notStored = []problem.Problem{store.problem(err)}
		if last.ResourceVersion == "" {
			r.state.ResourceVersion = "" // so any stored state takes precedence once it can be read
		}
	}
}

// mustStore reports whether the last event may be news for the other replicas.
func (r *reconciler) mustStore(last serviceState) bool {
	if r.Record == (types.NamespacedName{}) || r.event.err != nil {
		return false
	}
	return r.event.service == nil || r.event.service.ResourceVersion != last.ResourceVersion || last.frozen() ||
		len(r.notStored) > 0 || r.panicked != nil
}

// observe returns what the last event says, and whether it says anything. It updates the problems of the Service.
func (r *reconciler) observe(now time.Time) (observation, bool) {
	unknown := ""
	switch {
	case r.event.err != nil:
		unknown = explainError(r.event.err, "get, list and watch on it (docs/kubernetes-role.yaml)")
	case !r.event.synced:
		return observation{}, false
	case r.event.service == nil:
		unknown = "it does not exist, but Consul's catalog says that it is in front of the gateway; " +
			"create it, or set Usher's proxy_protocol.mode"
	}
	r.known, r.failing = true, unknown != ""
	if r.failing {
		r.problems = []problem.Problem{{
			Where: serviceName(r.id.Namespace, r.id.Name),
			What: unknown + ". Until this is fixed, listeners with the mode auto keep their mode, " +
				"and those without one are held back",
		}}
		return observation{at: now}, true
	}
	intent := readIntent(r.event.service)
	r.problems = intent.problems
	return observation{intent: &intent, at: now}, true
}

// publish puts what follows from the state now, if that is new, and returns when it may change without another
// event.
func (r *reconciler) publish(now time.Time) time.Duration {
	if !r.known {
		return idle
	}
	next, ends := r.state.balancer(r.Grace, now)
	next.Problems = slices.Concat(r.problems, r.state.removalProblems(), r.notStored, r.panicked)
	r.Metrics.update(r.id, r.failing, ends)
	wake := idle
	if len(r.notStored) > 0 {
		wake = retryDelay
	}
	for _, end := range ends {
		wake = min(wake, end.Sub(now))
	}
	if r.published == nil || !reflect.DeepEqual(r.published, next) {
		r.logChanges(next, ends)
		r.published = next
		r.put(next)
	}
	return wake
}

// keepAfterPanic puts what was put last, with a problem about a panic.
func (r *reconciler) keepAfterPanic(err error) {
	r.panicked = []problem.Problem{{
		Where: serviceName(r.id.Namespace, r.id.Name),
		What:  err.Error() + ". Meanwhile listeners with the mode auto keep their mode",
	}}
	var next gateway.Balancer
	if r.published != nil {
		next = *r.published
	}
	if !slices.Contains(next.Problems, r.panicked[0]) {
		next.Problems = slices.Concat(next.Problems, r.panicked)
	}
	r.published = &next
	r.put(&next)
}

// logChanges logs each listener whose mode changes.
func (r *reconciler) logChanges(next *gateway.Balancer, ends map[int]time.Time) {
	for port, state := range next.Ports {
		if r.published != nil && r.published.Ports[port] == state || state.Mode == "" {
			continue
		}
		log := r.Logger.With("service", r.id.Namespace+"/"+r.id.Name, "port", port, "mode", string(state.Mode))
		if end, inGrace := ends[port]; inGrace {
			log = log.With("until", end.UTC().Format(time.RFC3339))
		}
		log.Info("listener mode follows load balancer")
	}
}
