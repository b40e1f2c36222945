package loadbalancer

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

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

// serviceEvent is what is known about a Service at one moment.
type serviceEvent struct {
	service *corev1.Service // nil: there is none, or, with err, it is unknown
	err     error           // why the watch fails at the moment
}

// serviceWatcher watches one Service. It lists and watches by the Service's name, so a role with this one resource
// name suffices. Only its newest event is kept.
type serviceWatcher struct {
	client rest.Interface
	log    *slog.Logger
	id     gateway.KubernetesService
	events latest.Value[serviceEvent]

	mu     sync.Mutex
	listed bool // the API server has answered
	last   serviceEvent
}

// run watches until ctx ends. It uses a reflector, because an informer does not report that a list is empty, or that
// a watch is refused.
func (w *serviceWatcher) run(ctx context.Context) {
	quiet := logr.Discard() // errors become problems
	store := cache.NewUndeltaStore(w.setServices, cache.MetaNamespaceKeyFunc)
	cache.NewReflectorWithOptions(w.listWatch(ctx), &corev1.Service{}, store, cache.ReflectorOptions{Logger: &quiet}).
		RunWithContext(klog.NewContext(ctx, quiet))
}

// listWatch returns the requests of the reflector.
func (w *serviceWatcher) listWatch(ctx context.Context) *cache.ListWatch {
	byName := fields.OneTermEqualSelector(metav1.ObjectNameField, w.id.Name)
	lw := cache.NewListWatchFromClient(w.client, "services", w.id.Namespace, byName)
	return &cache.ListWatch{
		ListWithContextFunc: func(requestCtx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return request(ctx, w, func() (runtime.Object, error) { return lw.ListWithContext(requestCtx, o) })
		},
		WatchFuncWithContext: func(requestCtx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return request(ctx, w, func() (watch.Interface, error) { return lw.WatchWithContext(requestCtx, o) })
		},
	}
}

// request sends a request and records how it ended. A panic becomes an error, so the reflector tries again.
func request[T any](ctx context.Context, w *serviceWatcher, send func() (T, error)) (response T, err error) {
	err = guard.Run(w.log, "kubernetes", func() (err error) {
		response, err = send()
		return err
	})
	w.requestDone(ctx, err)
	return response, err
}

// requestDone records how a request ended. A watch that is too old, or that an older API server does not understand,
// is no error: the reflector lists next.
func (w *serviceWatcher) requestDone(ctx context.Context, err error) {
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || apierrors.IsInvalid(err) {
		return
	}
	w.update(func() { w.last.err = err })
}

// setServices sets the Services that there are now.
func (w *serviceWatcher) setServices(services []any) {
	w.update(func() {
		w.listed, w.last.service = true, nil
		for _, s := range services {
			// An API server that does not know the selector returns all Services.
			if s, ok := s.(*corev1.Service); ok && s.Name == w.id.Name {
				w.last.service = s
			}
		}
	})
}

// update makes a change. There is an event once anything is known.
func (w *serviceWatcher) update(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	if w.listed || w.last.err != nil {
		w.events.Put(w.last)
	}
}

// The bounds of readHistory, for which the first event waits.
const (
	historyTimeout = 5 * time.Second
	historyLimit   = 10
)

// readHistory returns earlier revisions of a Service, the oldest first, as far as the API server still has them: for
// at least five minutes (kube-apiserver's --etcd-compaction-interval). An Usher that starts within a grace period
// needs them, or the record: a removed annotation leaves no trace in the Service, and any other change may have
// moved the time of an annotation.
//
// It is best effort: it returns nothing if the API server does not count resource versions up, or has forgotten the
// revisions.
func readHistory(ctx context.Context, client rest.Interface, s *corev1.Service) []*corev1.Service {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	var revisions []*corev1.Service
	for range historyLimit {
		if s = previousRevision(ctx, client, s); s == nil {
			break
		}
		revisions = append(revisions, s)
	}
	slices.Reverse(revisions)
	return revisions
}

// previousRevision returns the revision of a Service before the last write; nil if it cannot be read.
func previousRevision(ctx context.Context, client rest.Interface, s *corev1.Service) *corev1.Service {
	version, err := strconv.ParseUint(s.ResourceVersion, 10, 64)
	if err != nil || version < 2 {
		return nil
	}
	var list corev1.ServiceList
	err = client.Get().Namespace(s.Namespace).Resource("services").VersionedParams(&metav1.ListOptions{
		FieldSelector:        metav1.ObjectNameField + "=" + s.Name,
		ResourceVersion:      strconv.FormatUint(version-1, 10),
		ResourceVersionMatch: metav1.ResourceVersionMatchExact,
	}, metav1.ParameterCodec).Do(ctx).Into(&list)
	if err != nil {
		return nil
	}
	i := slices.IndexFunc(list.Items, func(found corev1.Service) bool { return found.Name == s.Name })
	if i < 0 {
		return nil
	}
	return &list.Items[i]
}
