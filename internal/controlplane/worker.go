package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/latest"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/xds"
)

// subscriber is one Envoy's stream.
type subscriber struct {
	node    xds.Node
	put     func(*xds.Set)
	refused chan error // at most one error that ends the stream

	// The worker's loop owns what follows.
	sent    *xds.Set  // what put was last called with
	waiting time.Time // since when its instance is not registered; zero: it is, or was
}

// worker does the work for one gateway. Its loop owns every field below loop;
// those above are how others reach it.
type worker struct {
	id          gateway.ID
	plane       *Plane
	subscribers map[*subscriber]struct{} // guarded by the plane's lock
	changed     latest.Value[[]*subscriber]
	newLayers   latest.Value[fileLayers]
	done        chan struct{} // closed when run has returned
	hasSet      atomic.Bool   // at least one Envoy has got a set

	// loop
	log       *slog.Logger
	snapshot  *gateway.Snapshot // as the source gave it; nil before the first
	layers    fileLayers
	stale     bool // the publisher does not have the current snapshot or layers yet
	streams   []*subscriber
	publisher publisher
	balancers *balancers
	watching  []problem.Problem // why there is no newer snapshot
	compiling []problem.Problem // found when there last was a stream to compile for
	broken    []problem.Problem // the panic of the last call of work, if it panicked
	overdue   *time.Timer       // fires when an Envoy has waited for its instance for long
}

// seen is the latest result of watching a gateway.
type seen struct {
	snapshot *gateway.Snapshot // as the source gave it; nil before the first
	broken   []problem.Problem // why there is no newer snapshot
}

func newWorker(p *Plane, id gateway.ID) *worker {
	log := p.log.With("gateway", id.String())
	return &worker{
		id:          id,
		plane:       p,
		subscribers: map[*subscriber]struct{}{},
		changed:     latest.New[[]*subscriber](),
		newLayers:   latest.New[fileLayers](),
		done:        make(chan struct{}),
		log:         log,
		publisher:   newPublisher(p.metrics, log, p.newCompiler),
		overdue:     stopped(),
		balancers:   newBalancers(p.balancers, log),
	}
}

// stopped gives a timer that does not fire before it is reset.
func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// run watches and works until ctx ends or nobody has needed the gateway for
// the plane's linger time.
func (w *worker) run(ctx context.Context) {
	defer close(w.done)
	defer w.plane.problems.forget(w.id)
	ctx, cancel := context.WithCancel(ctx)
	news := latest.New[seen]()
	watching := make(chan error, 1)
	go func() {
		defer cancel()
		watching <- w.watch(ctx, news.Put)
	}()
	w.loop(ctx, news)
	cancel()
	w.balancers.stop()
	if err := <-watching; err != nil {
		w.log.Error("watching ended", "error", err)
	}
	w.plane.forget(w)
}

// restart is the pause between a panic and the next attempt.
const restart = 5 * time.Second

// again waits for restart. It returns false if ctx ends before that.
func again(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(restart):
		return true
	}
}

// watch watches the gateway until ctx ends. After a panic it keeps the last snapshot
// and starts again.
func (w *worker) watch(ctx context.Context, put func(seen)) error {
	var last *gateway.Snapshot
	for {
		err := guard.Run(w.log, "watch", func() error {
			return w.plane.source.Watch(ctx, w.id, func(s *gateway.Snapshot) {
				last = s
				put(seen{snapshot: s})
			})
		})
		if _, panicked := errors.AsType[*guard.Error](err); !panicked {
			return err
		}
		put(seen{snapshot: last, broken: panicProblem(w.id, err)})
		if !again(ctx) {
			return nil
		}
	}
}

// panicProblem returns the problem for a panic in the work for a gateway.
func panicProblem(id gateway.ID, err error) []problem.Problem {
	return []problem.Problem{{
		Where: fmt.Sprintf("gateway %q", id),
		What:  err.Error() + ". What the gateway's Envoys have stays until that is over",
	}}
}

// loop waits for, in one place, everything that can change what Envoys get:
//
//	a new snapshot | the operator's file | a load balancer | an Envoy came or went | one has waited for long | nobody left | the end
func (w *worker) loop(ctx context.Context, news latest.Value[seen]) {
	idle := time.NewTimer(w.plane.linger)
	defer idle.Stop()
	defer w.overdue.Stop()
	// Before anything else: a listener must not go out without the operator's
	// settings. Whoever started the worker has put them.
	w.layers = <-w.newLayers.C()
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-news.C():
			w.snapshot, w.watching, w.stale = s.snapshot, s.broken, true
		case w.layers = <-w.newLayers.C():
			w.stale = true
		case <-w.balancers.changed:
			w.stale = true
		case w.streams = <-w.changed.C():
			idle.Reset(w.plane.linger)
		case <-w.overdue.C:
		case <-idle.C:
			if len(w.streams) == 0 && w.plane.retire(w) {
				return
			}
			continue
		}
		w.work(ctx)
	}
}

// work applies what has changed. If it panics, the streams keep their sets, and the
// next change makes it run again.
func (w *worker) work(ctx context.Context) {
	w.broken = nil
	err := guard.Run(w.log, "worker", func() error {
		if w.stale {
			w.follow(ctx)
			w.renew()
			w.stale = false
		}
		w.publish()
		return nil
	})
	if err != nil {
		w.broken = panicProblem(w.id, err)
	}
	w.report()
}

// whole gives the snapshot with what its source does not know.
func (w *worker) whole() *gateway.Snapshot {
	s := *w.snapshot
	s.FileAll, s.FileGateway, s.Balancers = w.layers.all, w.layers.gateway, w.balancers.facts()
	return &s
}

// follow watches the load balancers that listeners follow now.
func (w *worker) follow(ctx context.Context) {
	if w.snapshot != nil {
		w.balancers.follow(ctx, w.whole())
	}
}

// renew begins a generation of sets: what they are made of has changed. An
// Envoy that comes or goes changes nothing of it.
func (w *worker) renew() {
	if w.snapshot != nil {
		w.publisher.begin(w.whole())
	}
}

// publish compiles what is not compiled yet and gives every stream whose set
// changed the new one.
func (w *worker) publish() {
	if w.snapshot == nil {
		return
	}
	var compiling []problem.Problem
	for _, stream := range w.streams {
		set, found := w.setFor(stream)
		compiling = append(compiling, found...)
		compiling = append(compiling, w.await(stream)...)
		if set != nil && set != stream.sent {
			w.hasSet.Store(true)
			stream.sent = set
			stream.put(set)
		}
	}
	if len(w.streams) > 0 {
		w.compiling = compiling
	}
}

// report reports all problems of the gateway.
func (w *worker) report() {
	problems := slices.Concat(w.watching, w.compiling, w.broken)
	if s := w.snapshot; s != nil {
		problems = append(problems, s.Problems...)
	} else if len(problems) == 0 {
		return
	}
	if s := w.publisher.snapshot; s != nil {
		for _, b := range s.Balancers {
			problems = append(problems, b.Problems...)
		}
	}
	w.plane.problems.ofGateway(w.id, problems)
}

// overdueAfter is how long an Envoy may wait for its registration before that is
// a problem. Whoever starts both needs a moment.
const overdueAfter = 5 * time.Second

// await says that a stream has waited for its instance for long.
func (w *worker) await(stream *subscriber) []problem.Problem {
	if stream.sent != nil || len(w.publisher.candidates(stream.node)) > 0 {
		stream.waiting = time.Time{}
		return nil
	}
	now := time.Now()
	if stream.waiting.IsZero() {
		stream.waiting = now
	}
	if left := overdueAfter - now.Sub(stream.waiting); left > 0 {
		w.overdue.Reset(left)
		return nil
	}
	return []problem.Problem{{
		Where: fmt.Sprintf("Envoy %q at %s", stream.node.ID, describePeer(stream.node.Peer)),
		What: fmt.Sprintf("no instance of ingress gateway %q is registered with this service ID, so it waits and gets nothing; "+
			"register one, or give the Envoy the ID of one as its node's id", w.id),
	}}
}

// setFor gives the set of one stream; nil when there is none for it: its
// instance is not registered (it waits for that, as with Consul's own server),
// or nobody can tell which instance it is.
func (w *worker) setFor(stream *subscriber) (*xds.Set, []problem.Problem) {
	candidates := w.publisher.candidates(stream.node)
	switch len(candidates) {
	case 0:
		return nil, nil
	case 1:
		return w.publisher.set(candidates[0], stream.node)
	}
	set, problems := w.publisher.set(candidates[0], stream.node)
	for _, in := range candidates[1:] {
		other, found := w.publisher.set(in, stream.node)
		problems = append(problems, found...)
		if !equalSets(other, set) {
			w.refuse(stream, candidates)
			return nil, problems
		}
	}
	return set, problems
}

// refuse ends a stream whose instance cannot be told, unless it already has
// resources: those stay.
func (w *worker) refuse(stream *subscriber, candidates []*gateway.Instance) {
	if stream.sent != nil {
		return
	}
	select {
	case stream.refused <- ambiguous(stream.node, candidates):
	default:
	}
}
