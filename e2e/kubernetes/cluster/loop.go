//go:build kubernetes

package cluster

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

type (
	informer = cache.SharedIndexInformer
	podUID   = types.UID
)

// retryInterval is how long a control loop waits after an error.
const retryInterval = 100 * time.Millisecond

// runLoop runs a control loop until ctx ends: whenever an object of one of the
// watched kinds has changed, it compares what should be with what is, for all
// objects of its kind. It knows nothing from before, so it never misses a change
// and an error only means to do it once more.
func (c *Cluster) runLoop(ctx context.Context, name string, reconcile func(context.Context) error, watched ...informer) {
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default: // it will look anyway
		}
	}
	for _, i := range watched {
		_, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { notify() }, UpdateFunc: func(any, any) { notify() }, DeleteFunc: func(any) { notify() },
		})
		if err != nil {
			c.t.Errorf("watch for %s: %v", name, err)
		}
	}
	c.work.Go(func() {
		for {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			if err := reconcile(ctx); err != nil && ctx.Err() == nil {
				if !apierrors.IsConflict(err) {
					c.logf("%s: %v", name, err)
				}
				select {
				case <-time.After(retryInterval):
				case <-ctx.Done():
				}
				notify()
			}
		}
	})
}
