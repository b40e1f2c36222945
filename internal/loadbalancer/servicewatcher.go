package loadbalancer

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/latest"
)

// serviceEvent is what is known about a Service at one moment.
type serviceEvent struct {
	service *corev1.Service // nil: there is none, or, with err, it is unknown
	err     error           // why it cannot be read at the moment
	// late is why changes are seen up to retry.LongestPause late: the Service can be read, and not watched.
	late error
}

// serviceWatcher watches one Service. It lists and watches by the Service's name, so a role with this one resource
// name suffices. Only its newest event is kept.
//
// It reads the Service again after the end of each watch, whatever ended it, and trusts no resource version from before:
// after a restore of etcd these count from a lower number, and a watch from a version that is still to come is silent.
// A reflector of client-go would go on with the old version, and wait up to a minute between two attempts.
type serviceWatcher struct {
	client rest.Interface
	log    *slog.Logger
	id     gateway.KubernetesService
	events latest.Value[serviceEvent]
	mu     sync.Mutex // guards events against overlapping calls of Put
}

const (
	// requestTimeout bounds a request for the Service. After kubeapi.AnswerTimeout, the missing answer is a problem.
	requestTimeout = 30 * time.Second
	// The shortest and the longest time of one watch. Its end is the last resort against a watch that is silent for a reason
	// that nothing else shows.
	shortestWatch = time.Minute
	longestWatch  = 2 * time.Minute
	// calmWatch is how long a watch has to last for its end to be no failure.
	calmWatch = 5 * time.Second
)

// outcome is how a round ends.
type outcome int

const (
	ended     outcome = iota // the watch began, and is over
	unwatched                // the Service was read, and the watch did not begin
	unread
)

// run watches until ctx ends. A panic is a failed attempt.
func (w *serviceWatcher) run(ctx context.Context) {
	ctx = klog.NewContext(ctx, logr.Discard()) // errors become problems
	var last outcome
	var late error
	for failures, same := 0, 0; ctx.Err() == nil; {
		round := watchRound{late: late, outcome: unread}
		err := guard.Run(w.log, "kubernetes", func() error { return round.run(ctx, w) })
		if ctx.Err() != nil {
			return
		}
		failures, same, late = failures+1, same+1, round.late
		if round.outcome != last || round.calm {
			same = 1
		}
		last = round.outcome
		switch {
		case last == unread:
			late = nil
			w.put(serviceEvent{err: err})
		case last == ended && err == nil:
			failures = same
			err = errShortWatches
		}
		if last != unread && same > 1 { // the first one may be the end of the API server, which the next read shows
			late = err
			w.put(serviceEvent{service: round.service, late: late})
		}
		select {
		case <-ctx.Done():
		case <-time.After(kubeapi.Pause(failures, err)):
		}
	}
}

// errShortWatches is why changes are late when watches begin and do not last.
var errShortWatches = errors.New("it ends each watch at once")

// watchRound is one read of the Service and the watch that follows it.
type watchRound struct {
	service *corev1.Service // what the API server has, unless the outcome is unread
	outcome outcome
	late    error // of the rounds before, until a watch lasts
	calm    bool  // the watch has lasted
}

// run returns nil when the watch ends, and the error of a request that fails.
func (r *watchRound) run(ctx context.Context, w *serviceWatcher) error {
	version, err := r.read(ctx, w)
	if err != nil {
		return err
	}
	r.outcome = unwatched
	r.put(w)
	lasts := shortestWatch + rand.N(longestWatch-shortestWatch)
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	timer := time.AfterFunc(requestTimeout, func() { end(kubeapi.ErrNoAnswer) })
	defer timer.Stop()
	events, err := w.request(metav1.ListOptions{Watch: true, ResourceVersion: version, TimeoutSeconds: new(int64(lasts.Seconds()))}).Watch(ctx)
	if err != nil {
		return kubeapi.CauseOf(ctx, err)
	}
	timer.Reset(lasts + requestTimeout) // should the server not end it
	defer events.Stop()
	r.outcome = ended
	calm := time.NewTimer(calmWatch)
	defer calm.Stop()
	for {
		select {
		case <-calm.C:
			r.calm, r.late = true, nil
		case e, more := <-events.ResultChan():
			if !more || e.Type == watch.Error { // such as 410 Gone; the next read shows what it means
				return nil
			}
			s, ok := e.Object.(*corev1.Service)
			if !ok || s.Name != w.id.Name { // an API server that does not know the selector sends all Services
				continue
			}
			r.service = s
			if e.Type == watch.Deleted {
				r.service = nil
			}
		}
		r.put(w)
	}
}

func (r *watchRound) put(w *serviceWatcher) { w.put(serviceEvent{service: r.service, late: r.late}) }

// read reads the Service, and returns the version to watch from. While the answer is late, that is an event.
func (r *watchRound) read(ctx context.Context, w *serviceWatcher) (version string, err error) {
	defer w.putLate()()
	ctx, cancel := context.WithTimeoutCause(ctx, requestTimeout, kubeapi.ErrNoAnswer)
	defer cancel()
	var list corev1.ServiceList
	if err := w.request(metav1.ListOptions{}).Do(ctx).Into(&list); err != nil {
		return "", kubeapi.CauseOf(ctx, err)
	}
	if list.ResourceVersion == "" { // {} and null can be decoded, too
		return "", errNoList
	}
	if i := slices.IndexFunc(list.Items, func(s corev1.Service) bool { return s.Name == w.id.Name }); i >= 0 {
		r.service = &list.Items[i]
	}
	return list.ResourceVersion, nil
}

func (w *serviceWatcher) put(e serviceEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events.Put(e)
}

// putLate puts an event if the function that it returns is not called in time.
func (w *serviceWatcher) putLate() (answered func()) {
	over := false
	late := time.AfterFunc(kubeapi.AnswerTimeout, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !over {
			w.events.Put(serviceEvent{err: kubeapi.ErrNoAnswer})
		}
	})
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		over = true
		late.Stop()
	}
}

var errNoList = errors.New("the answer is no list of Services")

// request returns a request for the Service by its name.
func (w *serviceWatcher) request(o metav1.ListOptions) *rest.Request {
	o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, w.id.Name).String()
	return w.client.Get().Namespace(w.id.Namespace).Resource("services").VersionedParams(&o, metav1.ParameterCodec).MaxRetries(0)
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
