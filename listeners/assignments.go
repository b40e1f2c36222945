package listeners

import (
	"iter"
	"maps"
	"slices"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
)

// assignments are the load assignments of a shape's legs. They are immutable.
type assignments struct {
	made      ordered.Map[*assignment]                       // of every leg, by its cluster
	endpoints ordered.Map[*endpointv3.ClusterLoadAssignment] // those that are known, by their clusters
	unknown   ordered.Map[*assignment]                       // those that are not known
	troubled  ordered.Map[*assignment]                       // those with problems
}

// assignment is what became of a key.
type assignment struct {
	key      assignmentKey
	message  *endpointv3.ClusterLoadAssignment // nil: not known
	problems []problem.Problem
}

// legs are clusters with instances behind them, no two of one name.
type legs struct {
	all      []leg
	byTarget map[string][]leg // by the target's ID
}

// legsOf gives the legs. Of two of one name the first counts.
func legsOf(list []leg) legs {
	l := legs{byTarget: make(map[string][]leg, len(list))}
	seen := make(map[string]bool, len(list))
	for _, leg := range list {
		if seen[leg.cluster] {
			continue
		}
		seen[leg.cluster] = true
		l.all = append(l.all, leg)
		l.byTarget[leg.target.ID] = append(l.byTarget[leg.target.ID], leg)
	}
	return l
}

// between gives the legs whose instances are others in now than in before.
func (l legs) between(before, now *gateway.Snapshot) iter.Seq[leg] {
	if !maps.Equal(before.MeshGateways, now.MeshGateways) {
		return slices.Values(l.all)
	}
	return func(yield func(leg) bool) {
		for id := range now.Endpoints.ChangedSince(before.Endpoints) {
			for _, leg := range l.byTarget[id] {
				if !yield(leg) {
					return
				}
			}
		}
	}
}

// assign makes the assignments of all legs. One whose key is the same as in last
// is not made again.
func assign(s *gateway.Snapshot, legs []leg, last assignments) assignments {
	all := make([]*assignment, len(legs))
	var known []*endpointv3.ClusterLoadAssignment
	var unknown, troubled []*assignment
	for i, l := range legs {
		all[i] = last.of(assignmentKeyOf(s, l))
		if all[i].message != nil {
			known = append(known, all[i].message)
		} else {
			unknown = append(unknown, all[i])
		}
		if len(all[i].problems) > 0 {
			troubled = append(troubled, all[i])
		}
	}
	byCluster := func(a *assignment) string { return a.key.cluster }
	return assignments{
		made:      ordered.By(all, byCluster).OrSame(last.made),
		endpoints: ordered.By(known, (*endpointv3.ClusterLoadAssignment).GetClusterName).OrSame(last.endpoints),
		unknown:   ordered.By(unknown, byCluster).OrSame(last.unknown),
		troubled:  ordered.By(troubled, byCluster).OrSame(last.troubled),
	}
}

// next gives the assignments of a newer snapshot that has the same legs, some of
// which have other instances.
func (a assignments) next(s *gateway.Snapshot, changed iter.Seq[leg]) assignments {
	for l := range changed {
		made := a.of(assignmentKeyOf(s, l))
		a.made = a.made.With(l.cluster, made)
		a.endpoints = holding(a.endpoints, l.cluster, made.message, made.message != nil)
		a.unknown = holding(a.unknown, l.cluster, made, made.message == nil)
		a.troubled = holding(a.troubled, l.cluster, made, len(made.problems) > 0)
	}
	return a
}

// holding returns the map with the value if holds is true, and otherwise without it.
func holding[V comparable](m ordered.Map[V], name string, v V, holds bool) ordered.Map[V] {
	if holds {
		return m.With(name, v)
	}
	return m.Without(name)
}

// withheld returns the names of the assignments that are not known, in order.
func (a assignments) withheld() []string {
	var names []string
	for name := range a.unknown.All() {
		names = append(names, name)
	}
	return names
}

// of gives the assignment of a key.
func (a assignments) of(k assignmentKey) *assignment {
	if made := a.made.Get(k.cluster); made != nil && made.key == k {
		return made
	}
	message, problems := loadAssignment(k)
	return &assignment{key: k, message: message, problems: problems}
}

func (a assignments) problems() []problem.Problem {
	var out []problem.Problem
	for t := range a.troubled.Values() {
		out = append(out, t.problems...)
	}
	return out
}
