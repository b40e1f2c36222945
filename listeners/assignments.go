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

// assignments are the load assignments of clusters, by the clusters' names. They are immutable.
type assignments struct {
	all        ordered.Map[*assignment]
	endpoints  ordered.Map[*endpointv3.ClusterLoadAssignment] // those that are known
	incomplete ordered.Map[*assignment]                       // those that are not known, or have problems
}

// assignment is what a key leads to.
type assignment struct {
	key      assignmentKey
	message  *endpointv3.ClusterLoadAssignment // nil: not known
	problems []problem.Problem
}

func (a *assignment) isIncomplete() bool { return a.message == nil || len(a.problems) > 0 }

// targetClusters are clusters with instances behind them, no two of one name.
type targetClusters struct {
	all        []targetCluster
	byTargetID map[string][]targetCluster
}

// targetClustersOf returns the clusters. Of two of one name the first counts.
func targetClustersOf(list []targetCluster) targetClusters {
	out := targetClusters{byTargetID: make(map[string][]targetCluster, len(list))}
	seen := make(map[string]bool, len(list))
	for _, c := range list {
		if !seen[c.name] {
			seen[c.name] = true
			out.all = append(out.all, c)
			out.byTargetID[c.target.ID] = append(out.byTargetID[c.target.ID], c)
		}
	}
	return out
}

// changedBetween returns the clusters whose instances differ between two snapshots.
func (t targetClusters) changedBetween(before, now *gateway.Snapshot) iter.Seq[targetCluster] {
	if !maps.Equal(before.MeshGateways, now.MeshGateways) {
		return slices.Values(t.all)
	}
	return func(yield func(targetCluster) bool) {
		for id := range now.Endpoints.ChangedSince(before.Endpoints) {
			for _, c := range t.byTargetID[id] {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// newAssignments makes the assignments of all clusters. One whose key is the same as in last is not made again.
func newAssignments(s *gateway.Snapshot, clusters []targetCluster, last assignments) assignments {
	all := make([]*assignment, len(clusters))
	var known []*endpointv3.ClusterLoadAssignment
	var incomplete []*assignment
	for i, c := range clusters {
		all[i] = last.build(assignmentKeyOf(s, c))
		if all[i].message != nil {
			known = append(known, all[i].message)
		}
		if all[i].isIncomplete() {
			incomplete = append(incomplete, all[i])
		}
	}
	byCluster := func(a *assignment) string { return a.key.cluster }
	return assignments{
		all:        ordered.By(all, byCluster).OrSame(last.all),
		endpoints:  ordered.By(known, (*endpointv3.ClusterLoadAssignment).GetClusterName).OrSame(last.endpoints),
		incomplete: ordered.By(incomplete, byCluster).OrSame(last.incomplete),
	}
}

// update returns the assignments of a newer snapshot in which the clusters are the same and some of them have other
// instances.
func (a assignments) update(s *gateway.Snapshot, changed iter.Seq[targetCluster]) assignments {
	for c := range changed {
		now := a.build(assignmentKeyOf(s, c))
		a.all = a.all.With(c.name, now)
		a.endpoints = withOrWithout(a.endpoints, c.name, now.message, now.message != nil)
		a.incomplete = withOrWithout(a.incomplete, c.name, now, now.isIncomplete())
	}
	return a
}

// withOrWithout returns the map with the value if with is true, and otherwise without it.
func withOrWithout[V comparable](m ordered.Map[V], name string, v V, with bool) ordered.Map[V] {
	if with {
		return m.With(name, v)
	}
	return m.Without(name)
}

// build returns the assignment of a key, the same one if there is one.
func (a assignments) build(k assignmentKey) *assignment {
	if made := a.all.Get(k.cluster); made != nil && made.key == k {
		return made
	}
	message, problems := loadAssignment(k)
	return &assignment{key: k, message: message, problems: problems}
}

// heldBack returns the names of the assignments that are not known, in order.
func (a assignments) heldBack() []string {
	var names []string
	for name, made := range a.incomplete.All() {
		if made.message == nil {
			names = append(names, name)
		}
	}
	return names
}

func (a assignments) problems() []problem.Problem {
	var all []problem.Problem
	for made := range a.incomplete.Values() {
		all = append(all, made.problems...)
	}
	return all
}
