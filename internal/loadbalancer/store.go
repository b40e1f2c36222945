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
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/problem"
)

// How long one update may take, and when one that failed is tried again.
const (
	storeTimeout = 5 * time.Second
	retryDelay   = 5 * time.Second
)

// stateStore is the ConfigMap in which all replicas keep the state of Services, so that they agree on the start of
// each grace period, also after a restart. Kubernetes' own times do not suffice for that: the removal of an
// annotation leaves none, and any other change by the same tool moves them.
//
// The first replica that observes a change stores it, and the others adopt that.
type stateStore struct {
	client rest.Interface
	log    *slog.Logger
	at     types.NamespacedName
}

// Update replaces the stored state of a Service by next of it, and returns the new state. It calls next with the
// zero state where nothing is stored, and again when another replica was faster.
func (s stateStore) Update(
	ctx context.Context, id gateway.KubernetesService, next func(stored serviceState) serviceState,
) (serviceState, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	state := next(serviceState{})
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		return guard.Run(s.log, "kubernetes", func() error {
			var m corev1.ConfigMap
			if err := s.request(s.client.Get()).Do(ctx).Into(&m); err != nil {
				return err
			}
			key := id.Namespace + "." + id.Name
			state = next(decodeState(m.Data[key]))
			return s.compareAndSwap(ctx, &m, key, encodeState(state))
		})
	})
	return state, err
}

// compareAndSwap writes a value to the ConfigMap. The error is a conflict if the ConfigMap is not the newest one.
func (s stateStore) compareAndSwap(ctx context.Context, m *corev1.ConfigMap, key, text string) error {
	if text == m.Data[key] {
		return nil
	}
	if m.Data == nil {
		m.Data = map[string]string{}
	}
	m.Data[key] = text
	return s.request(s.client.Put()).Body(m).Do(ctx).Error()
}

func (s stateStore) request(r *rest.Request) *rest.Request {
	return r.Namespace(s.at.Namespace).Resource("configmaps").Name(s.at.Name)
}

// problem returns the problem for an error of Update.
func (s stateStore) problem(err error) problem.Problem {
	reason := "it does not exist; create an empty one (docs/kubernetes-record.yaml)"
	if !apierrors.IsNotFound(err) {
		reason = explainError(err, "get and update on it (docs/kubernetes-record.yaml)")
	}
	return problem.Problem{
		Where: fmt.Sprintf("Kubernetes ConfigMap %s/%s", s.at.Namespace, s.at.Name),
		What: reason + ". Until this is fixed, grace periods are not stored, " +
			"and a restarted Usher may end one at another time than the other replicas",
	}
}

// encodeState returns a state as text for the ConfigMap.
func encodeState(s serviceState) string {
	text, err := json.Marshal(s)
	if err != nil {
		return "" // as if nothing was stored; it does not happen, because every value can be written
	}
	return string(text)
}

// decodeState returns the state that is stored, or the zero state if it cannot be read.
func decodeState(text string) serviceState {
	var s serviceState
	if json.Unmarshal([]byte(text), &s) != nil {
		return serviceState{}
	}
	return s
}

// clockTolerance is by how much the clocks of the replicas may differ.
const clockTolerance = 24 * time.Hour

// plausible returns a stored state, or the zero state if no Usher can have written it: if it has times in the
// future, which would keep a grace period open, ports that no listener can have, or listeners without a state.
func (s serviceState) plausible(now time.Time) serviceState {
	latest := now.Add(clockTolerance)
	inFuture := func(p portState) bool {
		return p.Changed.After(latest) || p.Modified.After(latest) || p.FrozenSince.After(latest)
	}
	invalid := inFuture(s.OtherPorts) || len(s.Ports) == 0 && s.OtherPorts.empty()
	for port, p := range s.Ports {
		invalid = invalid || inFuture(p) || p.empty() || port < 1 || port > 65535
	}
	if invalid {
		return serviceState{}
	}
	return s
}

// empty reports whether nothing is known about the listener.
func (p portState) empty() bool { return p.State == proxyUnset && p.FrozenSince.IsZero() }
