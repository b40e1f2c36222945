package loadbalancer

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// serviceState is what Usher has to remember about a Service between two events. It is never modified. The zero value:
// nothing is known. The exported fields are in the record.
type serviceState struct {
	ResourceVersion   string                `json:"resourceVersion"` // of the last revision of the Service that was read
	Ports             map[int]listenerState `json:"ports"`           // by the listener's port
	OtherPorts        listenerState         `json:"otherPorts"`      // of listeners that no port of the Service leads to
	PreservesClientIP bool                  `json:"preservesClientIP,omitempty"`
}

// listenerState is what Usher has to remember about one listener. The zero value: nothing is known.
type listenerState struct {
	portIntent            // the last one whose state was known
	Changed     time.Time `json:"changed,omitzero"`     // when it changed to that; zero: there is no grace period
	Modified    time.Time `json:"modified,omitzero"`    // of the last revision of the Service that was read
	FrozenSince time.Time `json:"frozenSince,omitzero"` // since when the intent is unknown, and the mode stays
	// Finding is what connections have shown since then. Nil: nothing that changes the mode.
	Finding *finding `json:"finding,omitempty"`

	annotationRemoved bool // the annotation was removed, and the cloud does not follow that
}

// afterEvent returns the state after an event, for an Usher that knew s and reads the record of all Ushers. intent is
// nil if it is unknown what the Service asks for.
func (s serviceState) afterEvent(recorded serviceState, intent *serviceIntent, now time.Time) serviceState {
	recorded = recorded.plausible(now)
	s = s.newer(recorded)
	switch {
	case intent == nil:
		return s.freeze(now)
	case isNewer(recorded.ResourceVersion, intent.resourceVersion):
		return s // another Usher has read a later revision, which comes here soon
	}
	return s.afterRevision(*intent, now)
}

// afterRevision returns the state after a revision of the Service was read.
func (s serviceState) afterRevision(intent serviceIntent, now time.Time) serviceState {
	next := serviceState{
		ResourceVersion: intent.resourceVersion, Ports: map[int]listenerState{},
		OtherPorts:        s.OtherPorts.afterIntent(intent.otherPorts, intent.modified, now),
		PreservesClientIP: intent.preservesClientIP,
	}
	for port, ofPort := range intent.ports {
		last := s.Ports[port]
		if intent.created.After(last.Modified) {
			last.RemovalProblem = problem.Problem{} // it is another load balancer
		}
		next.Ports[port] = last.afterIntent(ofPort, intent.modified, now)
	}
	return next
}

func (l listenerState) afterIntent(intent portIntent, modified, now time.Time) listenerState {
	if intent.State == proxyUnknown {
		l.Modified = modified
		if intent.RemovalProblem != (problem.Problem{}) {
			l.RemovalProblem = intent.RemovalProblem
		}
		return l.freeze(now)
	}
	if intent.unset && l.RemovalProblem != (problem.Problem{}) {
		l.annotationRemoved = true
		if l.State == proxyOn {
			l.FrozenSince = time.Time{}
		}
		return l
	}
	next := listenerState{portIntent: intent, Modified: modified}
	switch {
	case intent.State == proxyMixed: // permissive for as long as it is
	case intent.State == proxyOn && l.State == proxyOn && l.Version == intent.Version && !l.mayHaveMissedChange(intent):
		next.Changed, next.Finding = l.Changed, l.Finding // something else has changed, if anything
	case intent.State == proxyOn && (l.Modified.IsZero() || intent.since.After(l.Modified)): // switched on
		next.Changed = intent.since
	case l.State == proxyOff && intent.State == proxyOff: // still off
		next.Changed, next.Finding = l.Changed, l.Finding
	case intent.State == proxyOn || l.State == proxyOn || l.State == proxyMixed: // switched on or off by a removal
		next.Changed = now
		if modified.After(l.Modified) {
			next.Changed = modified // the same for all Ushers
		}
	}
	return next
}

// mayHaveMissedChange reports whether the intent may have been another one, and this one again, while it was unknown.
func (l listenerState) mayHaveMissedChange(intent portIntent) bool {
	return !l.FrozenSince.IsZero() && intent.since.After(l.FrozenSince)
}

// replay returns the state after earlier revisions of the Service, the oldest first. It has no resourceVersion, so any
// recorded state takes precedence.
func (s serviceState) replay(revisions []*corev1.Service, now time.Time) serviceState {
	for _, revision := range revisions {
		s = s.afterRevision(readIntent(revision), now)
	}
	s.ResourceVersion = ""
	return s
}

// freeze returns the state after it became unknown what the Service asks for.
func (s serviceState) freeze(now time.Time) serviceState {
	s.Ports = maps.Clone(s.Ports)
	for port, l := range s.Ports {
		s.Ports[port] = l.freeze(now)
	}
	s.OtherPorts = s.OtherPorts.freeze(now)
	return s
}

func (l listenerState) freeze(now time.Time) listenerState {
	if l.FrozenSince.IsZero() {
		l.FrozenSince = now
	}
	return l
}

// frozen reports whether it is unknown what the Service asks for. OtherPorts are frozen with all the others.
func (s serviceState) frozen() bool { return !s.OtherPorts.FrozenSince.IsZero() }

// newer returns the newer one of two states, with the last findings of both. The deletion of a Service has no
// ResourceVersion: the state that is frozen is the newer one then.
func (s serviceState) newer(recorded serviceState) serviceState {
	s, recorded = s.withFindings(recorded), recorded.withFindings(s)
	switch {
	case recorded.ResourceVersion == "":
		return s
	case s.ResourceVersion == "" || isNewer(recorded.ResourceVersion, s.ResourceVersion):
		return recorded
	case recorded.ResourceVersion == s.ResourceVersion && recorded.frozen() && !s.frozen():
		return recorded
	}
	return s
}

// isNewer compares versions of one Service. Versions that are not numbers are never newer.
func isNewer(a, b string) bool {
	n, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && n > 0
}

// mode returns the mode of the listener, empty if it was never known, and when it changes without another event; zero:
// never.
func (l listenerState) mode(grace time.Duration, now time.Time) (settings.Mode, time.Time) {
	end := l.Changed.Add(grace)
	inGrace := now.Before(end)
	if !l.FrozenSince.IsZero() {
		inGrace, end = l.FrozenSince.Before(end), time.Time{}
	}
	switch {
	case l.State == proxyMixed:
		return settings.Permissive, time.Time{}
	case l.State == proxyOn && l.Finding != nil && (!l.Finding.FollowsFrom.IsZero() || l.Finding.Result != foundNothing):
		return l.modeByFinding(settings.Strict, now)
	case l.State == proxyOff && l.Finding != nil:
		return l.modeByFinding(settings.Off, now)
	case l.State == proxyOff && (l.Changed.IsZero() || !inGrace):
		return settings.Off, time.Time{}
	case l.State == proxyOn && !inGrace:
		return settings.Strict, time.Time{}
	case l.State == proxyOn || l.State == proxyOff:
		return settings.Permissive, end
	}
	return "", time.Time{}
}

// modeByFinding is mode for a listener whose connections decide whether it has the mode that its Service asks for. It does
// not get that mode while it is unknown what the Service asks for.
func (l listenerState) modeByFinding(asked settings.Mode, now time.Time) (settings.Mode, time.Time) {
	switch isFrozen := !l.FrozenSince.IsZero(); {
	case isFrozen && l.Finding.follows(l.FrozenSince) || !isFrozen && l.Finding.follows(now):
		return asked, time.Time{}
	case isFrozen:
		return settings.Permissive, time.Time{}
	}
	return settings.Permissive, l.Finding.FollowsFrom
}

// reason returns what connections have shown, if that decides the mode, else an empty text.
func (l listenerState) reason(now time.Time) string {
	if f := l.Finding; f.follows(now) || f != nil && f.Result != foundNothing {
		return f.text(now)
	}
	return ""
}

// balancer returns what follows from the state for listeners, and the end of each grace period, by port. Listeners that
// no port of the Service leads to are port 0.
func (s serviceState) balancer(grace time.Duration, now time.Time) (*gateway.Balancer, map[int]time.Time) {
	ends := map[int]time.Time{}
	stateOf := func(port int, l listenerState) gateway.PortState {
		mode, end := l.mode(grace, now)
		if !end.IsZero() {
			ends[port] = end
		}
		onlyTrusted := l.State == proxyOff && l.Finding != nil && mode == settings.Permissive
		return gateway.PortState{Mode: mode, ProxyVersion: l.Version, OnlyTrusted: onlyTrusted, GraceEnd: end, Reason: l.reason(now)}
	}
	b := &gateway.Balancer{
		Ports: map[int]gateway.PortState{}, OtherPorts: stateOf(0, s.OtherPorts), PreservesClientIP: s.PreservesClientIP,
	}
	for _, port := range slices.Sorted(maps.Keys(s.Ports)) {
		l := s.Ports[port]
		b.Ports[port] = stateOf(port, l)
		if l.annotationRemoved && !slices.Contains(b.Problems, l.RemovalProblem) {
			b.Problems = append(b.Problems, l.RemovalProblem)
		}
	}
	return b, ends
}
