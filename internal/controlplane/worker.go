package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/latest"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/retry"
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
	newInputs   latest.Value[inputs]
	done        chan struct{}        // closed when run has returned
	hasSet      atomic.Bool          // at least one Envoy has got a set that is not restored
	view        atomic.Pointer[view] // nil before the first call of work
	permanent   bool                 // it does not end with its last stream
	log         *slog.Logger

	snapshot        *gateway.Snapshot // from the source; nil before the first
	inputs          inputs
	stale           bool // the encoder does not have the current snapshot, inputs or load balancers yet
	streams         []*stream
	encoder         encoder
	balancers       *balancers
	watchProblems   []problem.Problem // why there is no newer snapshot
	compileProblems []problem.Problem // of the last time that there was a stream
	panicProblems   []problem.Problem // of the last call of work
	missingTimer    <-chan time.Time  // for the next Envoy whose instance is missing for too long
	unserved        unserved
	connections     connections
	preview         Preview           // of the last call of work; if there are PreviewOptions
	connected       map[envoyKey]bool // the keys of the Envoys, of the last call of work
	served          map[envoyKey]bool // those of connected that have a set
	modes           modes
	shownListeners  map[listenerInfo]struct{} // in the metric
	modesOutdated   bool                      // all of modes
	servedChanged   bool                      // modes lack listeners, or have those of Envoys that have left
}

// snapshotUpdate is the latest result of watching a gateway.
type snapshotUpdate struct {
	snapshot *gateway.Snapshot // from the source; nil before the first
	problems []problem.Problem // why there is no newer snapshot
}

// newGatewayWorker returns a worker that has its inputs. The caller holds the plane's lock.
func newGatewayWorker(p *Plane, id gateway.ID) *gatewayWorker {
	log := p.options.Logger.With("gateway", id.String())
	w := &gatewayWorker{
		id: id, plane: p, subscribers: map[*stream]struct{}{}, done: make(chan struct{}), log: log,
		newStreams: latest.New[[]*stream](), newInputs: latest.New[inputs](),
		encoder:   newEncoder(p.options.Metrics, log, p.newCompiler),
		balancers: newBalancers(p.options.Balancers, id, log), connections: connections{source: p.options.Connections},
	}
	w.newInputs.Put(p.inputsOf(id))
	return w
}

// run watches the gateway and does its work until ctx ends or, if the worker is not permanent, until the gateway had no
// stream for the plane's linger time.
func (w *gatewayWorker) run(ctx context.Context) {
	defer close(w.done)
	ctx, cancel := context.WithCancel(ctx)
	updates := latest.New[snapshotUpdate]()
	var watching sync.WaitGroup
	watching.Go(func() { w.watch(ctx, updates.Put) })
	w.loop(ctx, updates)
	cancel()
	w.balancers.stop()
	watching.Wait()
}

// watch watches the gateway until ctx ends. When the source's watch ends before, the last snapshot stays.
func (w *gatewayWorker) watch(ctx context.Context, put func(snapshotUpdate)) {
	var last *gateway.Snapshot
	watchAgain(ctx, w.log, "watch", func() error {
		return w.plane.options.Source.Watch(ctx, w.id, func(s *gateway.Snapshot) {
			last = s
			put(snapshotUpdate{snapshot: s})
		})
	}, func(err error) { put(snapshotUpdate{snapshot: last, problems: failureProblem(w.id, err)}) })
}

// watchAgain runs watch as guard.Run does. When it ends before ctx, watchAgain reports why, and runs it again after a
// pause. A watch that lasted for longer than the longest pause was good.
func watchAgain(ctx context.Context, log *slog.Logger, part string, watch func() error, report func(error)) {
	for failures := 1; ; failures++ {
		begin := time.Now()
		err := guard.Run(log, part, watch)
		if ctx.Err() != nil {
			return
		}
		if _, panicked := errors.AsType[*guard.Error](err); !panicked {
			err = earlyEnd(err)
		}
		report(err)
		if time.Since(begin) > retry.LongestPause {
			failures = 1
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry.Pause(failures)):
		}
	}
}

// earlyEnd returns the error of a watch that ended before its context did, with the watch's own error or nil.
func earlyEnd(err error) error {
	return fmt.Errorf("the watch ended: %w; report it if this lasts", cmp.Or(err, errors.New("no reason given")))
}

// failureProblem returns the problem for work for a gateway that has panicked, or a watch of it that has ended.
func failureProblem(id gateway.ID, err error) []problem.Problem {
	return []problem.Problem{{
		Where: fmt.Sprintf("gateway %q", id),
		What:  err.Error() + ". Until Usher recovers, the gateway's Envoys keep what they have",
	}}
}

// loop waits in one place for everything that can change what Envoys get: a snapshot, its inputs, load balancers,
// streams, an instance that is missing, and the end.
func (w *gatewayWorker) loop(ctx context.Context, updates latest.Value[snapshotUpdate]) {
	idle := time.NewTimer(w.plane.options.Linger)
	defer idle.Stop()
	// The settings of the config file come first: no listener must be sent without them. The worker is started after
	// they are put.
	w.inputs = <-w.newInputs.C()
	for {
		select {
		case <-ctx.Done():
			return
		case u := <-updates.C():
			w.snapshot, w.watchProblems, w.stale = u.snapshot, u.problems, true
		case w.inputs = <-w.newInputs.C():
			w.stale = true
		case <-w.balancers.changed.C():
			w.stale, w.unserved.outdated, w.modesOutdated = true, true, true
		case streams := <-w.newStreams.C():
			idle.Reset(w.plane.options.Linger)
			w.setStreams(streams)
		case <-w.missingTimer:
		case <-w.unserved.timer:
		case <-w.connections.timer:
		case <-idle.C:
			if len(w.streams) == 0 && w.plane.removeIfUnused(w) {
				return
			}
			continue
		}
		w.work(ctx)
	}
}

// setStreams replaces the streams. It ends the changes of those that are gone, because the same goroutine begins changes: one
// that began after its stream had ended would wait without end.
func (w *gatewayWorker) setStreams(now []*stream) {
	stays := make(map[*stream]bool, len(now))
	for _, s := range now {
		stays[s] = true
	}
	for _, s := range w.streams {
		if !stays[s] {
			w.plane.changes.end(s.node.Stream)
		}
	}
	w.streams = now
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
				w.unserved.outdated, w.modesOutdated = true, true
			}
			w.encoder.startGeneration(w.fullSnapshot(), w.inputs.reports)
			w.stale = false
		}
		w.publish()
		w.updateServed()
		w.checkServed()
		w.checkModes()
		w.checkConnections()
		w.publishView()
		return nil
	})
	if err != nil {
		w.panicProblems = failureProblem(w.id, err)
	}
	w.report()
}

// fullSnapshot returns the snapshot with what its source does not know.
func (w *gatewayWorker) fullSnapshot() *gateway.Snapshot {
	s := *w.snapshot
	s.FileAll, s.FileGateway, s.Balancers = w.inputs.layers.all, w.inputs.layers.gateway, w.balancers.current()
	return &s
}

// publish gives each stream its set if it differs from the last one. It compiles what is not compiled yet.
func (w *gatewayWorker) publish() {
	var problems []problem.Problem
	ofEnvoys := map[problem.Problem][]string{}
	var updates []update
	defer func() { w.send(updates) }() // also if a compile panics: the Envoys before get theirs
	for _, s := range w.streams {
		set, found := w.resourceSetFor(s)
		for _, p := range found {
			if p.OfEnvoy {
				ofEnvoys[p] = append(ofEnvoys[p], describeEnvoy(s.node))
			} else {
				problems = append(problems, p)
			}
		}
		problems = append(problems, w.reportMissingInstance(s)...)
		if set != nil && set != s.sent {
			updates = append(updates, update{s, set})
		}
	}
	for p, envoys := range ofEnvoys {
		p.What += "; this concerns " + listEnvoys(envoys)
		problems = append(problems, p)
	}
	w.preview, problems = w.compilePreview(problems)
	if len(w.streams) > 0 || w.plane.options.Preview != nil {
		w.compileProblems = problems
	}
}

// send gives streams their next sets.
func (w *gatewayWorker) send(updates []update) {
	w.plane.changes.begin(w.id, updates)
	for _, u := range updates {
		if u.set != nil && u.set.Restored().IsZero() {
			w.hasSet.Store(true)
		}
		u.stream.sent = u.set
		u.stream.put(u.set)
	}
}

// report reports all problems of the gateway, and with them the preview.
func (w *gatewayWorker) report() {
	problems := w.problems()
	if w.snapshot == nil && len(problems) == 0 {
		return
	}
	w.plane.options.Problems.setGateway(w.id, problems)
	if p := w.plane.options.Preview; p != nil {
		w.preview.Problems = problems
		p.Put(w.preview)
	}
}

// problems returns all problems of the gateway.
func (w *gatewayWorker) problems() []problem.Problem {
	problems := slices.Concat(w.watchProblems, w.compileProblems, w.panicProblems, w.connections.problems(w.id))
	if w.snapshot != nil {
		problems = append(problems, w.snapshot.Problems...)
	}
	if s := w.encoder.snapshot; s != nil {
		for _, b := range s.Balancers {
			problems = append(problems, b.Problems...)
		}
	}
	return problems
}

// missingAfter is how long an instance may be unregistered before that is a problem: Envoys and registrations start
// at the same time.
const missingAfter = 5 * time.Second

// reportMissingInstance returns a problem if a stream's instance has not been registered for missingAfter.
func (w *gatewayWorker) reportMissingInstance(s *stream) []problem.Problem {
	if s.sent != nil || len(w.encoder.instances.candidates(s.node)) > 0 {
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
		Severity: problem.Outage,
	}}
}

// resourceSetFor returns the set for a stream. It is nil while the stream's instance is not registered (the stream waits for
// it, as with Consul's own server), and if several instances with different sets may be the stream's.
func (w *gatewayWorker) resourceSetFor(s *stream) (set *xds.Set, problems []problem.Problem) {
	candidates := w.encoder.instances.candidates(s.node)
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
