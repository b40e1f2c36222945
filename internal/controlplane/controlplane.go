// Package controlplane joins the stages of Usher: when an Envoy of a gateway
// connects it starts watching that gateway, compiles every snapshot for every
// kind of Envoy that is connected, and publishes the results.
//
//	demand:   xds.Server ──Supply──> Plane ──Watch──> Source
//	data:     Source ──Snapshot──> worker ──Compile, encode──> xds.Set ──put──> xds.Server
//
// There is one worker for each gateway with at least one Envoy, and one
// goroutine in it that owns everything about that gateway. It is the only
// package on the way that imports its neighbours.
package controlplane

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/xds"
)

// Source watches the facts about gateways. Watch calls put with a new snapshot
// whenever one of them changed, until ctx ends; put never blocks. It returns
// nil only when ctx has ended.
type Source interface {
	Watch(ctx context.Context, id gateway.ID, put func(*gateway.Snapshot)) error
}

// DefaultMaxGateways is the default of Options.MaxGateways.
const DefaultMaxGateways = 1000

// MetadataKeys are the keys of an Envoy's node metadata that a Plane reads.
var MetadataKeys = []string{"node_name", "namespace", "partition"}

// Options are the parts and settings of a Plane. All but Balancers, MaxGateways and
// Linger are required.
type Options struct {
	Source Source
	// Balancers tells what listeners with the mode auto follow. Nil: nothing, as
	// outside Kubernetes.
	Balancers Balancers
	Logger    *slog.Logger
	Metrics   *Metrics
	Problems  *Problems
	// MaxGateways bounds the gateways that a Plane watches at the same time. Zero
	// means DefaultMaxGateways.
	MaxGateways int
	// Linger is how long a gateway is still watched after its last Envoy has
	// gone, so that one that reconnects finds everything ready. Zero means
	// 30 seconds.
	Linger time.Duration
}

// fileLayers are what the config file says about one gateway.
type fileLayers struct{ all, gateway settings.Layer }

func layersOf(f settings.File, id gateway.ID) fileLayers {
	return fileLayers{all: f.All, gateway: f.Gateways[id.Name]}
}

// Plane supplies Envoys with resources. It implements xds.ResourceSource. Use New,
// and let Run run.
type Plane struct {
	source      Source
	balancers   Balancers
	log         *slog.Logger
	metrics     *Metrics
	problems    *Problems
	linger      time.Duration
	maxGateways int                 // the highest number of workers
	running     chan struct{}       // closed when Run takes starts
	starts      chan *gatewayWorker // workers for Run to run
	ended       chan struct{}       // closed when Run takes no more

	newCompiler func() compiler

	mu         sync.Mutex // guards what follows
	workers    map[gateway.ID]*gatewayWorker
	configFile settings.File
}

// New gives a plane that supplies nobody until Run runs.
func New(o Options) *Plane {
	if o.Linger == 0 {
		o.Linger = 30 * time.Second
	}
	return &Plane{
		source:      o.Source,
		balancers:   o.Balancers,
		log:         o.Logger,
		metrics:     o.Metrics,
		problems:    o.Problems,
		linger:      o.Linger,
		maxGateways: cmp.Or(o.MaxGateways, DefaultMaxGateways),
		running:     make(chan struct{}),
		starts:      make(chan *gatewayWorker),
		ended:       make(chan struct{}),
		workers:     map[gateway.ID]*gatewayWorker{},

		newCompiler: newCompiler,
	}
}

// Run lets the plane work until ctx ends, and returns when all its workers
// have ended. It must be called once.
func (p *Plane) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	defer close(p.ended)
	close(p.running)
	for {
		select {
		case <-ctx.Done():
			return nil
		case w := <-p.starts:
			workers.Go(func() { w.run(ctx) })
		}
	}
}

// SetConfigFile replaces the content of the config file.
func (p *Plane) SetConfigFile(f settings.File) {
	p.problems.Report("the config file", f.Problems)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.configFile = f
	for id, w := range p.workers {
		w.newLayers.Put(layersOf(f, id))
	}
}

// Watch implements xds.ResourceSource: the node's cluster names the gateway, its id
// the instance.
func (p *Plane) Watch(ctx context.Context, n xds.Node, put func(*xds.Set)) error {
	id, err := GatewayOf(n)
	if err != nil {
		return err
	}
	select {
	case <-p.running:
	case <-ctx.Done():
		return nil
	}
	s := &stream{node: n, put: put, refused: make(chan error, 1)}
	w, err := p.subscribe(id, s)
	if err != nil {
		return err
	}
	defer p.unsubscribe(w, s)
	select {
	case err := <-s.refused:
		return err
	case <-ctx.Done():
		return nil
	case <-w.done:
		return status.Error(codes.Unavailable, "usher is shutting down")
	}
}

// GatewayOf gives the gateway that a node belongs to. An error is a status
// error that says what the node lacks.
func GatewayOf(n xds.Node) (gateway.ID, error) {
	if n.ID == "" || n.Cluster == "" {
		return gateway.ID{}, status.Error(codes.InvalidArgument,
			"the Envoy's node needs an id (the gateway's service ID) and a cluster (the gateway's service name); "+
				"bootstraps of \"consul connect envoy -gateway=ingress\" and \"usher bootstrap\" have both")
	}
	return gateway.ID{
		Name:      n.Cluster,
		Namespace: gateway.OmitDefault(n.Metadata["namespace"]),
		Partition: gateway.OmitDefault(n.Metadata["partition"]),
	}, nil
}

// HasSet reports whether at least one gateway has a set for its Envoys, even if the
// source does not answer now.
func (p *Plane) HasSet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		if w.hasSet.Load() {
			return true
		}
	}
	return false
}

// join adds s to the gateway's worker, and starts the worker when s is the
// first. An error is a gRPC status.
func (p *Plane) subscribe(id gateway.ID, s *stream) (*gatewayWorker, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.workers[id]
	if w == nil {
		if len(p.workers) >= p.maxGateways {
			p.metrics.refusedGateways.Inc()
			return nil, status.Errorf(codes.ResourceExhausted, "gateway %q is not served: %d others are already (usher serve --max-gateways)", id, len(p.workers))
		}
		w = newGatewayWorker(p, id)
		w.newLayers.Put(layersOf(p.configFile, id))
		select {
		case p.starts <- w:
		case <-p.ended:
			return nil, status.Error(codes.Unavailable, "usher is shutting down")
		}
		p.workers[id] = w
	}
	w.subscribers[s] = struct{}{}
	w.newStreams.Put(slices.Collect(maps.Keys(w.subscribers)))
	return w, nil
}

func (p *Plane) unsubscribe(w *gatewayWorker, s *stream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(w.subscribers, s)
	w.newStreams.Put(slices.Collect(maps.Keys(w.subscribers)))
}

// retire forgets a worker that has nobody to work for; it says false when
// somebody has joined meanwhile.
func (p *Plane) removeIfUnused(w *gatewayWorker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(w.subscribers) > 0 {
		return false
	}
	delete(p.workers, w.id)
	return true
}

// forget takes a worker that has ended out of the way of the next one.
func (p *Plane) remove(w *gatewayWorker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.workers[w.id] == w {
		delete(p.workers, w.id)
	}
}
