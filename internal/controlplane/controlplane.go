// Package controlplane connects the stages of Usher. When an Envoy of a gateway connects, it starts to watch that
// gateway, compiles each snapshot for the connected Envoys, and publishes the results.
//
//	demand:   xds.Server ──Watch──> Plane ──Watch──> Source
//	data:     Source ──Snapshot──> gatewayWorker ──Compile, encode──> xds.Set ──put──> xds.Server
//
// Each gateway with at least one Envoy, and each one of Options.Gateways, has a worker, whose one goroutine owns
// everything about that gateway. No other package on the data's way imports its neighbours.
package controlplane

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/latest"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/listeners"
	"github.com/usherproxy/usher/xds"
)

// Source watches gateways. Watch calls put with a new snapshot after each change, until ctx ends; put never blocks.
// If it returns before, it is called again, and what was put last stays.
type Source interface {
	Watch(ctx context.Context, id gateway.ID, put func(*gateway.Snapshot)) error
	// WatchNames calls put with the sorted names of all gateways that the source has, as Watch does. Nil: they are not
	// known.
	WatchNames(ctx context.Context, put func([]string)) error
}

// DefaultMaxGateways is the default of Options.MaxGateways.
const DefaultMaxGateways = 1000

// MetadataKeys are the keys of an Envoy's node metadata that a Plane reads.
var MetadataKeys = []string{"node_name", "namespace", "partition"}

// Options are the parts and settings of a Plane. All but Balancers, Gateways, Connections, MaxGateways, Preview and Linger
// are required.
type Options struct {
	Source    Source
	Balancers BalancerSource // nil outside Kubernetes
	Logger    *slog.Logger
	Metrics   *Metrics
	Problems  *Problems
	// Gateways are watched without an Envoy, too, while the Plane runs. So their first Envoy does not wait, and Usher
	// notices that none connects.
	Gateways    []gateway.ID
	Connections ConnectionSource // nil: Envoys report nothing
	MaxGateways int              // how many gateways a Plane watches at the same time; zero means DefaultMaxGateways
	// Preview gets what the instances of each of Gateways would get, after each change, without an Envoy. It may be nil.
	Preview *PreviewOptions
	// Linger is how long a gateway is watched after its last Envoy has disconnected, so that an Envoy that
	// reconnects does not wait. Zero means 30 seconds.
	Linger time.Duration
}

// inputs are what the worker of a gateway gets from its plane.
type inputs struct {
	layers  fileLayers
	reports evidence.Key // for listeners that report their connections; zero: none does
}

// fileLayers are what the config file says about one gateway.
type fileLayers struct{ all, gateway settings.Layer }

func layersOf(f settings.File, id gateway.ID) fileLayers {
	return fileLayers{all: f.All, gateway: f.Gateways[id.Name]}
}

// Plane supplies Envoys with resources. It implements xds.ResourceSource. Use New and Run.
type Plane struct {
	options     Options
	newCompiler func(reports evidence.Key) compiler
	running     chan struct{}       // closed when Run begins to receive from starts
	starts      chan *gatewayWorker // workers for Run to run
	ended       chan struct{}       // closed when Run has stopped receiving
	changes     changes

	mu         sync.Mutex // guards what follows
	workers    map[gateway.ID]*gatewayWorker
	configFile configFile
	reports    evidence.Key
}

// New returns a plane that supplies no Envoys until Run runs.
func New(o Options) *Plane {
	o.Linger = cmp.Or(o.Linger, 30*time.Second)
	o.MaxGateways = cmp.Or(o.MaxGateways, DefaultMaxGateways)
	return &Plane{
		options: o, newCompiler: func(reports evidence.Key) compiler { return &listeners.Compiler{Reports: reports} },
		running: make(chan struct{}), starts: make(chan *gatewayWorker), ended: make(chan struct{}),
		workers: map[gateway.ID]*gatewayWorker{},
	}
}

// Run runs the plane until ctx ends, and returns when all its workers have ended. It must be called once.
func (p *Plane) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	defer close(p.ended)
	for _, w := range p.permanentWorkers() {
		workers.Go(func() { w.run(ctx) })
	}
	workers.Go(func() { p.watchNames(ctx) })
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

// SetReportKey replaces the key of the reports of connections. Without one, which is the beginning, listeners report
// nothing. Another key changes all listeners.
func (p *Plane) SetReportKey(k evidence.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reports = k
	p.putInputs()
}

// putInputs gives all workers what they get now. The caller holds mu.
func (p *Plane) putInputs() {
	for id, w := range p.workers {
		w.newInputs.Put(p.inputsOf(id))
	}
}

// inputsOf returns what the worker of a gateway gets now. The caller holds mu.
func (p *Plane) inputsOf(id gateway.ID) inputs {
	return inputs{layers: layersOf(p.configFile.effective, id), reports: p.reports}
}

// Watch implements xds.ResourceSource: the node's cluster names the gateway, its id the instance.
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
	s := &stream{node: n, put: put, refused: latest.New[error]()}
	w, err := p.subscribe(id, s)
	if err != nil {
		return err
	}
	defer p.unsubscribe(w, s)
	select {
	case err := <-s.refused.C():
		return err
	case <-ctx.Done():
		return nil
	case <-w.done:
		return status.Error(codes.Unavailable, "usher is shutting down")
	}
}

// GatewayOf returns the gateway that a node belongs to. An error is a gRPC status that says what the node lacks.
func GatewayOf(n xds.Node) (gateway.ID, error) {
	if n.ID == "" || n.Cluster == "" {
		return gateway.ID{}, status.Error(codes.InvalidArgument,
			"the Envoy's node needs an id (the gateway's service ID) and a cluster (the gateway's service name); "+
				"use a bootstrap of \"consul connect envoy -gateway=ingress\" or \"usher bootstrap\", which has both")
	}
	return gateway.ID{
		Name:      n.Cluster,
		Namespace: gateway.OmitDefault(n.Metadata["namespace"]),
		Partition: gateway.OmitDefault(n.Metadata["partition"]),
	}, nil
}

// HasSet reports whether at least one gateway has a set for its Envoys that was not restored, even if the source does not
// answer now.
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

// permanentWorkers returns new workers for the gateways that are watched without an Envoy.
func (p *Plane) permanentWorkers() []*gatewayWorker {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range p.options.Gateways {
		w := newGatewayWorker(p, id)
		w.permanent = true
		p.workers[id] = w
	}
	return slices.Collect(maps.Values(p.workers))
}

// subscribe adds a stream to the gateway's worker, and starts the worker for the first stream. An error is a gRPC
// status.
func (p *Plane) subscribe(id gateway.ID, s *stream) (*gatewayWorker, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.workers[id]
	if w == nil {
		if len(p.workers) >= p.options.MaxGateways {
			p.options.Metrics.refusedGateways.Inc()
			return nil, status.Errorf(codes.ResourceExhausted,
				"usher does not serve gateway %q: it serves %d of at most %d gateways; raise --max-gateways, or stop Envoys of gateways that you do not need",
				id, len(p.workers), p.options.MaxGateways)
		}
		w = newGatewayWorker(p, id)
		select {
		case p.starts <- w:
		case <-p.ended:
			return nil, status.Error(codes.Unavailable, "usher is shutting down")
		}
		p.workers[id] = w
		p.applyConfigFile()
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

// removeIfUnused removes a worker without streams that is not permanent. It reports whether it did: a stream may have
// subscribed meanwhile.
func (p *Plane) removeIfUnused(w *gatewayWorker) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.permanent || len(w.subscribers) > 0 {
		return false
	}
	p.forget(w)
	return true
}

// forget removes a worker with its problems and metrics. The next worker of the gateway begins after that. The caller
// holds mu.
func (p *Plane) forget(w *gatewayWorker) {
	delete(p.workers, w.id)
	p.options.Problems.removeGateway(w.id)
	p.options.Metrics.removeGateway(w.id)
}

// Metrics are the metrics of a Plane. Use NewMetrics.
type Metrics struct {
	compileDuration        prometheus.Histogram
	refusedGateways        prometheus.Counter
	envoys                 *prometheus.GaugeVec
	instances              *prometheus.GaugeVec
	proxyProtocolInstances *prometheus.GaugeVec
	headersOnly            *prometheus.GaugeVec
	listeners              *prometheus.GaugeVec
}

// NewMetrics registers the metrics of a plane.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		compileDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "usher_compile_duration_seconds",
			Help:    "Time to compile and encode the resources for all Envoys that get the same ones.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8),
		}),
		refusedGateways: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "usher_refused_gateways_total",
			Help: "Streams refused because Usher already served --max-gateways gateways.",
		}),
		envoys: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_gateway_envoys",
			Help: "Envoys of a gateway that are connected to this Usher.",
		}, []string{"gateway"}),
		instances: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_gateway_instances",
			Help: "Registered instances of a gateway. If all replicas together have fewer Envoys (usher_gateway_envoys), some do not run or are not connected to Usher.",
		}, []string{"gateway"}),
		proxyProtocolInstances: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_gateway_proxy_protocol_instances",
			Help: "Registered instances of a gateway with a listener that accepts PROXY headers. " +
				"If all replicas together have fewer Envoys (usher_gateway_envoys), some run on Consul's own xDS.",
		}, []string{"gateway"}),
		headersOnly: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_listener_headers_only",
			Help: "Whether all connections to a permissive listener have begun with a PROXY header for ten minutes, and none came " +
				"from outside trusted_cidrs, so that its mode can be strict: 1, else 0. Only of listeners whose mode is set, as far as Envoys report to this Usher.",
		}, []string{"gateway", "port"}),
		listeners: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_listener_info",
			Help: "The mode of PROXY protocol that a listener has in the Envoys of this Usher, and where it is set, in the labels. " +
				"A listener has several series only while its instances have different modes. The value is always 1.",
		}, []string{"gateway", "port", "mode", "source"}),
	}
	r.MustRegister(m.compileDuration, m.refusedGateways, m.envoys, m.instances, m.proxyProtocolInstances, m.headersOnly, m.listeners)
	return m
}

// setGateway sets how many Envoys of a gateway are connected, how many instances are registered, and how many of them
// accept PROXY headers.
func (m *Metrics) setGateway(id gateway.ID, envoys, instances, proxyProtocolInstances int) {
	m.envoys.WithLabelValues(id.String()).Set(float64(envoys))
	m.instances.WithLabelValues(id.String()).Set(float64(instances))
	m.proxyProtocolInstances.WithLabelValues(id.String()).Set(float64(proxyProtocolInstances))
}

// setListeners replaces the listeners of a gateway.
func (m *Metrics) setListeners(id gateway.ID, before, now map[listenerInfo]struct{}) {
	labels := func(l listenerInfo) []string {
		return []string{id.String(), strconv.Itoa(l.port), string(l.mode), l.source}
	}
	for l := range before {
		if _, stays := now[l]; !stays {
			m.listeners.DeleteLabelValues(labels(l)...)
		}
	}
	for l := range now {
		m.listeners.WithLabelValues(labels(l)...).Set(1)
	}
}

// setHeadersOnly sets which permissive listeners of a gateway can be strict.
func (m *Metrics) setHeadersOnly(id gateway.ID, all map[evidence.PortMode]shown) {
	m.headersOnly.DeletePartialMatch(prometheus.Labels{"gateway": id.String()})
	for of, s := range all {
		if of.Mode == settings.Permissive {
			value := 0.0
			if s.conclusion == headersOnly {
				value = 1
			}
			m.headersOnly.WithLabelValues(id.String(), strconv.Itoa(of.Port)).Set(value)
		}
	}
}

// removeGateway removes the series of a gateway that is no longer watched.
func (m *Metrics) removeGateway(id gateway.ID) {
	m.envoys.DeleteLabelValues(id.String())
	m.instances.DeleteLabelValues(id.String())
	m.listeners.DeletePartialMatch(prometheus.Labels{"gateway": id.String()})
	m.proxyProtocolInstances.DeleteLabelValues(id.String())
	m.headersOnly.DeletePartialMatch(prometheus.Labels{"gateway": id.String()})
}
