package kubernetes

import (
	"context"
	"log/slog"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/gateway"
	"github.com/usherproxy/usher/internal/latest"
)

// DefaultGrace is how long a cloud is given to follow a change of a Service.
const DefaultGrace = 10 * time.Minute

// Options are what a Watcher is made of. All are required.
type Options struct {
	Client rest.Interface
	// Grace is how long a listener takes connections both with and without a PROXY
	// header after its balancer was told something else. Zero: not at all. All
	// Ushers of a gateway need the same.
	Grace   time.Duration
	Logger  *slog.Logger
	Metrics *Metrics
}

// Watcher watches Services. Use New; Watch may be called from any goroutine.
type Watcher struct {
	o Options
}

// New gives a watcher. It connects when something is watched.
func New(o Options) *Watcher { return &Watcher{o} }

// Watch calls put with what follows from a Service, whenever that changes, until
// ctx ends; put must not block. Nothing is put before the first answer, or the
// first error.
func (w *Watcher) Watch(ctx context.Context, id gateway.KubernetesService, put func(*gateway.Balancer)) {
	e := &ear{client: w.o.Client, id: id, out: latest.New[heard]()}
	var listening sync.WaitGroup
	defer listening.Wait()
	listening.Go(func() { e.run(ctx) })

	f := follower{Options: w.o, id: id, report: report{metrics: w.o.Metrics, id: id}}
	defer f.report.update(false, nil)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-e.out.C():
			if f.mayHaveMissed(h) {
				f.remember(recall(ctx, w.o.Client, h.service), time.Now())
			}
			f.hear(h, time.Now())
		case <-timer.C:
		}
		b, wake := f.follow(time.Now())
		if b != nil {
			put(b)
		}
		timer.Reset(wake)
	}
}

// idle is how long a Watch sleeps when nothing but the Service can wake it.
const idle = time.Hour

// follower follows one Service. It has no goroutine and no clock.
type follower struct {
	Options
	id       gateway.KubernetesService
	report   report
	begun    bool // something was heard
	failing  bool // nobody knows at the moment what the Service says
	memory   memory
	problems []gateway.Problem
	last     *gateway.Balancer // what was put last
}

// mayHaveMissed says whether this is the first of a Service, and no header is
// sent: nobody can tell from it whether one was, a moment ago.
func (f *follower) mayHaveMissed(h heard) bool {
	return h.err == nil && h.service != nil && len(f.memory.listeners) == 0 && !read(h.service).on()
}

// remember takes in what a Service was before.
func (f *follower) remember(past []*corev1.Service, now time.Time) {
	for _, s := range past {
		f.memory = f.memory.hear(read(s), now)
	}
}

// hear takes in what the API server said.
func (f *follower) hear(h heard, now time.Time) {
	unknown := ""
	switch {
	case h.err != nil:
		unknown = why(h.err)
	case !h.answered:
		return
	case h.service == nil:
		unknown = "there is no such Service, though the catalog says that it is in front of the gateway; make it again, or set usher's proxy_protocol.mode"
	}
	f.begun, f.failing = true, unknown != ""
	if unknown == "" {
		t := read(h.service)
		f.memory, f.problems = f.memory.hear(t, now), t.problems
		return
	}
	f.memory = f.memory.freeze()
	f.problems = []gateway.Problem{{
		Where: where(f.id.Namespace, f.id.Name),
		What:  unknown + ". Until then listeners with the mode auto stay what they are, and those that never were anything are held back",
	}}
}

// follow gives what follows now, nil if that is what it was, and how long that
// lasts.
func (f *follower) follow(now time.Time) (*gateway.Balancer, time.Duration) {
	if !f.begun {
		return nil, idle
	}
	memory, ends := f.memory.resolve(f.Grace, now)
	f.memory = memory
	f.report.update(f.failing, ends)
	wake := idle
	for _, end := range ends {
		wake = min(wake, end.Sub(now))
	}
	next := memory.balancer(f.problems)
	if f.last != nil && reflect.DeepEqual(f.last, next) {
		return nil, wake
	}
	f.tell(next, ends)
	f.last = next
	return next, wake
}

// tell logs what has changed for listeners.
func (f *follower) tell(next *gateway.Balancer, ends map[int]time.Time) {
	for port, behind := range next.Listeners {
		if f.last != nil && f.last.Listeners[port] == behind || behind.Mode == "" {
			continue
		}
		log := f.Logger.With("service", f.id.Namespace+"/"+f.id.Name, "port", port, "mode", string(behind.Mode))
		if end, waits := ends[port]; waits {
			log = log.With("until", end.UTC().Format(time.RFC3339))
		}
		log.Info("a listener follows its load balancer")
	}
}
