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

// DefaultGrace is how long a cloud is given to follow a change of a Service.
const DefaultGrace = 10 * time.Minute

// Options are what a Watcher is made of. All but Record are required.
type Options struct {
	Client rest.Interface
	// Grace is how long a listener takes connections both with and without a PROXY
	// header after its balancer was told something else. Zero: not at all. All
	// Ushers of a gateway need the same.
	Grace   time.Duration
	Logger  *slog.Logger
	Metrics *Metrics
	// Record is a ConfigMap in which Ushers note since when balancers are told what
	// they are told, so that those that are restarted count each grace as the
	// others do. It has to be there. Zero: they go by what the API server can tell.
	Record types.NamespacedName
}

// Watcher watches Services. Use New; Watch may be called from any goroutine.
type Watcher struct {
	o Options
}

// NewWatcher gives a watcher. It connects when something is watched.
func NewWatcher(o Options) *Watcher { return &Watcher{o} }

// Warning says which listeners are in a grace and how long it lasts, in one line;
// "" if none is.
func (w *Watcher) Warning() string { return w.o.Metrics.graces.remark(time.Now()) }

// Watch calls put with what follows from a Service, whenever that changes, until
// ctx ends; put must not block. Nothing is put before the first answer, or the
// first error.
func (w *Watcher) Watch(ctx context.Context, id gateway.KubernetesService, put func(*gateway.Balancer)) {
	e := &ear{client: w.o.Client, log: w.o.Logger, id: id, out: latest.New[heard]()}
	var listening sync.WaitGroup
	defer listening.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listening.Go(func() { e.run(ctx) })

	f := follower{Options: w.o, id: id}
	defer f.show(false, nil)
	timer := time.NewTimer(0)
	defer timer.Stop()
	tell := func() {
		b, wake := f.follow(time.Now())
		if b != nil {
			put(b)
		}
		timer.Reset(wake)
	}
	step := func() error {
		if f.fresh || len(f.unrecorded) > 0 {
			w.take(ctx, &f, tell)
		}
		f.fresh, f.panicked = false, nil
		tell()
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return
		case f.heard = <-e.out.C():
			f.fresh = true
		case <-timer.C:
		}
		if err := guard.Run(w.o.Logger, "kubernetes", step); err != nil {
			put(f.stay(err))
			timer.Reset(recordAgain)
		}
	}
}

// take takes in what was heard, with what is known of the time before that. Who
// knows something already tells what follows before he asks what others have
// noted: listeners do not wait for a ConfigMap.
func (w *Watcher) take(ctx context.Context, f *follower, tell func()) {
	h, now, before := f.heard, time.Now(), f.memory
	if h.err == nil && h.service != nil && before.listeners == nil {
		before = before.recalled(recall(ctx, w.o.Client, h.service), now)
	}
	hear := func(noted memory) memory {
		f.hear(h, before, noted, now)
		return f.memory
	}
	hear(memory{})
	if before.version != "" {
		tell()
	}
	noted := h.service != nil && h.service.ResourceVersion == before.version && !before.frozen() && len(f.unrecorded) == 0 && f.panicked == nil
	if w.o.Record == (types.NamespacedName{}) || h.err != nil || !h.answered || noted {
		return
	}
	f.unrecorded = nil
	r := record{client: w.o.Client, log: w.o.Logger, at: w.o.Record}
	if err := r.agree(ctx, f.id, hear); err != nil {
		f.unrecorded = []problem.Problem{r.problem(err)}
		if before.version == "" {
			f.memory.version = "" // whatever is noted counts for more, once it can be read
		}
	}
}

// idle is how long a Watch sleeps when nothing but the Service can wake it.
const idle = time.Hour

// follower follows one Service. It has no goroutine and no clock.
type follower struct {
	Options
	id         gateway.KubernetesService
	shown      bool  // that the watch fails, in the metrics
	heard      heard // the last that the API server said
	fresh      bool  // heard is not taken in yet
	begun      bool  // something was heard
	failing    bool  // nobody knows at the moment what the Service says
	memory     memory
	problems   []problem.Problem
	unrecorded []problem.Problem // why the others do not know what this one knows
	panicked   []problem.Problem // the panic while heard was taken in, if there was one
	last       *gateway.Balancer // what was put last
}

// hear takes in what the API server said, with what was known before, and what
// is noted by others.
func (f *follower) hear(h heard, before, noted memory, now time.Time) {
	unknown := ""
	switch {
	case h.err != nil:
		unknown = why(h.err, "get, list and watch on it (docs/kubernetes-role.yaml)")
	case !h.answered:
		return
	case h.service == nil:
		unknown = "there is no such Service, though the catalog says that it is in front of the gateway; make it again, or set usher's proxy_protocol.mode"
	}
	noted = noted.believable(now)
	f.begun, f.failing = true, unknown != ""
	f.memory, f.problems = before.with(noted), nil
	if f.failing {
		f.memory = f.memory.freeze(now)
		f.problems = []problem.Problem{{
			Where: where(f.id.Namespace, f.id.Name),
			What:  unknown + ". Until then listeners with the mode auto stay what they are, and those that never were anything are held back",
		}}
		return
	}
	t := read(h.service)
	f.problems = t.problems
	// Somebody may have heard more already, which is heard here soon.
	if !isNewer(noted.version, t.version) {
		f.memory = f.memory.hear(t, now)
	}
}

// follow gives what follows now, nil if that is what it was, and how long that
// lasts.
func (f *follower) follow(now time.Time) (*gateway.Balancer, time.Duration) {
	if !f.begun {
		return nil, idle
	}
	next, ends := f.memory.balancer(f.Grace, now)
	next.Problems = slices.Concat(f.problems, f.memory.problems(), f.unrecorded, f.panicked)
	f.show(f.failing, ends)
	wake := idle
	if len(f.unrecorded) > 0 {
		wake = recordAgain
	}
	for _, end := range ends {
		wake = min(wake, end.Sub(now))
	}
	if f.last != nil && reflect.DeepEqual(f.last, next) {
		return nil, wake
	}
	f.tell(next, ends)
	f.last = next
	return next, wake
}

// stay returns what was put last, with a problem about a panic.
func (f *follower) stay(err error) *gateway.Balancer {
	f.panicked = []problem.Problem{{
		Where: where(f.id.Namespace, f.id.Name),
		What:  err.Error() + ". Until that is over, listeners with the mode auto stay what they are",
	}}
	var next gateway.Balancer
	if f.last != nil {
		next = *f.last
	}
	if !slices.Contains(next.Problems, f.panicked[0]) {
		next.Problems = slices.Concat(next.Problems, f.panicked)
	}
	f.last = &next
	return f.last
}

// show shows in the metrics whether the watch fails, and when each grace ends.
func (f *follower) show(failing bool, ends map[int]time.Time) {
	switch {
	case failing && !f.shown:
		f.Metrics.failing.Inc()
	case !failing && f.shown:
		f.Metrics.failing.Dec()
	}
	f.shown = failing
	f.Metrics.graces.set(f.id, ends)
}

// tell logs what has changed for listeners.
func (f *follower) tell(next *gateway.Balancer, ends map[int]time.Time) {
	for port, behind := range next.Ports {
		if f.last != nil && f.last.Ports[port] == behind || behind.Mode == "" {
			continue
		}
		log := f.Logger.With("service", f.id.Namespace+"/"+f.id.Name, "port", port, "mode", string(behind.Mode))
		if end, waits := ends[port]; waits {
			log = log.With("until", end.UTC().Format(time.RFC3339))
		}
		log.Info("a listener follows its load balancer")
	}
}
