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
type stream struct {
	node    xds.Node
	put     func(*xds.Set)
	refused chan error // at most one error that ends the stream

	// The worker's loop owns what follows.
	sent         *xds.Set  // what put was last called with
	missingSince time.Time // since when its instance is not registered; zero: it is, or was
}

// worker does the work for one gateway. Its loop owns every field below loop;
// those above are how others reach it.
type gatewayWorker struct {
	id          gateway.ID
	plane       *Plane
	subscribers map[*stream]struct{} // guarded by the plane's lock
	newStreams  latest.Value[[]*stream]
	newLayers   latest.Value[fileLayers]
	done        chan struct{} // closed when run has returned
	hasSet      atomic.Bool   // at least one Envoy has got a set

	// loop
	log             *slog.Logger
	snapshot        *gateway.Snapshot // as the source gave it; nil before the first
	layers          fileLayers
	stale           bool // the publisher does not have the current snapshot or layers yet
	streams         []*stream
	encoder         encoder
	balancers       *balancers
	watchProblems   []problem.Problem // why there is no newer snapshot
	compileProblems []problem.Problem // found when there last was a stream to compile for
	panicProblems   []problem.Problem // the panic of the last call of work, if it panicked
	missingTimer    *time.Timer       // fires when an Envoy has waited for its instance for long
}

// seen is the latest result of watching a gateway.
type watchResult struct {
	snapshot *gateway.Snapshot // as the source gave it; nil before the first
	problems []problem.Problem // why there is no newer snapshot
}

func newGatewayWorker(p *Plane, id gateway.ID) *gatewayWorker {
	log := p.log.With("gateway", id.String())
	return &gatewayWorker{
		id:           id,
		plane:        p,
		subscribers:  map[*stream]struct{}{},
		newStreams:   latest.New[[]*stream](),
		newLayers:    latest.New[fileLayers](),
		done:         make(chan struct{}),
		log:          log,
		encoder:      newEncoder(p.metrics, log, p.newCompiler),
		missingTimer: stopped(),
		balancers:    newBalancers(p.balancers, log),
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
func (w *gatewayWorker) run(ctx context.Context) {
	defer close(w.done)
	defer w.plane.problems.removeGateway(w.id)
	ctx, cancel := context.WithCancel(ctx)
	news := latest.New[watchResult]()
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
	w.plane.remove(w)
}

// restart is the pause between a panic and the next attempt.
const restartDelay = 5 * time.Second

// again waits for restart. It returns false if ctx ends before that.
func waitRestart(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(restartDelay):
		return true
	}
}

// watch watches the gateway until ctx ends. After a panic it keeps the last snapshot
// and starts again.
func (w *gatewayWorker) watch(ctx context.Context, put func(watchResult)) error {
	var last *gateway.Snapshot
	for {
		err := guard.Run(w.log, "watch", func() error {
			return w.plane.source.Watch(ctx, w.id, func(s *gateway.Snapshot) {
				last = s
				put(watchResult{snapshot: s})
			})
		})
		if _, panicked := errors.AsType[*guard.Error](err); !panicked {
			return err
		}
		put(watchResult{snapshot: last, problems: panicProblem(w.id, err)})
		if !waitRestart(ctx) {
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
func (w *gatewayWorker) loop(ctx context.Context, news latest.Value[watchResult]) {
	idle := time.NewTimer(w.plane.linger)
	defer idle.Stop()
	defer w.missingTimer.Stop()
	// Before anything else: a listener must not go out without the operator's
	// settings. Whoever started the worker has put them.
	w.layers = <-w.newLayers.C()
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-news.C():
			w.snapshot, w.watchProblems, w.stale = s.snapshot, s.problems, true
		case w.layers = <-w.newLayers.C():
			w.stale = true
		case <-w.balancers.changed:
			w.stale = true
		case w.streams = <-w.newStreams.C():
			idle.Reset(w.plane.linger)
		case <-w.missingTimer.C:
		case <-idle.C:
			if len(w.streams) == 0 && w.plane.removeIfUnused(w) {
				return
			}
			continue
		}
		w.work(ctx)
	}
}

// work applies what has changed. If it panics, the streams keep their sets, and the
// next change makes it run again.
func (w *gatewayWorker) work(ctx context.Context) {
	w.panicProblems = nil
	err := guard.Run(w.log, "worker", func() error {
		if w.stale {
			w.watchBalancers(ctx)
			w.rebuild()
			w.stale = false
		}
		w.publish()
		return nil
	})
	if err != nil {
		w.panicProblems = panicProblem(w.id, err)
	}
	w.report()
}

// whole gives the snapshot with what its source does not know.
func (w *gatewayWorker) withLayers() *gateway.Snapshot {
	s := *w.snapshot
	s.FileAll, s.FileGateway, s.Balancers = w.layers.all, w.layers.gateway, w.balancers.current()
	return &s
}

// follow watches the load balancers that listeners follow now.
func (w *gatewayWorker) watchBalancers(ctx context.Context) {
	if w.snapshot != nil {
		w.balancers.watchNeeded(ctx, w.withLayers())
	}
}

// renew begins a generation of sets: what they are made of has changed. An
// Envoy that comes or goes changes nothing of it.
func (w *gatewayWorker) rebuild() {
	if w.snapshot != nil {
		w.encoder.startGeneration(w.withLayers())
	}
}

// publish compiles what is not compiled yet and gives every stream whose set
// changed the new one.
func (w *gatewayWorker) publish() {
	if w.snapshot == nil {
		return
	}
	var compiling []problem.Problem
	for _, stream := range w.streams {
		set, found := w.setFor(stream)
		compiling = append(compiling, found...)
		compiling = append(compiling, w.reportMissingInstance(stream)...)
		if set != nil && set != stream.sent {
			w.hasSet.Store(true)
			stream.sent = set
			stream.put(set)
		}
	}
	if len(w.streams) > 0 {
		w.compileProblems = compiling
	}
}

// report reports all problems of the gateway.
func (w *gatewayWorker) report() {
	problems := slices.Concat(w.watchProblems, w.compileProblems, w.panicProblems)
	if s := w.snapshot; s != nil {
		problems = append(problems, s.Problems...)
	} else if len(problems) == 0 {
		return
	}
	if s := w.encoder.snapshot; s != nil {
		for _, b := range s.Balancers {
			problems = append(problems, b.Problems...)
		}
	}
	w.plane.problems.setGateway(w.id, problems)
}

// overdueAfter is how long an Envoy may wait for its registration before that is
// a problem. Whoever starts both needs a moment.
const missingAfter = 5 * time.Second

// await says that a stream has waited for its instance for long.
func (w *gatewayWorker) reportMissingInstance(stream *stream) []problem.Problem {
	if stream.sent != nil || len(w.encoder.candidates(stream.node)) > 0 {
		stream.missingSince = time.Time{}
		return nil
	}
	now := time.Now()
	if stream.missingSince.IsZero() {
		stream.missingSince = now
	}
	if left := missingAfter - now.Sub(stream.missingSince); left > 0 {
		w.missingTimer.Reset(left)
		return nil
	}
	return []problem.Problem{{
		Where: fmt.Sprintf("Envoy %q at %s", stream.node.ID, describeAddress(stream.node.Peer)),
		What: fmt.Sprintf("no instance of ingress gateway %q is registered with this service ID, so it waits and gets nothing; "+
			"register one, or give the Envoy the ID of one as its node's id", w.id),
	}}
}

// setFor gives the set of one stream; nil when there is none for it: its
// instance is not registered (it waits for that, as with Consul's own server),
// or nobody can tell which instance it is.
func (w *gatewayWorker) setFor(stream *stream) (*xds.Set, []problem.Problem) {
	candidates := w.encoder.candidates(stream.node)
	switch len(candidates) {
	case 0:
		return nil, nil
	case 1:
		return w.encoder.setFor(candidates[0], stream.node)
	}
	set, problems := w.encoder.setFor(candidates[0], stream.node)
	for _, in := range candidates[1:] {
		other, found := w.encoder.setFor(in, stream.node)
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
func (w *gatewayWorker) refuse(stream *stream, candidates []*gateway.Instance) {
	if stream.sent != nil {
		return
	}
	select {
	case stream.refused <- errAmbiguous(stream.node, candidates):
	default:
	}
}
