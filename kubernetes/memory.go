package kubernetes

import (
	"maps"
	"time"

	"github.com/usherproxy/usher/gateway"
)

// memory is what was known of a Service at one moment, and is needed to
// understand what becomes of it. It is never modified.
type memory struct {
	listeners    map[int]held
	others       held
	peerIsClient bool
}

// held is what was known of one listener. The zero value: nothing.
type held struct {
	tell                 // the last one that was clear
	changed time.Time    // when it became that, as far as it has to be waited for
	newest  time.Time    // of the Service that said so
	mode    gateway.Mode // what the listener is; "" if that was never known
	stays   bool         // it stays that, for nobody knows more
}

// hear gives the memory after a Service was read. noticed is the time now.
func (m memory) hear(t told, noticed time.Time) memory {
	next := memory{listeners: map[int]held{}, others: m.others.hear(t.others, t.newest, noticed), peerIsClient: t.peerIsClient}
	for port, of := range t.listeners {
		next.listeners[port] = m.listeners[port].hear(of, t.newest, noticed)
	}
	return next
}

// freeze gives the memory after nobody could tell any more what the Service says.
func (m memory) freeze() memory {
	next := memory{listeners: maps.Clone(m.listeners), others: m.others, peerIsClient: m.peerIsClient}
	for port, h := range next.listeners {
		h.stays = true
		next.listeners[port] = h
	}
	next.others.stays = true
	return next
}

func (h held) hear(t tell, newest, noticed time.Time) held {
	if t.signal == unclear {
		h.stays = true
		return h
	}
	next := held{tell: t, newest: newest, mode: h.mode}
	switch {
	case t.signal == on:
		next.changed = t.since
	case t.signal == mixed:
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

// resolve gives what the listener is now, and when that changes by itself; zero:
// never.
func (h held) resolve(grace time.Duration, now time.Time) (held, time.Time) {
	if h.stays {
		return h, time.Time{}
	}
	end := h.changed.Add(grace)
	waits := now.Before(end)
	switch {
	case h.signal == mixed:
		h.mode = gateway.Permissive
	case h.signal == on && !waits:
		h.mode = gateway.Strict
	case h.signal == off && (h.changed.IsZero() || !waits):
		h.mode = gateway.Off
	case h.signal == on || h.signal == off:
		h.mode = gateway.Permissive
		return h, end
	}
	return h, time.Time{}
}

// behind is what follows for the listener.
func (h held) behind() gateway.Behind {
	return gateway.Behind{Mode: h.mode, Sends: h.sends}
}

// resolve gives what follows for all listeners now, and when that changes by
// itself, by port. Those that the balancer does not lead to are port 0.
func (m memory) resolve(grace time.Duration, now time.Time) (memory, map[int]time.Time) {
	next := memory{listeners: map[int]held{}, peerIsClient: m.peerIsClient}
	ends := map[int]time.Time{}
	note := func(port int, end time.Time) {
		if !end.IsZero() {
			ends[port] = end
		}
	}
	for port, h := range m.listeners {
		h, end := h.resolve(grace, now)
		next.listeners[port] = h
		note(port, end)
	}
	others, end := m.others.resolve(grace, now)
	next.others = others
	note(0, end)
	return next, ends
}

// balancer is the fact for everybody else.
func (m memory) balancer(problems []gateway.Problem) *gateway.Balancer {
	b := &gateway.Balancer{Listeners: map[int]gateway.Behind{}, Others: m.others.behind(), PeerIsClient: m.peerIsClient, Problems: problems}
	for port, h := range m.listeners {
		b.Listeners[port] = h.behind()
	}
	return b
}
