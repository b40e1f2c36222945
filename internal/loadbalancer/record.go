package loadbalancer

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/problem"
)

// How long one update may take, and when one that failed is tried again.
const (
	recordTimeout = 5 * time.Second
	retryDelay    = 5 * time.Second
)

// record is the ConfigMap in which all replicas keep the state of Services, so that they agree on the start of each
// grace period, also after a restart. Kubernetes' own times do not suffice for that: the removal of an annotation
// leaves none, and any other change by the same tool moves them.
//
// The first replica that reads a change stores its state, and the others adopt that.
type record struct{ object kubeapi.Object }

func newRecord(client rest.Interface, log *slog.Logger, at types.NamespacedName) record {
	return record{kubeapi.Object{Client: client, Log: log, Kind: "ConfigMap", At: at, Manifest: "docs/kubernetes-record.yaml"}}
}

// update replaces the recorded state of a Service by the result of next. It calls next with the zero state if no
// readable state is recorded, and again if another replica was faster. It does not call next if the ConfigMap cannot be
// read.
func (r record) update(
	ctx context.Context, id gateway.KubernetesService, next func(recorded serviceState) serviceState,
) error {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	key := id.Namespace + "." + id.Name
	return kubeapi.Update(ctx, r.object, func(m *corev1.ConfigMap) (changed bool) {
		recorded := decodeState(m.Data[key])
		if isNewer(recorded.ResourceVersion, m.ResourceVersion) {
			recorded = serviceState{} // from before a restore of etcd, which counts all versions: that revision never comes
		}
		text := encodeState(next(recorded))
		if text == m.Data[key] {
			return false
		}
		if m.Data == nil {
			m.Data = map[string]string{}
		}
		m.Data[key] = text
		return true
	})
}

// problem returns the problem for an error of update.
func (r record) problem(err error) problem.Problem {
	return problem.Problem{
		Where: r.object.String(),
		What:  r.object.Explain(err) + ". Meanwhile, a restarted Usher may end a grace period earlier or later than the other replicas",
	}
}

// encodeState returns a state as text for the ConfigMap.
func encodeState(s serviceState) string {
	text, _ := json.Marshal(s) // it does not fail, because every value can be written
	return string(text)
}

// decodeState returns the state that is recorded, or the zero state if it cannot be read.
func decodeState(text string) serviceState {
	var s serviceState
	if json.Unmarshal([]byte(text), &s) != nil {
		return serviceState{}
	}
	return s
}

// clockTolerance is by how much the clocks of the replicas may differ.
const clockTolerance = 24 * time.Hour

// plausible returns a recorded state, or the zero state if no Usher can have written it, such as one for ports that no
// listener can have.
func (s serviceState) plausible(now time.Time) serviceState {
	latest := now.Add(clockTolerance)
	plausible := s.OtherPorts.plausible(latest)
	for port, l := range s.Ports {
		plausible = plausible && l.plausible(latest) && port >= 1 && port <= 65535
	}
	if !plausible {
		return serviceState{}
	}
	return s
}

// plausible reports whether something is known about the listener, and no time is in the future, which would keep a
// grace period open.
func (l listenerState) plausible(latest time.Time) bool {
	known := l.State == proxyOff || l.State == proxyOn || l.State == proxyMixed ||
		l.State == proxyUnset && !l.FrozenSince.IsZero()
	return known && !l.Changed.After(latest) && !l.Modified.After(latest) && !l.FrozenSince.After(latest) &&
		l.Finding.plausible(latest) && (l.Finding == nil || (l.State == proxyOff) == (l.Finding.Result == foundHeaders))
}

// maxFindings bounds the numbers of a recorded finding.
const maxFindings = 1_000_000

// plausible reports whether an Usher can have recorded the finding.
func (f *finding) plausible(latest time.Time) bool {
	results := []result{foundNothing, foundRefusals, foundNone, foundHeaders}
	return f == nil || slices.Contains(results, f.Result) && f.Number >= 1 && f.Number <= maxFindings &&
		f.Reversals >= 0 && f.Reversals <= maxFindings && f.With >= 0 && f.Without >= 0 && len(f.Addresses) <= evidence.MaxAddresses &&
		!f.At.After(latest) && !f.HeadersSince.After(latest) && !f.FollowsFrom.After(latest) && !f.HeadersUntil.After(latest)
}
