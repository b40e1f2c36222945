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

// stream is one Envoy's stream.
type stream struct {
	node    xds.Node
	put     func(*xds.Set)
	refused latest.Value[error] // ends the stream

	// The worker's loop owns what follows.
	sent         *xds.Set  // the argument of the last put
	missingSince time.Time // when its instance was first not registered; zero: it is, or was
}

// gatewayWorker does the work for one gateway. Other goroutines than its loop use only the fields above the empty line.
type gatewayWorker struct {
	id          gateway.ID
	plane       *Plane
	subscribers map[*stream]struct{} // guarded by the plane's lock
	newStreams  latest.Value[[]*stream]
	newLayers   latest.Value[fileLayers]
	done        chan struct{} // closed when run has returned
	hasSet      atomic.Bool   // at least one Envoy has got a set
	permanent   bool          // it does not end with its last stream
	log         *slog.Logger

	snapshot        *gateway.Snapshot // from the source; nil before the first
	layers          fileLayers
	stale           bool // the encoder does not have the current snapshot, layers or load balancers yet
	streams         []*stream
	encoder         encoder
	balancers       *balancers
	watchProblems   []problem.Problem // why there is no newer snapshot
	compileProblems []problem.Problem // of the last time that there was a stream
	panicProblems   []problem.Problem // of the last call of work
	missingTimer    <-chan time.Time  // for the next Envoy whose instance is missing for too long
	unserved        unserved
}

// snapshotUpdate is the latest result of watching a gateway.
type snapshotUpdate struct {
	snapshot *gateway.Snapshot // from the source; nil before the first
	problems []problem.Problem // why there is no newer snapshot
}

// newGatewayWorker returns a worker that has the settings of the config file. The caller holds the plane's lock.
func newGatewayWorker(p *Plane, id gateway.ID) *gatewayWorker {
	log := p.options.Logger.With("gateway", id.String())
	w := &gatewayWorker{
		id: id, plane: p, subscribers: map[*stream]struct{}{}, done: make(chan struct{}), log: log,
		newStreams: latest.New[[]*stream](), newLayers: latest.New[fileLayers](),
		encoder:   newEncoder(p.options.Metrics, log, p.newCompiler),
		balancers: newBalancers(p.options.Balancers, log),
	}
	w.newLayers.Put(layersOf(p.configFile, id))
	return w
}

// run watches the gateway and does its work until ctx ends or, if the worker is not permanent, until the gateway had no
// stream for the plane's linger time.
func (w *gatewayWorker) run(ctx context.Context) {
	defer close(w.done)
	ctx, cancel := context.WithCancel(ctx)
	updates := latest.New[snapshotUpdate]()
	watching := make(chan error, 1)
	go func() {
		defer cancel()
		watching <- w.watch(ctx, updates.Put)
	}()
	w.loop(ctx, updates)
	cancel()
	w.balancers.stop()
	if err := <-watching; err != nil {
		w.log.Error("watch of the gateway ended", "error", err)
	}
	w.plane.remove(w)
}

// watch watches the gateway until ctx ends. After a panic it keeps the last snapshot and starts again.
func (w *gatewayWorker) watch(ctx context.Context, put func(snapshotUpdate)) error {
	var last *gateway.Snapshot
	return repeatAfterPanic(ctx, w.log, "watch", func() error {
		return w.plane.options.Source.Watch(ctx, w.id, func(s *gateway.Snapshot) {
			last = s
			put(snapshotUpdate{snapshot: s})
		})
	}, func(err error) { put(snapshotUpdate{snapshot: last, problems: panicProblem(w.id, err)}) })
}

// restartDelay is the pause between a panic and the next attempt.
const restartDelay = 5 * time.Second

// repeatAfterPanic runs f as guard.Run does. After a panic it reports the error, and runs f again until ctx ends.
func repeatAfterPanic(ctx context.Context, log *slog.Logger, part string, f func() error, report func(error)) error {
	for {
		err := guard.Run(log, part, f)
		if _, panicked := errors.AsType[*guard.Error](err); !panicked {
			return err
		}
		report(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(restartDelay):
		}
	}
}

// panicProblem returns the problem for a panic in the work for a gateway.
func panicProblem(id gateway.ID, err error) []problem.Problem {
	return []problem.Problem{{
		Where: fmt.Sprintf("gateway %q", id),
		What:  err.Error() + ". Until Usher recovers, the gateway's Envoys keep what they have",
	}}
}

// loop waits in one place for everything that can change what Envoys get: a snapshot, the config file, load
// balancers, streams, an instance that is missing, and the end.
func (w *gatewayWorker) loop(ctx context.Context, updates latest.Value[snapshotUpdate]) {
	idle := time.NewTimer(w.plane.options.Linger)
	defer idle.Stop()
	// The settings of the config file come first: no listener must be sent without them. The worker is started after
	// they are put.
	w.layers = <-w.newLayers.C()
	for {
		select {
		case <-ctx.Done():
			return
		case u := <-updates.C():
			w.snapshot, w.watchProblems, w.stale = u.snapshot, u.problems, true
		case w.layers = <-w.newLayers.C():
			w.stale = true
		case <-w.balancers.changed.C():
			w.stale, w.unserved.outdated = true, true
		case w.streams = <-w.newStreams.C():
			idle.Reset(w.plane.options.Linger)
		case <-w.missingTimer:
		case <-w.unserved.timer:
		case <-idle.C:
			if len(w.streams) == 0 && w.plane.removeIfUnused(w) {
				return
			}
			continue
		}
		w.work(ctx)
	}
}

// work applies the changes. If it panics, the streams keep their sets, and the next change runs it again.
func (w *gatewayWorker) work(ctx context.Context) {
	w.panicProblems = nil
	err := guard.Run(w.log, "worker", func() error {
		if w.snapshot == nil {
			return nil
		}
		if w.stale {
			if w.balancers.watchNeeded(ctx, w.fullSnapshot()) {
				w.unserved.outdated = true
			}
			w.encoder.startGeneration(w.fullSnapshot())
			w.stale = false
		}
		w.publish()
		w.checkServed()
		return nil
	})
	if err != nil {
		w.panicProblems = panicProblem(w.id, err)
	}
	w.report()
}

// fullSnapshot returns the snapshot with what its source does not know.
func (w *gatewayWorker) fullSnapshot() *gateway.Snapshot {
	s := *w.snapshot
	s.FileAll, s.FileGateway, s.Balancers = w.layers.all, w.layers.gateway, w.balancers.current()
	return &s
}

// publish gives each stream its set if it differs from the last one. It compiles what is not compiled yet.
func (w *gatewayWorker) publish() {
	var problems []problem.Problem
	for _, s := range w.streams {
		set, found := w.resourceSetFor(s)
		problems = append(problems, found...)
		problems = append(problems, w.reportMissingInstance(s)...)
		if set != nil && set != s.sent {
			w.hasSet.Store(true)
			s.sent = set
			s.put(set)
		}
	}
	if len(w.streams) > 0 {
		w.compileProblems = problems
	}
}

// report reports all problems of the gateway.
func (w *gatewayWorker) report() {
	problems := slices.Concat(w.watchProblems, w.compileProblems, w.panicProblems)
	if w.snapshot != nil {
		problems = append(problems, w.snapshot.Problems...)
	} else if len(problems) == 0 {
		return
	}
	if s := w.encoder.snapshot; s != nil {
		for _, b := range s.Balancers {
			problems = append(problems, b.Problems...)
		}
	}
	w.plane.options.Problems.setGateway(w.id, problems)
}

// missingAfter is how long an instance may be unregistered before that is a problem: Envoys and registrations start
// at the same time.
const missingAfter = 5 * time.Second

// reportMissingInstance returns a problem if a stream's instance has not been registered for missingAfter.
func (w *gatewayWorker) reportMissingInstance(s *stream) []problem.Problem {
	if s.sent != nil || len(w.encoder.candidates(s.node)) > 0 {
		s.missingSince = time.Time{}
		return nil
	}
	now := time.Now()
	if s.missingSince.IsZero() {
		s.missingSince = now
	}
	if left := missingAfter - now.Sub(s.missingSince); left > 0 {
		w.missingTimer = time.After(left)
		return nil
	}
	return []problem.Problem{{
		Where: describeEnvoy(s.node),
		What: fmt.Sprintf("it gets no resources: gateway %q has no instance with the service ID %q; "+
			"register it, or start the Envoy with the ID of a registered instance", w.id, s.node.ID),
	}}
}

// resourceSetFor returns the set for a stream. It is nil while the stream's instance is not registered (the stream waits for
// it, as with Consul's own server), and if several instances with different sets may be the stream's.
func (w *gatewayWorker) resourceSetFor(s *stream) (set *xds.Set, problems []problem.Problem) {
	candidates := w.encoder.candidates(s.node)
	for i, in := range candidates {
		other, found := w.encoder.resourceSetFor(in, s.node)
		problems = append(problems, found...)
		switch {
		case i == 0:
			set = other
		case !equalSets(other, set):
			if s.sent == nil { // otherwise the Envoy keeps its resources
				s.refused.Put(ambiguousError(s.node, candidates))
			}
			return nil, problems
		}
	}
	return set, problems
}
