package loadbalancer

import (
	"time"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/settings"
)

// A listener that is off answers 400 to connections that begin with a PROXY header. If its Service switches no headers on
// and its load balancer sends them, these are all connections. Where trusted_cidrs names the load balancer, the operator
// has said whose headers to believe, so the listener becomes permissive for these networks (gateway.PortState.OnlyTrusted),
// and off again when headers have stopped.

// minHeaders is how many connections of addresses in trusted_cidrs have to begin with what looks like a header, one after
// the other. A load balancer that sends headers has that many within seconds.
const minHeaders = 5

// afterUnexpectedHeaders is afterConnections for a listener whose Service switches no headers on. It becomes permissive
// also while it is unknown what the Service asks for, but not off again.
func (l listenerState) afterUnexpectedHeaders(o observation, p policy, now time.Time) listenerState {
	mode, _ := l.mode(p.grace, now)
	late := now.Add(-p.headersOnlyTime(0))
	offAt := l.offAt(o, p)
	switch f := l.Finding; {
	case mode == settings.Off && o.Restricted && (l.getsHeaders(o) || l.keepsHeaders(o, late)):
		l.Finding = f.withUnexpectedHeaders(o, now)
	case l.pending(now) && o.lastHeader.After(late):
		l.Finding = f.withObjection()
	case !offAt.IsZero() && !now.Before(offAt):
		until := evidence.Latest(o.lastHeader, o.findingSince)
		if o.Malformed.Last.After(until) {
			until = time.Time{}
		}
		l.Finding = f.withEnd(until, now.Add(p.objectionTime()))
	}
	return l
}

// getsHeaders reports whether an address in trusted_cidrs begins all its connections with what looks like a header.
//
// A load balancer that sends no headers passes on those that its clients write, among its other connections. So there must
// be none of these for a minute, if any came before: one of its nodes may have few of them.
func (l listenerState) getsHeaders(o observation) bool {
	t := o.OnlyMalformed
	if t.Count < minHeaders || !t.Last.After(evidence.Latest(l.Changed, o.findingSince)) {
		return false
	}
	return o.WithoutHeader.Count == 0 || t.Last.Sub(t.First) >= maxQuietTime
}

// keepsHeaders reports whether a load balancer still sends headers on all connections at the end of the grace period after
// its Service has switched them off.
func (l listenerState) keepsHeaders(o observation, since time.Time) bool {
	return !l.Changed.IsZero() && o.lastHeader.After(evidence.Latest(l.Changed, since)) && !o.lastWithout.After(since)
}

// offAt returns when it is found that a listener that believes trusted_cidrs becomes off again, if its connections go on
// as they are; zero: never. Without any connection it stays permissive.
func (l listenerState) offAt(o observation, p policy) time.Time {
	lastHeader := evidence.Latest(o.lastHeader, o.findingSince)
	hasOthers := evidence.Latest(o.lastWithout, began(o.Malformed)).After(lastHeader)
	if l.State != proxyOff || !l.FrozenSince.IsZero() || !l.Finding.found(foundHeaders) || !hasOthers {
		return time.Time{}
	}
	return lastHeader.Add(p.headersOnlyTime(l.Finding.Reversals))
}

// withUnexpectedHeaders returns the finding that a listener believes trusted_cidrs.
func (f *finding) withUnexpectedHeaders(o observation, now time.Time) *finding {
	next := f.next()
	if !next.FollowsFrom.IsZero() { // the listener is off again
		next.Reversals++
	}
	next.Result = foundHeaders
	next.FollowsFrom, next.HeadersUntil = time.Time{}, time.Time{}
	next.At, next.With, next.Without = utc(now), o.Malformed.Count+o.WithHeader.Count, o.WithoutHeader.Count
	next.Addresses = firstAddresses(o.OnlyMalformed.Addresses, o.WithHeader.Addresses)
	return next
}

// withEnd returns the finding that a listener follows its Service again, and since when there is no header; zero: they
// still come, and no listener believes them.
func (f *finding) withEnd(headersUntil, followsFrom time.Time) *finding {
	next := f.next()
	next.HeadersUntil, next.FollowsFrom = utc(headersUntil), utc(followsFrom)
	return next
}
