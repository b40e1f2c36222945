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
	recordTime  = 5 * time.Second
	recordAgain = 5 * time.Second
)

// record is the ConfigMap in which Ushers note what they know of Services, so
// that all of them, and those that are started later, count a grace from the
// same moment. Kubernetes' own times are not enough for that: an annotation that
// is removed leaves none, and any other change by the same tool moves them.
//
// The first to hear of a change notes it, and the others take that over.
type record struct {
	client rest.Interface
	log    *slog.Logger
	at     types.NamespacedName
}

// agree replaces what is noted of a Service by what follows from it. next is
// called with the zero memory where nothing is, and again when another Usher was
// faster.
func (r record) agree(ctx context.Context, id gateway.KubernetesService, next func(noted memory) memory) error {
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	key := id.Namespace + "." + id.Name
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		return guard.Run(r.log, "kubernetes", func() error { return r.note(ctx, key, next) })
	})
}

// note makes one attempt of agree. The error is a conflict if another Usher was
// faster.
func (r record) note(ctx context.Context, key string, next func(noted memory) memory) error {
	var m corev1.ConfigMap
	if err := r.client.Get().Namespace(r.at.Namespace).Resource("configmaps").Name(r.at.Name).Do(ctx).Into(&m); err != nil {
		return err
	}
	text := noteOf(next(parseNote(m.Data[key])))
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
func (r record) problem(err error) problem.Problem {
	reason := "there is no such ConfigMap; make an empty one"
	if !apierrors.IsNotFound(err) {
		reason = why(err, "get and update on it (docs/kubernetes-record.yaml)")
	}
	return problem.Problem{
		Where: fmt.Sprintf("Kubernetes ConfigMap %s/%s", r.at.Namespace, r.at.Name),
		What:  reason + ". Until then nobody notes there when a grace began, and an Usher that is restarted in one may count it otherwise than the others",
	}
}

// note is a memory in the record.
type note struct {
	Version      string        `json:"version"`
	Listeners    map[int]noted `json:"listeners"`
	Others       noted         `json:"others"`
	PeerIsClient bool          `json:"peerIsClient,omitempty"`
}

// noted is what is known of one listener; its fields are those of held.
type noted struct {
	Told    signal           `json:"told"`
	Sends   settings.Version `json:"sends,omitempty"`
	Kept    problem.Problem  `json:"kept,omitzero"`
	Changed time.Time        `json:"changed,omitzero"`
	Newest  time.Time        `json:"newest,omitzero"`
	Stayed  time.Time        `json:"stayed,omitzero"`
}

func noteOf(m memory) string {
	n := note{Version: m.version, Listeners: map[int]noted{}, Others: m.others.note(), PeerIsClient: m.peerIsClient}
	for port, h := range m.listeners {
		n.Listeners[port] = h.note()
	}
	text, err := json.Marshal(n)
	if err != nil {
		return "" // an empty note; this does not happen, because every value can be written
	}
	return string(text)
}

func (h held) note() noted {
	return noted{Told: h.signal, Sends: h.sends, Kept: h.kept, Changed: writable(h.changed), Newest: writable(h.newest), Stayed: writable(h.stayed)}
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
func parseNote(text string) memory {
	var n note
	if json.Unmarshal([]byte(text), &n) != nil {
		return memory{}
	}
	m := memory{version: n.Version, listeners: map[int]held{}, others: n.Others.held(), peerIsClient: n.PeerIsClient}
	for port, of := range n.Listeners {
		m.listeners[port] = of.held()
	}
	return m
}

func (n noted) held() held {
	return held{tell: tell{signal: n.Told, sends: n.Sends, kept: n.Kept}, changed: n.Changed, newest: n.Newest, stayed: n.Stayed}
}

// ahead is by how much the clocks of the Ushers may differ.
const ahead = 24 * time.Hour

// believable returns a noted memory, or an empty one if no Usher can have written it.
// That is so if it contains times in the future, which would keep a grace open, ports
// that no listener can have, or listeners about which it says nothing.
func (m memory) believable(now time.Time) memory {
	latest := now.Add(ahead)
	toCome := func(h held) bool {
		return h.changed.After(latest) || h.newest.After(latest) || h.stayed.After(latest)
	}
	absurd := toCome(m.others) || len(m.listeners) == 0 && m.others.silent()
	for port, h := range m.listeners {
		absurd = absurd || toCome(h) || h.silent() || port < 1 || port > 65535
	}
	if absurd {
		return memory{}
	}
	return m
}

// silent reports whether the note says nothing about the listener.
func (h held) silent() bool { return h.signal == silent && h.stayed.IsZero() }

// with gives what is known by somebody who knew m and sees what is noted: the
// newer of both. That a Service is gone has no version, but the first who hears
// it freezes what is known.
func (m memory) with(noted memory) memory {
	switch {
	case noted.version == "":
		return m
	case m.version == "" || isNewer(noted.version, m.version):
		return noted
	case noted.version == m.version && noted.frozen() && !m.frozen():
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
