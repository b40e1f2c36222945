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

// serviceState is what Usher has to remember about a Service between two events. It is never modified. The zero
// value: nothing is known. The exported fields are stored as JSON, see stateStore.
type serviceState struct {
	ResourceVersion   string            `json:"version"`   // of the last revision of the Service that was observed
	Ports             map[int]portState `json:"listeners"` // by the listener's port
	OtherPorts        portState         `json:"others"`    // of the listeners that no port of the Service leads to
	PreservesClientIP bool              `json:"peerIsClient,omitempty"`
}

// portState is what Usher has to remember about one listener. The zero value: nothing is known.
type portState struct {
	portIntent            // the last one whose state was known
	Changed     time.Time `json:"changed,omitzero"` // when it changed to that; zero: there is no grace period
	Modified    time.Time `json:"newest,omitzero"`  // of the revision of the Service that changed it
	FrozenSince time.Time `json:"stayed,omitzero"`  // since when the intent is unknown, and the listener keeps its mode

	annotationRemoved bool // the annotation was removed, and the cloud does not follow that
}

// observation is what one event says about a Service.
type observation struct {
	intent *serviceIntent // nil: it is unknown what the Service asks for
	at     time.Time
}

// next returns the state after an observation, for an Usher that knew s and reads the stored state of all Ushers.
func (s serviceState) next(stored serviceState, o observation) serviceState {
	stored = stored.plausible(o.at)
	s = s.newer(stored)
	switch {
	case o.intent == nil:
		return s.freeze(o.at)
	case isNewer(stored.ResourceVersion, o.intent.resourceVersion):
		return s // another Usher has observed a later revision, which comes here soon
	}
	return s.observe(*o.intent, o.at)
}

// observe returns the state after a revision of the Service was read.
func (s serviceState) observe(intent serviceIntent, now time.Time) serviceState {
	next := serviceState{
		ResourceVersion: intent.resourceVersion, Ports: map[int]portState{},
		OtherPorts:        s.OtherPorts.observe(intent.otherPorts, intent.modified, now),
		PreservesClientIP: intent.preservesClientIP,
	}
	for port, ofPort := range intent.ports {
		last := s.Ports[port]
		if intent.created.After(last.Modified) {
			last.RemovalProblem = problem.Problem{} // it is another load balancer
		}
		next.Ports[port] = last.observe(ofPort, intent.modified, now)
	}
	return next
}

func (p portState) observe(intent portIntent, modified, now time.Time) portState {
	if intent.State == proxyUnknown {
		return p.freeze(now)
	}
	if intent.unset && p.State == proxyOn && p.RemovalProblem != (problem.Problem{}) {
		p.annotationRemoved, p.FrozenSince = true, time.Time{}
		return p
	}
	next := portState{portIntent: intent, Modified: modified}
	switch {
	case intent.State == proxyMixed: // permissive for as long as it is
	case intent.State == proxyOn && p.State == proxyOn && p.Version == intent.Version && !p.mayHaveMissedChange(intent):
		next.Changed = p.Changed // something else has changed, if anything
	case intent.State == proxyOn: // switched on
		next.Changed = intent.since
	case p.State == proxyOff: // still off
		next.Changed = p.Changed
	case p.State == proxyOn || p.State == proxyMixed: // switched off
		next.Changed = now
		if modified.After(p.Modified) {
			next.Changed = modified // the same for all Ushers
		}
	}
	return next
}

// mayHaveMissedChange reports whether the intent may have been another one, and this one again, while it was
// unknown.
func (p portState) mayHaveMissedChange(intent portIntent) bool {
	return !p.FrozenSince.IsZero() && intent.since.After(p.FrozenSince)
}

// replay returns the state after earlier revisions of the Service, the oldest first. It has no resourceVersion, so
// any stored state takes precedence.
func (s serviceState) replay(revisions []*corev1.Service, now time.Time) serviceState {
	for _, revision := range revisions {
		s = s.observe(readIntent(revision), now)
	}
	s.ResourceVersion = ""
	return s
}

// freeze returns the state after it became unknown what the Service asks for.
func (s serviceState) freeze(now time.Time) serviceState {
	s.Ports = maps.Clone(s.Ports)
	for port, p := range s.Ports {
		s.Ports[port] = p.freeze(now)
	}
	s.OtherPorts = s.OtherPorts.freeze(now)
	return s
}

func (p portState) freeze(now time.Time) portState {
	if p.FrozenSince.IsZero() {
		p.FrozenSince = now
	}
	return p
}

func (s serviceState) frozen() bool { return !s.OtherPorts.FrozenSince.IsZero() }

// newer returns the newer one of two states. The deletion of a Service has no ResourceVersion: the state that is
// frozen is the newer one then.
func (s serviceState) newer(stored serviceState) serviceState {
	switch {
	case stored.ResourceVersion == "":
		return s
	case s.ResourceVersion == "" || isNewer(stored.ResourceVersion, s.ResourceVersion):
		return stored
	case stored.ResourceVersion == s.ResourceVersion && stored.frozen() && !s.frozen():
		return stored
	}
	return s
}

// isNewer compares versions of one Service. Versions that are not numbers are never newer.
func isNewer(a, b string) bool {
	n, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && n > 0
}

// removalProblems returns the problems of annotations that were removed without effect.
func (s serviceState) removalProblems() []problem.Problem {
	var out []problem.Problem
	for _, port := range slices.Sorted(maps.Keys(s.Ports)) {
		if p := s.Ports[port]; p.annotationRemoved && !slices.Contains(out, p.RemovalProblem) {
			out = append(out, p.RemovalProblem)
		}
	}
	return out
}

// mode returns the mode of the listener, empty if it was never known, and when it changes without another event;
// zero: never.
func (p portState) mode(grace time.Duration, now time.Time) (settings.Mode, time.Time) {
	end := p.Changed.Add(grace)
	inGrace := now.Before(end)
	if !p.FrozenSince.IsZero() {
		inGrace, end = p.FrozenSince.Before(end), time.Time{}
	}
	switch {
	case p.State == proxyMixed:
		return settings.Permissive, time.Time{}
	case p.State == proxyOff && (p.Changed.IsZero() || !inGrace):
		return settings.Off, time.Time{}
	case p.State == proxyOn && !inGrace:
		return settings.Strict, time.Time{}
	case p.State == proxyOn || p.State == proxyOff:
		return settings.Permissive, end
	}
	return "", time.Time{}
}

// balancer returns what follows from the state for listeners, and the end of each grace period, by port. Listeners
// that no port of the Service leads to are port 0.
func (s serviceState) balancer(grace time.Duration, now time.Time) (*gateway.Balancer, map[int]time.Time) {
	ends := map[int]time.Time{}
	stateOf := func(port int, p portState) gateway.PortState {
		mode, end := p.mode(grace, now)
		if !end.IsZero() {
			ends[port] = end
		}
		return gateway.PortState{Mode: mode, ProxyVersion: p.Version}
	}
	b := &gateway.Balancer{
		Ports: map[int]gateway.PortState{}, OtherPorts: stateOf(0, s.OtherPorts), PreservesClientIP: s.PreservesClientIP,
	}
	for port, p := range s.Ports {
		b.Ports[port] = stateOf(port, p)
	}
	return b, ends
}
