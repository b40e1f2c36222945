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
type memory struct {
	// version is the Service's resourceVersion that was understood last.
	version      string
	listeners    map[int]held
	others       held
	peerIsClient bool
}

// held is what was known of one listener. The zero value: nothing.
type held struct {
	tell              // the last one that was clear
	changed time.Time // when it became that, as far as it has to be waited for
	newest  time.Time // of the Service that said so
	removed bool      // the annotation is gone, and the cloud does not follow that
	stayed  time.Time // since when the listener stays what it is, for nobody knows more; zero: it does not
}

// hear gives the memory after a Service was read. noticed is the time now.
func (m memory) hear(t told, noticed time.Time) memory {
	next := memory{version: t.version, listeners: map[int]held{}, others: m.others.hear(t.others, t.newest, noticed), peerIsClient: t.peerIsClient}
	for port, of := range t.listeners {
		before := m.listeners[port]
		if t.created.After(before.newest) {
			before.kept = problem.Problem{} // it is another balancer
		}
		next.listeners[port] = before.hear(of, t.newest, noticed)
	}
	return next
}

// recalled gives the memory after what a Service was before, the oldest first. It
// has no version: whatever anybody has noted counts for more.
func (m memory) recalled(past []*corev1.Service, now time.Time) memory {
	for _, s := range past {
		m = m.hear(read(s), now)
	}
	m.version = ""
	return m
}

// freeze gives the memory after nobody could tell any more, from now on, what
// the Service says.
func (m memory) freeze(now time.Time) memory {
	m.listeners = maps.Clone(m.listeners)
	for port, h := range m.listeners {
		m.listeners[port] = h.freeze(now)
	}
	m.others = m.others.freeze(now)
	return m
}

func (m memory) frozen() bool { return !m.others.stayed.IsZero() }

func (h held) freeze(now time.Time) held {
	if h.stayed.IsZero() {
		h.stayed = now
	}
	return h
}

func (h held) hear(t tell, newest, noticed time.Time) held {
	if t.signal == unclear {
		return h.freeze(noticed)
	}
	if t.untold && h.signal == on && h.kept != (problem.Problem{}) {
		h.removed, h.stayed = true, time.Time{}
		return h
	}
	next := held{tell: t, newest: newest}
	switch {
	case t.signal == mixed:
	case t.signal == on && h.signal == on && h.sends == t.sends && !h.mayHaveMissed(t):
		next.changed = h.changed // it is something else that has changed, if anything
	case t.signal == on:
		next.changed = t.since
	case h.signal == off:
		next.changed = h.changed
	case h.signal == on || h.signal == mixed:
		next.changed = noticed
		// A change that has left its time is as old for every Usher.
		if newest.After(h.newest) {
			next.changed = newest
		}
	}
	return next
}

// mayHaveMissed says whether the balancer may have been told something else, and
// this again, while nobody heard it.
func (h held) mayHaveMissed(t tell) bool {
	return !h.stayed.IsZero() && t.since.After(h.stayed)
}

// problems are those of annotations that are gone, and count.
func (m memory) problems() []problem.Problem {
	var out []problem.Problem
	for _, port := range slices.Sorted(maps.Keys(m.listeners)) {
		if h := m.listeners[port]; h.removed && !slices.Contains(out, h.kept) {
			out = append(out, h.kept)
		}
	}
	return out
}

// mode gives what the listener is now, "" if that was never known, and when that
// changes by itself; zero: never.
func (h held) mode(grace time.Duration, now time.Time) (settings.Mode, time.Time) {
	if !h.stayed.IsZero() {
		now = h.stayed
	}
	end := h.changed.Add(grace)
	waits := now.Before(end)
	if !h.stayed.IsZero() {
		end = time.Time{}
	}
	switch {
	case h.signal == mixed:
		return settings.Permissive, time.Time{}
	case h.signal == off && (h.changed.IsZero() || !waits):
		return settings.Off, time.Time{}
	case h.signal == on && !waits:
		return settings.Strict, time.Time{}
	case h.signal == on || h.signal == off:
		return settings.Permissive, end
	}
	return "", time.Time{}
}

// balancer gives what follows for everybody else now, and when that changes by
// itself, by port. Listeners that the balancer does not lead to are port 0.
func (m memory) balancer(grace time.Duration, now time.Time) (*gateway.Balancer, map[int]time.Time) {
	ends := map[int]time.Time{}
	behind := func(port int, h held) gateway.PortState {
		mode, end := h.mode(grace, now)
		if !end.IsZero() {
			ends[port] = end
		}
		return gateway.PortState{Mode: mode, ProxyVersion: h.sends}
	}
	b := &gateway.Balancer{Ports: map[int]gateway.PortState{}, OtherPorts: behind(0, m.others), PreservesClientIP: m.peerIsClient}
	for port, h := range m.listeners {
		b.Ports[port] = behind(port, h)
	}
	return b, ends
}
