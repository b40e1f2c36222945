package control

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"sync"

	"github.com/usherproxy/usher/gateway"
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
	source   Balancers // nil: Usher does not ask Kubernetes
	needs    needs
	watching map[gateway.KubernetesService]context.CancelFunc
	running  sync.WaitGroup
	changed  chan struct{} // has a value when there is something new

	mu    sync.Mutex // guards what follows
	known map[gateway.KubernetesService]*gateway.Balancer
}

// needs is everything that the Services to watch follow from.
type needs struct {
	entry     *gateway.Entry
	instances []*gateway.Instance
	layers    [3]gateway.Layer
}

func newBalancers(source Balancers) *balancers {
	return &balancers{
		source:   source,
		watching: map[gateway.KubernetesService]context.CancelFunc{},
		changed:  make(chan struct{}, 1),
		known:    map[gateway.KubernetesService]*gateway.Balancer{},
	}
}

// follow watches the Services that the snapshot's instances need, and no others.
func (b *balancers) follow(ctx context.Context, s *gateway.Snapshot) {
	if b.source == nil {
		return
	}
	now := needs{entry: s.Entry, instances: s.Instances, layers: [...]gateway.Layer{s.Server, s.Defaults, s.Operator}}
	if b.needs.entry == now.entry && slices.Equal(b.needs.instances, now.instances) && reflect.DeepEqual(b.needs.layers, now.layers) {
		return
	}
	b.needs = now
	wanted := map[gateway.KubernetesService]bool{}
	for _, in := range s.Instances {
		if in.Kubernetes != (gateway.KubernetesService{}) && s.Follows(in) {
			wanted[in.Kubernetes] = true
		}
	}
	for id := range b.watching {
		if !wanted[id] {
			b.unwatch(id)
		}
	}
	for id := range wanted {
		if b.watching[id] == nil {
			b.watch(ctx, id)
		}
	}
}

func (b *balancers) watch(ctx context.Context, id gateway.KubernetesService) {
	ctx, cancel := context.WithCancel(ctx)
	b.watching[id] = cancel
	b.running.Go(func() {
		b.source.Watch(ctx, id, func(balancer *gateway.Balancer) { b.hear(ctx, id, balancer) })
	})
}

func (b *balancers) unwatch(id gateway.KubernetesService) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watching[id]()
	delete(b.watching, id)
	delete(b.known, id)
}

func (b *balancers) hear(ctx context.Context, id gateway.KubernetesService, balancer *gateway.Balancer) {
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
func (b *balancers) facts() map[gateway.KubernetesService]*gateway.Balancer {
	if b.source == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.known)
}

// stop ends all watches and waits for them.
func (b *balancers) stop() {
	for id := range b.watching {
		b.unwatch(id)
	}
	b.running.Wait()
}
