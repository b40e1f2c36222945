package loadbalancer

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// How long one note may take, and when one that failed is tried again.
const (
	storeTimeout = 5 * time.Second
	retryDelay   = 5 * time.Second
)

// record is the ConfigMap in which Ushers note what they know of Services, so
// that all of them, and those that are started later, count a grace from the
// same moment. Kubernetes' own times are not enough for that: an annotation that
// is removed leaves none, and any other change by the same tool moves them.
//
// The first to hear of a change notes it, and the others take that over.
type stateStore struct {
	client rest.Interface
	log    *slog.Logger
	at     types.NamespacedName
}

// agree replaces what is noted of a Service by what follows from it. next is
// called with the zero memory where nothing is, and again when another Usher was
// faster.
func (r stateStore) Update(ctx context.Context, id gateway.KubernetesService, next func(noted serviceState) serviceState) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	key := id.Namespace + "." + id.Name
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		return guard.Run(r.log, "kubernetes", func() error { return r.compareAndSwap(ctx, key, next) })
	})
}

// note makes one attempt of agree. The error is a conflict if another Usher was
// faster.
func (r stateStore) compareAndSwap(ctx context.Context, key string, next func(noted serviceState) serviceState) error {
	var m corev1.ConfigMap
	if err := r.client.Get().Namespace(r.at.Namespace).Resource("configmaps").Name(r.at.Name).Do(ctx).Into(&m); err != nil {
		return err
	}
	text := encodeState(next(decodeState(m.Data[key])))
	if text == m.Data[key] {
		return nil
	}
	if m.Data == nil {
		m.Data = map[string]string{}
	}
	m.Data[key] = text
	return r.client.Put().Namespace(r.at.Namespace).Resource("configmaps").Name(r.at.Name).Body(&m).Do(ctx).Error()
}

// problem says why nothing can be noted.
func (r stateStore) problem(err error) problem.Problem {
	reason := "there is no such ConfigMap; make an empty one"
	if !apierrors.IsNotFound(err) {
		reason = explainError(err, "get and update on it (docs/kubernetes-record.yaml)")
	}
	return problem.Problem{
		Where: fmt.Sprintf("Kubernetes ConfigMap %s/%s", r.at.Namespace, r.at.Name),
		What:  reason + ". Until then nobody notes there when a grace began, and an Usher that is restarted in one may count it otherwise than the others",
	}
}

// note is a memory in the record.
type storedService struct {
	Version      string             `json:"version"`
	Listeners    map[int]storedPort `json:"listeners"`
	Others       storedPort         `json:"others"`
	PeerIsClient bool               `json:"peerIsClient,omitempty"`
}

// noted is what is known of one listener; its fields are those of held.
type storedPort struct {
	State          proxyState       `json:"told"`
	Version        settings.Version `json:"sends,omitempty"`
	RemovalProblem problem.Problem  `json:"kept,omitzero"`
	Changed        time.Time        `json:"changed,omitzero"`
	Modified       time.Time        `json:"newest,omitzero"`
	FrozenSince    time.Time        `json:"stayed,omitzero"`
}

func encodeState(m serviceState) string {
	n := storedService{Version: m.resourceVersion, Listeners: map[int]storedPort{}, Others: m.others.stored(), PeerIsClient: m.preservesClientIP}
	for port, h := range m.listeners {
		n.Listeners[port] = h.stored()
	}
	text, err := json.Marshal(n)
	if err != nil {
		return "" // an empty note; this does not happen, because every value can be written
	}
	return string(text)
}

func (h portState) stored() storedPort {
	return storedPort{State: h.state, Version: h.version, RemovalProblem: h.removalProblem, Changed: writable(h.changed), Modified: writable(h.modified), FrozenSince: writable(h.frozenSince)}
}

// writable returns a time in UTC. JSON allows only the years 0 to 9999, and the
// conversion from another zone can leave them by some hours.
func writable(t time.Time) time.Time {
	t = t.UTC()
	switch {
	case t.Year() > 9999:
		return time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)
	case t.Year() < 0:
		return time.Time{}
	}
	return t
}

// parseNote gives what is noted; nothing where that cannot be read.
func decodeState(text string) serviceState {
	var n storedService
	if json.Unmarshal([]byte(text), &n) != nil {
		return serviceState{}
	}
	m := serviceState{resourceVersion: n.Version, listeners: map[int]portState{}, others: n.Others.portState(), preservesClientIP: n.PeerIsClient}
	for port, of := range n.Listeners {
		m.listeners[port] = of.portState()
	}
	return m
}

func (n storedPort) portState() portState {
	return portState{portIntent: portIntent{state: n.State, version: n.Version, removalProblem: n.RemovalProblem}, changed: n.Changed, modified: n.Modified, frozenSince: n.FrozenSince}
}

// ahead is by how much the clocks of the Ushers may differ.
const clockTolerance = 24 * time.Hour

// believable returns a noted memory, or an empty one if no Usher can have written it.
// That is so if it contains times in the future, which would keep a grace open, ports
// that no listener can have, or listeners about which it says nothing.
func (m serviceState) plausible(now time.Time) serviceState {
	latest := now.Add(clockTolerance)
	toCome := func(h portState) bool {
		return h.changed.After(latest) || h.modified.After(latest) || h.frozenSince.After(latest)
	}
	absurd := toCome(m.others) || len(m.listeners) == 0 && m.others.empty()
	for port, h := range m.listeners {
		absurd = absurd || toCome(h) || h.empty() || port < 1 || port > 65535
	}
	if absurd {
		return serviceState{}
	}
	return m
}

// silent reports whether the note says nothing about the listener.
func (h portState) empty() bool { return h.state == proxyUnset && h.frozenSince.IsZero() }

// with gives what is known by somebody who knew m and sees what is noted: the
// newer of both. That a Service is gone has no version, but the first who hears
// it freezes what is known.
func (m serviceState) newer(noted serviceState) serviceState {
	switch {
	case noted.resourceVersion == "":
		return m
	case m.resourceVersion == "" || isNewer(noted.resourceVersion, m.resourceVersion):
		return noted
	case noted.resourceVersion == m.resourceVersion && noted.frozen() && !m.frozen():
		return noted
	}
	return m
}

// isNewer compares versions of one Service. Of versions that are no numbers none
// is newer.
func isNewer(a, b string) bool {
	n, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && n > 0
}
