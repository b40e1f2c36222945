package loadbalancer

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// EvidenceSource reports what the connections to listeners show. Watch calls put with the summaries of the ports that a
// gateway has behind a Service whenever they have changed, until ctx ends; put does not block. It reports only listeners with the mode
// auto.
type EvidenceSource interface {
	Watch(ctx context.Context, id gateway.ID, service gateway.KubernetesService, put func(evidence.Ports))
}

// When a listener becomes strict because its connections have headers. The grace period says how long the cloud takes to
// follow a change, so the first two times are shorter if it is (policy.headersOnlyTime, policy.earlyTime).
const (
	// headersOnlyTime is for how long every connection must have begun with a header. A load balancer has several nodes
	// that follow a change one after the other, within seconds to a minute or two. At the end of a grace period, a
	// connection that began without a header within this time keeps the listener permissive.
	headersOnlyTime = 2 * time.Minute
	// earlyTime and earlyConnections end a grace period early. That gains minutes and risks the connections of a node
	// that follows late, so they are generous: a node that gets a twentieth of the connections is missed by a hundred of
	// them once in 170 times, and its first connection brings the listener back to permissive.
	earlyTime        = 5 * time.Minute
	earlyConnections = 100
	// minHeadersOnlyTime bounds both times from below, whatever the grace period is: Usher knows of a connection up to
	// three seconds later, and counts it as begun up to two seconds before it came. It is also what doubles where there
	// is no grace period.
	minHeadersOnlyTime = 5 * time.Second
	// maxHeadersOnlyTime ends the doubling of headersOnlyTime, each time that it was too short. It is about how often
	// connections may be refused, and not about the cloud.
	maxHeadersOnlyTime = time.Hour
)

// When headers have stopped: how much later than the last connection with a header one without is refused. These times
// are about how often connections come, so they are the same for every grace period.
const (
	// maxQuietTime is for a listener with few connections. Until then, each of them may be lost.
	maxQuietTime = time.Minute
	// minQuietTime covers the second or two that reports are late, and pauses in the traffic.
	minQuietTime = 10 * time.Second
	// missingHeaders is after how many connections that should have come meanwhile, at the rate of the last Window,
	// headers have stopped. By chance, ten are missing less than once in 20,000 times.
	missingHeaders = 10
	// firstRefusals is how many refused connections suffice if there was never one with a header, such as after a
	// restart.
	firstRefusals = 10
)

// objectionTime is how long replicas that share a record have to object before a listener becomes strict. Each reads the
// record twice meanwhile, whatever the grace period is.
const objectionTime = 2 * shareInterval

// result is what connections show against a Service.
type result string

// The results. The record has them with these words.
const (
	foundNothing  result = ""
	foundRefusals result = "refused"      // connections were refused: the listener is permissive, to find out what they are
	foundNone     result = "contradicted" // connections come without a header: the listener is permissive
	// foundHeaders is for a Service that switches headers off: connections of addresses in trusted_cidrs come with them, so
	// the listener is permissive for these.
	foundHeaders result = "unexpected"
)

// finding is what the connections to a listener have shown, from one moment until the next finding. Replicas share it
// by the record. It is never modified.
type finding struct {
	Result result `json:"result,omitempty"`
	Number int    `json:"number"` // counts the findings since the Service switched headers on or off
	// FollowsFrom is from when the listener does what its Service says: it is strict, because all connections since
	// HeadersSince have had headers, or off. Zero: the result or the grace period decides.
	FollowsFrom  time.Time `json:"followsFrom,omitzero"`
	HeadersSince time.Time `json:"headersSince,omitzero"`
	// Reversals is how often headers came and were missing again, or the other way round.
	Reversals int `json:"reversals,omitempty"`
	// Contradicted means that this or a finding before contradicted the Service.
	Contradicted bool `json:"contradicted,omitempty"`

	// At is when the result was found. With and Without are the connections with and without a header in the Window
	// before, and Addresses some of those that they came from without one.
	At        time.Time    `json:"at,omitzero"`
	With      int          `json:"with,omitempty"`
	Without   int          `json:"without,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// HeadersUntil is when the last connection with a header began, if headers have stopped.
	HeadersUntil time.Time `json:"headersUntil,omitzero"`
}

// follows reports whether the listener does what its Service says, because of the finding: it is strict, or off.
func (f *finding) follows(now time.Time) bool {
	return f != nil && !f.FollowsFrom.IsZero() && !now.Before(f.FollowsFrom)
}

// pending reports whether the listener does what its Service says later, because of the finding. While it is unknown what
// the Service asks for, later does not come.
func (l listenerState) pending(now time.Time) bool {
	if !l.FrozenSince.IsZero() {
		now = l.FrozenSince
	}
	return l.Finding != nil && now.Before(l.Finding.FollowsFrom)
}

// found reports whether the finding has a result that keeps the listener permissive.
func (f *finding) found(r result) bool { return f != nil && f.Result == r && f.FollowsFrom.IsZero() }

// supersedes reports whether f is newer than the finding of another Usher for the same listener. Of two with the same
// number, the one that costs no connections counts.
func (f *finding) supersedes(other *finding) bool {
	switch {
	case f == nil || other == nil:
		return f != nil
	case f.Number != other.Number:
		return f.Number > other.Number
	case f.FollowsFrom.IsZero() != other.FollowsFrom.IsZero():
		return f.FollowsFrom.IsZero()
	case f.Result != other.Result:
		return f.Result == foundNone || other.Result == foundNothing
	case !f.FollowsFrom.Equal(other.FollowsFrom):
		return f.FollowsFrom.After(other.FollowsFrom)
	}
	return f.At.Before(other.At)
}

// next returns a copy for the next finding.
func (f *finding) next() *finding {
	next := finding{}
	if f != nil {
		next = *f
	}
	next.Number++
	return &next
}

// withHeaders returns the finding that a listener becomes strict.
func (f *finding) withHeaders(since, followsFrom time.Time) *finding {
	next := f.next()
	next.HeadersSince, next.FollowsFrom = utc(since), utc(followsFrom)
	return next
}

// withObjection returns the finding that a listener must not become strict after all. What a problem says stays.
func (f *finding) withObjection() *finding {
	next := f.next()
	next.HeadersSince, next.FollowsFrom = time.Time{}, time.Time{}
	next.Reversals++
	return next
}

// withResult returns the finding that a listener is permissive because of its connections.
func (f *finding) withResult(r result, o observation, now time.Time) *finding {
	next := f.next()
	if r == foundRefusals || !next.FollowsFrom.IsZero() { // the listener is strict now
		next.Reversals++
		next.HeadersUntil = time.Time{}
	}
	if r == foundRefusals && o.WithHeader.Count > 0 && o.headersStopped() {
		next.HeadersUntil = utc(began(o.WithHeader))
	}
	next.Result, next.Contradicted = r, next.Contradicted || r == foundNone
	next.HeadersSince, next.FollowsFrom = time.Time{}, time.Time{}
	next.At, next.With, next.Without = utc(now), o.WithHeader.Count, o.WithoutHeader.Count+o.Refused.Count
	next.Addresses = firstAddresses(o.WithoutHeader.Addresses, o.Refused.Addresses)
	return next
}

// firstAddresses returns as many addresses as a finding has, each once.
func firstAddresses(lists ...[]netip.Addr) []netip.Addr {
	all := slices.Concat(lists...)
	slices.SortFunc(all, netip.Addr.Compare)
	all = slices.Compact(all)
	return all[:min(len(all), evidence.MaxAddresses)]
}

// observation is what this Usher knows of the connections to one listener.
type observation struct {
	evidence.Summary
	watchedSince time.Time
	// lastWithout is when the newest connection without a header began that was served or refused, however long ago.
	lastWithout time.Time
	lastHeader  time.Time // the same of those with a header
	last        time.Time // when the last one of any type ended
	// finding is the one that this Usher knew last, and findingSince since when, by its own clock.
	finding      *finding
	findingSince time.Time
}

// after returns the observation after a report.
func (o observation) after(s evidence.Summary) observation {
	o.Summary = s
	o.lastWithout = evidence.Latest(o.lastWithout, began(s.WithoutHeader), began(s.Refused))
	o.lastHeader = evidence.Latest(o.lastHeader, began(s.WithHeader))
	for _, t := range o.tallies() {
		o.last = evidence.Latest(o.last, t.Last)
	}
	return o
}

// tallies are those of all types.
func (o *observation) tallies() []*evidence.Tally {
	return []*evidence.Tally{
		&o.WithHeader, &o.WithoutHeader, &o.Refused, &o.Malformed, &o.Ambiguous, &o.Untrusted, &o.UntrustedHeaders, &o.Unknown, &o.OnlyMalformed,
	}
}

// at returns the observation at a time, for a listener with a finding: without connections that ended before the last
// Window.
func (o observation) at(now time.Time, f *finding) observation {
	for _, t := range o.tallies() {
		if !now.Before(t.Last.Add(evidence.Window)) {
			*t = evidence.Tally{}
		}
	}
	if f != o.finding && (f == nil || o.finding == nil || f.Number != o.finding.Number) {
		o.findingSince = now
	}
	if o.finding = f; f == nil {
		o.findingSince = time.Time{}
	}
	return o
}

// began returns when the newest connection began. Where that is not known, it is when the last one ended.
func began(t evidence.Tally) time.Time {
	if t.Began.IsZero() {
		return t.Last
	}
	return t.Began
}

// headersStopped reports whether a connection was refused so long after the last one with a header that headers have
// stopped, or were never sent.
//
// Connections with a header that began before the load balancer stopped still end for a while, so their end proves
// nothing if the refused ones come from the same addresses. If they come from others, they may be clients that connect
// past the load balancer, and any end of a connection with a header speaks for it, for up to a Window.
func (o observation) headersStopped() bool {
	quiet := o.Refused.Last.Sub(evidence.Latest(began(o.WithHeader), o.watchedSince))
	switch {
	case o.WithHeader.Count == 0:
		return o.Refused.Count >= firstRefusals || quiet >= maxQuietTime
	case quiet >= evidence.Window:
		return true
	case !o.RefusedHeaderSenders:
		quiet = o.Refused.Last.Sub(o.WithHeader.Last)
	}
	return quiet >= quietTime(o.WithHeader, o.Refused.Last)
}

// quietTime is how long no connection of a type has to begin, so that they have stopped. There were some in the last Window
// before now. A type that is newer than a minute may have begun with many at once, so it counts as a minute old.
func quietTime(t evidence.Tally, now time.Time) time.Duration {
	age := min(max(now.Sub(t.First), maxQuietTime), evidence.Window)
	expected := missingHeaders * age / time.Duration(t.Count)
	return min(max(expected, minQuietTime), maxQuietTime)
}

// refusals reports whether connections have been refused since the last finding.
func (l listenerState) refusals(o observation) bool {
	return o.Refused.Last.After(evidence.Latest(l.Changed, o.findingSince))
}

// checkInterval is the longest time between two health checks of one address that clouds offer.
const checkInterval = 5 * time.Minute

// unexplainedAt returns when it becomes a problem that connections were refused and none has come since, to show what they
// were; zero: never. Health checks come again. Only an Usher that has seen the refused ones knows that none has come.
func (l listenerState) unexplainedAt(o observation, p policy) time.Time {
	f := l.Finding
	if l.State != proxyOn || !f.found(foundRefusals) || !o.lastWithout.After(l.Changed) {
		return time.Time{}
	}
	return evidence.Latest(f.At.Add(checkInterval), o.last.Add(checkInterval), l.Changed.Add(p.grace))
}

// policy is what else decides what follows from connections.
type policy struct {
	grace     time.Duration
	hasRecord bool // replicas share their findings, and a restarted Usher knows them
}

// headersOnlyTime returns for how long every connection must have a header before a listener is strict, after it was
// too early so many times.
func (p policy) headersOnlyTime(reversals int) time.Duration {
	return min(p.scaled(headersOnlyTime, 5)<<min(max(reversals-1, 0), 10), maxHeadersOnlyTime)
}

// earlyTime returns for how long every connection must have a header before a grace period ends early.
func (p policy) earlyTime() time.Duration { return p.scaled(earlyTime, 2) }

// scaled returns a part of the grace period, at most a time that is right for a long one.
func (p policy) scaled(most time.Duration, part time.Duration) time.Duration {
	return max(min(most, p.grace/part), minHeadersOnlyTime)
}

// objectionTime returns how long other replicas have to object before a listener becomes strict.
func (p policy) objectionTime() time.Duration {
	if p.hasRecord {
		return objectionTime
	}
	return 0
}

// afterConnections returns the state after what connections show now. Only a listener goes by that whose Service switches
// headers on or off for all of them.
func (l listenerState) afterConnections(o observation, p policy, now time.Time) listenerState {
	switch l.State {
	case proxyOn:
		return l.afterExpectedHeaders(o, p, now)
	case proxyOff:
		return l.afterUnexpectedHeaders(o, p, now)
	}
	return l
}

// afterExpectedHeaders is afterConnections for a listener whose Service switches headers on.
func (l listenerState) afterExpectedHeaders(o observation, p policy, now time.Time) listenerState {
	mode, _ := l.mode(p.grace, now)
	strictAt := l.strictAt(o, p)
	late := now.Add(-p.headersOnlyTime(0))
	switch {
	case mode == settings.Strict && l.servesWithout(o, late):
		l.Finding = l.Finding.withResult(foundNone, o, now)
	case mode == settings.Strict && l.refusesLoadBalancer(o, p, now):
		l.Finding = l.Finding.withResult(foundRefusals, o, now)
	case l.Finding.found(foundRefusals) && l.servesWithout(o, o.findingSince):
		l.Finding = l.Finding.withResult(foundNone, o, now)
	case l.pending(now) && l.servesWithout(o, late):
		l.Finding = l.Finding.withObjection()
	case mode == settings.Permissive && !strictAt.IsZero() && !now.Before(strictAt):
		l.Finding = l.Finding.withHeaders(l.headersSince(o), now.Add(p.objectionTime()))
	}
	return l
}

// servesWithout reports whether a connection without a header began after a time, and was served. A strict listener
// serves none: it becomes strict now, or other Envoys or connections were not known before.
func (l listenerState) servesWithout(o observation, since time.Time) bool {
	return began(o.WithoutHeader).After(evidence.Latest(l.Changed, since))
}

// refusesLoadBalancer reports whether a strict listener seems to refuse connections of the load balancer.
//
// A refusal alone does not show that. It can be of a client that connects past the load balancer, which must not make
// the listener permissive, or of a health check. It does in these cases:
//   - In a grace period, a part of the load balancer may just be late.
//   - If trusted_cidrs says that it is no such client. Then a permissive listener believes no headers that a strict one
//     does not.
//   - If the load balancer has sent none before, and the refused connection has an address that headers come from. They
//     may be those of a client that writes its own.
//   - If headers have stopped.
//
// An Usher that has just started knows no address yet that headers come from, and takes each health check for a refused
// client. If it has the findings of the Usher before, it waits.
func (l listenerState) refusesLoadBalancer(o observation, p policy, now time.Time) bool {
	isNew := o.Refused.Last.Sub(o.watchedSince) < maxQuietTime
	if !l.refusals(o) || isNew && p.hasRecord {
		return false
	}
	contradictedBefore := l.Finding != nil && l.Finding.Contradicted
	return o.RefusedTrusted || now.Before(l.Changed.Add(p.grace)) || contradictedBefore && o.RefusedHeaderSenders || o.headersStopped()
}

// strictAt returns when it is found that a permissive listener becomes strict, if its connections go on as they are; zero:
// never. A grace period ends early only once, and only if that is earlier for all replicas.
func (l listenerState) strictAt(o observation, p policy) time.Time {
	f, since, graceEnd := l.Finding, l.headersSince(o), l.Changed.Add(p.grace)
	early := since.Add(p.earlyTime())
	hasHeaders := began(o.WithHeader).After(evidence.Latest(l.Changed, o.findingSince, o.lastWithout))
	switch {
	case l.State != proxyOn || !l.FrozenSince.IsZero() || f != nil && !f.FollowsFrom.IsZero() || !hasHeaders:
		return time.Time{}
	case f != nil && f.Result != foundNothing:
		return evidence.Latest(since.Add(p.headersOnlyTime(f.Reversals)), graceEnd)
	case f == nil && o.WithHeader.Count >= earlyConnections && o.Ambiguous.Count == 0 && early.Add(p.objectionTime()).Before(graceEnd):
		return early
	}
	return time.Time{}
}

// headersSince returns since when all connections have had headers.
func (l listenerState) headersSince(o observation) time.Time {
	return evidence.Latest(l.Changed, o.findingSince, o.lastWithout, o.WithHeader.First)
}

// sameChange reports whether two Ushers mean the same by "on" or "off", so that a finding of one holds for the other.
func (l listenerState) sameChange(other listenerState) bool {
	return l.State == other.State && l.Version == other.Version && l.Changed.Equal(other.Changed)
}

// withFindings returns the state with those findings of another Usher that are newer than its own.
func (s serviceState) withFindings(other serviceState) serviceState {
	s.Ports = maps.Clone(s.Ports)
	for port, l := range s.Ports {
		if of := other.Ports[port]; l.sameChange(of) && of.Finding.supersedes(l.Finding) {
			l.Finding = of.Finding
			s.Ports[port] = l
		}
	}
	return s
}

// withoutFindings returns the state of listeners that go by their Service alone.
func (s serviceState) withoutFindings() serviceState {
	s.Ports = maps.Clone(s.Ports)
	for port, l := range s.Ports {
		l.Finding = nil
		s.Ports[port] = l
	}
	return s
}

// afterConnections returns the state, and the observations by port, after what connections show now.
func (s serviceState) afterConnections(
	observed map[int]observation, p policy, now time.Time,
) (serviceState, map[int]observation) {
	s.Ports = maps.Clone(s.Ports)
	next := make(map[int]observation, len(observed))
	for port, o := range observed {
		l, found := s.Ports[port]
		o = o.at(now, l.Finding)
		if found {
			l = l.afterConnections(o, p, now)
			s.Ports[port] = l
		}
		next[port] = o.at(now, l.Finding)
	}
	return s, next
}
