package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/latest"
)

// heard is the last that the API server said of a Service.
type serviceEvent struct {
	synced  bool            // it has said anything
	service *corev1.Service // nil: there is none
	err     error           // why it says nothing at the moment
}

// ear listens to one Service. It lists and watches by the Service's name, so
// that a role with this one resource name suffices. What it hears is the newest
// only.
type serviceWatcher struct {
	client rest.Interface
	log    *slog.Logger
	id     gateway.KubernetesService
	out    latest.Value[serviceEvent]

	mu   sync.Mutex
	last serviceEvent
}

// run listens until ctx ends.
func (e *serviceWatcher) run(ctx context.Context) {
	quiet := logr.Discard() // what it would say is a problem, and said as such
	cache.NewReflectorWithOptions(e.watched(ctx), &corev1.Service{}, store{e}, cache.ReflectorOptions{Logger: &quiet}).
		RunWithContext(klog.NewContext(ctx, quiet))
}

// guarded turns a panic into an error, so that the reflector tries again.
func (e *serviceWatcher) guarded(f func() error) error { return guard.Run(e.log, "kubernetes", f) }

// watched returns what lists and watches the Service. It records the result of each
// request.
func (e *serviceWatcher) watched(ctx context.Context) *cache.ListWatch {
	lw := cache.NewListWatchFromClient(e.client, "services", e.id.Namespace, fields.OneTermEqualSelector(metav1.ObjectNameField, e.id.Name))
	return &cache.ListWatch{
		ListWithContextFunc: func(reflector context.Context, o metav1.ListOptions) (list runtime.Object, err error) {
			err = e.guarded(func() (err error) {
				list, err = lw.ListWithContext(reflector, o)
				return err
			})
			e.requestDone(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(reflector context.Context, o metav1.ListOptions) (w watch.Interface, err error) {
			err = e.guarded(func() (err error) {
				w, err = lw.WatchWithContext(reflector, o)
				return err
			})
			e.requestDone(ctx, err)
			return w, err
		},
	}
}

// asked notes how a request ended. A watch that is too old is followed by a
// list, and so is one that an older API server does not understand.
func (e *serviceWatcher) requestDone(ctx context.Context, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || apierrors.IsInvalid(err) {
		return
	}
	e.update(func(h *serviceEvent) { h.err = err })
}

func (e *serviceWatcher) update(change func(*serviceEvent)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(&e.last)
	e.out.Put(e.last)
}

// store is where the reflector puts what it hears: at most one Service.
type store struct{ *serviceWatcher }

var _ cache.ReflectorStore = store{}

// Add implements cache.ReflectorStore.
func (s store) Add(obj any) error { return s.Replace([]any{obj}, "") }

// Update implements cache.ReflectorStore.
func (s store) Update(obj any) error { return s.Replace([]any{obj}, "") }

// Delete implements cache.ReflectorStore.
func (s store) Delete(any) error { return s.Replace(nil, "") }

// Replace implements cache.ReflectorStore.
func (s store) Replace(objs []any, _ string) error {
	err := s.guarded(func() error {
		var service *corev1.Service
		for _, obj := range objs {
			// An API server that does not know the selector returns all Services.
			if other, ok := obj.(*corev1.Service); ok && other.Name == s.id.Name {
				service = other
			}
		}
		s.update(func(h *serviceEvent) { h.synced, h.service = true, service })
		return nil
	})
	if err != nil {
		s.update(func(h *serviceEvent) { h.err = err })
	}
	return err
}

// Resync implements cache.ReflectorStore.
func (s store) Resync() error { return nil }

// why says in words that stay the same why the API server does not answer, and
// which rights it may want.
func explainError(err error, rights string) string {
	var op *net.OpError
	var request *url.Error
	var bug *guard.Error
	switch {
	case errors.As(err, &bug):
		return bug.Error()
	case apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err):
		return fmt.Sprintf("the API server refuses: %v; give Usher %s", err, rights)
	case errors.As(err, &op) && op.Addr != nil:
		return fmt.Sprintf("the API server at %s cannot be reached: %v", op.Addr, op.Err)
	case errors.As(err, &request):
		return fmt.Sprintf("the API server cannot be reached: %v", request.Err)
	}
	return fmt.Sprintf("the API server does not answer: %v", err)
}
