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
}

// Watcher watches Services. Use NewWatcher; the methods may be called from any goroutine.
type Watcher struct {
	o Options
}

// NewWatcher returns a watcher. It connects when Watch is called.
func NewWatcher(o Options) *Watcher { return &Watcher{o} }

// Warning returns a line for each listener in a grace period; empty if there is none.
func (w *Watcher) Warning() string { return w.o.Metrics.warning(time.Now()) }

// Watch calls put with what follows from a Service for listeners, whenever that changes, until ctx ends; put must not
// block. It calls put first after the first answer or error of the API server.
func (w *Watcher) Watch(ctx context.Context, id gateway.KubernetesService, put func(*gateway.Balancer)) {
	watcher := &serviceWatcher{client: w.o.Client, log: w.o.Logger, id: id, events: latest.New[serviceEvent]()}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running.Go(func() { watcher.run(ctx) })

	r := newReconciler(w.o, id, put)
	defer r.Metrics.update(id, false, nil)
	timer := time.NewTimer(idle)
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

	problems       []problem.Problem // of the Service
	recordProblems []problem.Problem // why the other replicas may not have the state
	panicProblems  []problem.Problem // the panic while event was applied
	published      *gateway.Balancer // what was put last; before that, without ports
}

func newReconciler(o Options, id gateway.KubernetesService, put func(*gateway.Balancer)) *reconciler {
	return &reconciler{Options: o, id: id, put: put, published: &gateway.Balancer{}}
}

// step applies a pending event, publishes what follows now, and returns when to call it again.
func (r *reconciler) step(ctx context.Context) (wake time.Duration) {
	err := guard.Run(r.Logger, "kubernetes", func() error {
		if r.pending || len(r.recordProblems) > 0 {
			r.applyEvent(ctx)
		}
		r.pending, r.panicProblems = false, nil
		wake = r.publish(time.Now())
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
	now, last := time.Now().UTC(), r.state
	if r.event.err == nil && r.event.service != nil && last.Ports == nil {
		last = last.replay(readHistory(ctx, r.Client, r.event.service), now)
	}
	intent := r.readEvent()
	apply := func(recorded serviceState) serviceState {
		r.state = last.afterEvent(recorded, intent, now)
		return r.state
	}
	apply(serviceState{})
	if !r.mustRecord(last) {
		return
	}
	if last.ResourceVersion != "" {
		r.publish(time.Now())
	}
	r.recordProblems = nil
	configMap := record{client: r.Client, log: r.Logger, at: r.Record}
	if err := configMap.update(ctx, r.id, apply); err != nil {
		r.recordProblems = []problem.Problem{configMap.problem(err)}
		if last.ResourceVersion == "" {
			r.state.ResourceVersion = "" // so any recorded state takes precedence once it can be read
		}
	}
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
		r.problems = r.unknown(explainError(r.event.err, "get, list and watch on this Service (docs/kubernetes-role.yaml)"))
		return nil
	case r.event.service == nil:
		r.problems = r.unknown("Consul's catalog names this Service for the gateway, but this Kubernetes cluster has none; " +
			"check that Usher reads the gateway's cluster (--kubeconfig); else create the Service, or set Usher's proxy_protocol.mode")
		return nil
	}
	intent := readIntent(r.event.service)
	r.problems = intent.problems
	return &intent
}

// unknown returns the problem of why it is unknown what the Service asks for.
func (r *reconciler) unknown(why string) []problem.Problem {
	return []problem.Problem{{
		Where: serviceName(r.id.Namespace, r.id.Name),
		What:  why + ". Meanwhile, listeners with mode auto keep their mode, and listeners that have no mode yet are held back",
	}}
}

// publish puts what follows from the state now, if that is new, and returns when it may change without another event.
func (r *reconciler) publish(now time.Time) time.Duration {
	next, ends := r.state.balancer(r.Grace, now)
	next.Problems = slices.Concat(r.problems, next.Problems, r.recordProblems, r.panicProblems)
	r.Metrics.update(r.id, r.event.err != nil || r.event.service == nil, ends)
	wake := idle
	if len(r.recordProblems) > 0 {
		wake = retryDelay
	}
	for _, end := range ends {
		wake = min(wake, end.Sub(now))
	}
	if !reflect.DeepEqual(r.published, next) {
		r.logChanges(next, ends)
		r.published = next
		r.put(next)
	}
	return wake
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
		if r.published.Ports[port] == state || state.Mode == "" {
			continue
		}
		log := r.Logger.With("service", r.id.Namespace+"/"+r.id.Name, "port", port, "mode", string(state.Mode))
		if end, inGrace := ends[port]; inGrace {
			log = log.With("until", end.UTC().Format(time.RFC3339))
		}
		log.Info("listener mode changed to match the load balancer")
	}
}
