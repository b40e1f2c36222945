package loadbalancer

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// memory is what was known of a Service at one moment, and is needed to
// understand what becomes of it. It is never modified. The zero value: nothing.
type serviceState struct {
	// version is the Service's resourceVersion that was understood last.
	resourceVersion   string
	listeners         map[int]portState
	others            portState
	preservesClientIP bool
}

// held is what was known of one listener. The zero value: nothing.
type portState struct {
	portIntent                  // the last one that was clear
	changed           time.Time // when it became that, as far as it has to be waited for
	modified          time.Time // of the Service that said so
	annotationRemoved bool      // the annotation is gone, and the cloud does not follow that
	frozenSince       time.Time // since when the listener stays what it is, for nobody knows more; zero: it does not
}

// hear gives the memory after a Service was read. noticed is the time now.
func (m serviceState) observe(t serviceIntent, noticed time.Time) serviceState {
	next := serviceState{resourceVersion: t.resourceVersion, listeners: map[int]portState{}, others: m.others.observe(t.others, t.modified, noticed), preservesClientIP: t.preservesClientIP}
	for port, of := range t.listeners {
		before := m.listeners[port]
		if t.created.After(before.modified) {
			before.removalProblem = problem.Problem{} // it is another balancer
		}
		next.listeners[port] = before.observe(of, t.modified, noticed)
	}
	return next
}

// recalled gives the memory after what a Service was before, the oldest first. It
// has no version: whatever anybody has noted counts for more.
func (m serviceState) replay(past []*corev1.Service, now time.Time) serviceState {
	for _, s := range past {
		m = m.observe(readIntent(s), now)
	}
	m.resourceVersion = ""
	return m
}

// freeze gives the memory after nobody could tell any more, from now on, what
// the Service says.
func (m serviceState) freeze(now time.Time) serviceState {
	m.listeners = maps.Clone(m.listeners)
	for port, h := range m.listeners {
		m.listeners[port] = h.freeze(now)
	}
	m.others = m.others.freeze(now)
	return m
}

func (m serviceState) frozen() bool { return !m.others.frozenSince.IsZero() }

func (h portState) freeze(now time.Time) portState {
	if h.frozenSince.IsZero() {
		h.frozenSince = now
	}
	return h
}

func (h portState) observe(t portIntent, newest, noticed time.Time) portState {
	if t.state == proxyUnknown {
		return h.freeze(noticed)
	}
	if t.unset && h.state == proxyOn && h.removalProblem != (problem.Problem{}) {
		h.annotationRemoved, h.frozenSince = true, time.Time{}
		return h
	}
	next := portState{portIntent: t, modified: newest}
	switch {
	case t.state == proxyMixed:
	case t.state == proxyOn && h.state == proxyOn && h.version == t.version && !h.mayHaveMissedChange(t):
		next.changed = h.changed // it is something else that has changed, if anything
	case t.state == proxyOn:
		next.changed = t.since
	case h.state == proxyOff:
		next.changed = h.changed
	case h.state == proxyOn || h.state == proxyMixed:
		next.changed = noticed
		// A change that has left its time is as old for every Usher.
		if newest.After(h.modified) {
			next.changed = newest
		}
	}
	return next
}

// mayHaveMissed says whether the balancer may have been told something else, and
// this again, while nobody heard it.
func (h portState) mayHaveMissedChange(t portIntent) bool {
	return !h.frozenSince.IsZero() && t.since.After(h.frozenSince)
}

// problems are those of annotations that are gone, and count.
func (m serviceState) problems() []problem.Problem {
	var out []problem.Problem
	for _, port := range slices.Sorted(maps.Keys(m.listeners)) {
		if h := m.listeners[port]; h.annotationRemoved && !slices.Contains(out, h.removalProblem) {
			out = append(out, h.removalProblem)
		}
	}
	return out
}

// mode gives what the listener is now, "" if that was never known, and when that
// changes by itself; zero: never.
func (h portState) mode(grace time.Duration, now time.Time) (settings.Mode, time.Time) {
	if !h.frozenSince.IsZero() {
		now = h.frozenSince
	}
	end := h.changed.Add(grace)
	waits := now.Before(end)
	if !h.frozenSince.IsZero() {
		end = time.Time{}
	}
	switch {
	case h.state == proxyMixed:
		return settings.Permissive, time.Time{}
	case h.state == proxyOff && (h.changed.IsZero() || !waits):
		return settings.Off, time.Time{}
	case h.state == proxyOn && !waits:
		return settings.Strict, time.Time{}
	case h.state == proxyOn || h.state == proxyOff:
		return settings.Permissive, end
	}
	return "", time.Time{}
}

// balancer gives what follows for everybody else now, and when that changes by
// itself, by port. Listeners that the balancer does not lead to are port 0.
func (m serviceState) balancer(grace time.Duration, now time.Time) (*gateway.Balancer, map[int]time.Time) {
	ends := map[int]time.Time{}
	behind := func(port int, h portState) gateway.PortState {
		mode, end := h.mode(grace, now)
		if !end.IsZero() {
			ends[port] = end
		}
		return gateway.PortState{Mode: mode, ProxyVersion: h.version}
	}
	b := &gateway.Balancer{Listeners: map[int]gateway.PortState{}, Others: behind(0, m.others), PreservesClientIP: m.preservesClientIP}
	for port, h := range m.listeners {
		b.Listeners[port] = behind(port, h)
	}
	return b, ends
}
