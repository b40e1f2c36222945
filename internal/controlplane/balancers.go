package controlplane

import (
	"context"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/latest"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// BalancerSource watches the settings of load balancers. Watch calls put with what follows for a gateway's listeners behind a
// Service, after each change, until ctx ends; put never blocks. If it returns before, it is called again.
type BalancerSource interface {
	Watch(ctx context.Context, id gateway.ID, service gateway.KubernetesService, put func(*gateway.Balancer))
}

// balancers are the load balancers that the listeners of one gateway follow. They belong to the worker's loop; its
// watches call only withProblem and set.
type balancers struct {
	source  BalancerSource // nil outside Kubernetes
	gateway gateway.ID
	log     *slog.Logger
	inputs  balancerInputs
	watches map[gateway.KubernetesService]context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex // guards what follows
	known   map[gateway.KubernetesService]*gateway.Balancer
	changed latest.Value[struct{}] // has a value after a change of known
}

// balancerInputs decide which Services are watched.
type balancerInputs struct {
	entry     *gateway.Entry
	instances []*gateway.Instance
	layers    [3]settings.Layer
}

func newBalancers(source BalancerSource, id gateway.ID, log *slog.Logger) *balancers {
	return &balancers{
		source: source, gateway: id, log: log, changed: latest.New[struct{}](),
		watches: map[gateway.KubernetesService]context.CancelFunc{}, known: map[gateway.KubernetesService]*gateway.Balancer{},
	}
}

// update replaces the inputs by those of a snapshot. It reports whether they differ.
func (i *balancerInputs) update(s *gateway.Snapshot) bool {
	now := balancerInputs{entry: s.Entry, instances: s.Instances, layers: [...]settings.Layer{s.FileAll, s.ProxyDefaults, s.FileGateway}}
	if i.entry == now.entry && slices.Equal(i.instances, now.instances) && reflect.DeepEqual(i.layers, now.layers) {
		return false
	}
	*i = now
	return true
}

// watchNeeded watches the Services that the listeners of the snapshot follow, and no others. It reports whether
// listeners, instances or their settings differ from those of the last snapshot.
func (b *balancers) watchNeeded(ctx context.Context, s *gateway.Snapshot) (changed bool) {
	if !b.inputs.update(s) {
		return false
	}
	if b.source == nil {
		return true
	}
	needed := map[gateway.KubernetesService]bool{}
	for _, in := range s.Instances {
		if in.Kubernetes != (gateway.KubernetesService{}) && s.HasAutoListener(in) {
			needed[in.Kubernetes] = true
		}
	}
	for id := range b.watches {
		if !needed[id] {
			b.unwatch(id)
		}
	}
	for id := range needed {
		if b.watches[id] == nil {
			b.watch(ctx, id)
		}
	}
	return true
}

// watch watches a Service. When the source's watch ends, what is known stays.
func (b *balancers) watch(ctx context.Context, id gateway.KubernetesService) {
	ctx, cancel := context.WithCancel(ctx)
	b.watches[id] = cancel
	b.running.Go(func() {
		watchAgain(ctx, b.log, "balancer", func() error {
			b.source.Watch(ctx, b.gateway, id, func(balancer *gateway.Balancer) { b.set(ctx, id, balancer) })
			return nil
		}, func(err error) { b.set(ctx, id, b.withProblem(id, err)) })
	})
}

// withProblem returns what is known of a Service, with a problem for the end of its watch.
func (b *balancers) withProblem(id gateway.KubernetesService, err error) *gateway.Balancer {
	b.mu.Lock()
	defer b.mu.Unlock()
	var next gateway.Balancer
	if last := b.known[id]; last != nil {
		next = *last
	}
	p := problem.Problem{
		Where: id.String(),
		What:  err.Error() + ". Until Usher recovers, listeners with the mode auto keep their current mode",
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
	if ctx.Err() == nil {
		b.known[id] = balancer
		b.changed.Put(struct{}{})
	}
}

// current returns what is known now; nil outside Kubernetes.
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
