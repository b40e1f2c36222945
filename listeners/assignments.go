package listeners

import (
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/usherproxy/usher/gateway"
)

// assignments are the load assignments of a shape's legs, in their order. They
// are immutable.
type assignments struct {
	made      []*assignment
	endpoints []*endpointv3.ClusterLoadAssignment // those that are known
	problems  []gateway.Problem
}

// assignment is what became of a key.
type assignment struct {
	key      assignmentKey
	message  *endpointv3.ClusterLoadAssignment // nil: not answered yet
	problems []gateway.Problem
}

// next gives the assignments of a newer snapshot. One whose key is the same is
// not made again. The legs are in the order of their clusters, so one pass over
// both finds it.
func (last assignments) next(s *gateway.Snapshot, legs []leg) assignments {
	now := assignments{made: make([]*assignment, len(legs))}
	changed := len(legs) != len(last.made)
	old := last.made
	for i, l := range legs {
		key := assignmentKeyOf(s, l)
		for len(old) > 0 && old[0].key.cluster < key.cluster {
			old = old[1:]
		}
		if len(old) > 0 && old[0].key == key {
			now.made[i] = old[0]
			continue
		}
		now.made[i] = newAssignment(key)
		changed = true
	}
	if !changed {
		return last
	}
	for _, a := range now.made {
		if a.message != nil {
			now.endpoints = append(now.endpoints, a.message)
		}
		now.problems = append(now.problems, a.problems...)
	}
	return now
}

func newAssignment(k assignmentKey) *assignment {
	a := &assignment{key: k}
	a.message, a.problems = loadAssignment(k)
	return a
}
