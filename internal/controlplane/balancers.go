package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// Balancers watches what load balancers were told. Watch calls put with what
// follows from that for the listeners behind a Service, whenever it changes,
// until ctx ends; put never blocks.
type Balancers interface {
	Watch(ctx context.Context, service gateway.KubernetesService, put func(*gateway.Balancer))
}

// balancers are those in front of one gateway's instances, as far as a listener
// follows them. They belong to the worker's loop; only hear is called by others.
type balancers struct {
	source  Balancers // nil: Usher does not ask Kubernetes
	log     *slog.Logger
	inputs  balancerInputs
	watches map[gateway.KubernetesService]context.CancelFunc
	running sync.WaitGroup
	changed chan struct{} // has a value when there is something new

	mu    sync.Mutex // guards what follows
	known map[gateway.KubernetesService]*gateway.Balancer
}

// needs is everything that the Services to watch follow from.
type balancerInputs struct {
	entry     *gateway.Entry
	instances []*gateway.Instance
	layers    [3]settings.Layer
}

func newBalancers(source Balancers, log *slog.Logger) *balancers {
	return &balancers{
		source:  source,
		log:     log,
		watches: map[gateway.KubernetesService]context.CancelFunc{},
		changed: make(chan struct{}, 1),
		known:   map[gateway.KubernetesService]*gateway.Balancer{},
	}
}

// follow watches the Services that the snapshot's instances need, and no others.
func (b *balancers) watchNeeded(ctx context.Context, s *gateway.Snapshot) {
	if b.source == nil {
		return
	}
	now := balancerInputs{entry: s.Entry, instances: s.Instances, layers: [...]settings.Layer{s.FileAll, s.ProxyDefaults, s.FileGateway}}
	if b.inputs.entry == now.entry && slices.Equal(b.inputs.instances, now.instances) && reflect.DeepEqual(b.inputs.layers, now.layers) {
		return
	}
	b.inputs = now
	wanted := map[gateway.KubernetesService]bool{}
	for _, in := range s.Instances {
		if in.Kubernetes != (gateway.KubernetesService{}) && s.HasAutoListener(in) {
			wanted[in.Kubernetes] = true
		}
	}
	for id := range b.watches {
		if !wanted[id] {
			b.unwatch(id)
		}
	}
	for id := range wanted {
		if b.watches[id] == nil {
			b.watch(ctx, id)
		}
	}
}

// watch watches a Service. After a panic it keeps what is known and starts again.
func (b *balancers) watch(ctx context.Context, id gateway.KubernetesService) {
	ctx, cancel := context.WithCancel(ctx)
	b.watches[id] = cancel
	b.running.Go(func() {
		for {
			err := guard.Run(b.log, "balancer", func() error {
				b.source.Watch(ctx, id, func(balancer *gateway.Balancer) { b.set(ctx, id, balancer) })
				return nil
			})
			if err == nil {
				return
			}
			b.set(ctx, id, b.withProblem(id, err))
			if !waitRestart(ctx) {
				return
			}
		}
	})
}

// withProblem returns what is known of a Service, with a problem about the panic of
// its watch.
func (b *balancers) withProblem(id gateway.KubernetesService, err error) *gateway.Balancer {
	b.mu.Lock()
	defer b.mu.Unlock()
	var next gateway.Balancer
	if last := b.known[id]; last != nil {
		next = *last
	}
	p := problem.Problem{
		Where: fmt.Sprintf("Kubernetes Service %s/%s", id.Namespace, id.Name),
		What:  err.Error() + ". Until that is over, listeners with the mode auto stay what they are",
	}
	if !slices.Contains(next.Problems, p) {
		next.Problems = append(slices.Clip(next.Problems), p)
	}
	return &next
}

func (b *balancers) unwatch(id gateway.KubernetesService) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watches[id]()
	delete(b.watches, id)
	delete(b.known, id)
}

func (b *balancers) set(ctx context.Context, id gateway.KubernetesService, balancer *gateway.Balancer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	b.known[id] = balancer
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// facts gives what is known now; nil where nobody is asked.
func (b *balancers) current() map[gateway.KubernetesService]*gateway.Balancer {
	if b.source == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.known)
}

// stop ends all watches and waits for them.
func (b *balancers) stop() {
	for id := range b.watches {
		b.unwatch(id)
	}
	b.running.Wait()
}
