package listeners

import (
	"reflect"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"

	"github.com/usherproxy/usher/gateway"
	"github.com/usherproxy/usher/internal/ordered"
)

// socketsKey tells Envoys apart that have listeners of their own.
type socketsKey struct {
	node, serviceID string
	shape           shapeKey
}

// sockets are the listeners of one instance. They are immutable.
type sockets struct {
	madeOf    madeOf
	listeners ordered.Map[*listenerv3.Listener]
	withheld  []string
	problems  []gateway.Problem
}

// next gives the listeners of a newer snapshot. Those before the first
// are nil.
func (s *sockets) next(shape *shape, in *gateway.Instance) *sockets {
	from := madeOf{instance: in, ports: shape.ports, defaults: shape.env.snapshot.Defaults, operator: shape.env.snapshot.Operator}
	if s != nil && s.madeOf.same(from) {
		return s
	}
	now := &sockets{madeOf: from}
	inst := instanceOf(shape.env.snapshot, in)
	now.problems = inst.problems
	for _, p := range shape.ports {
		now.port(shape.env, inst, p)
	}
	slices.Sort(now.withheld)
	return now
}

// madeOf is everything that listeners follow from, beside their key.
type madeOf struct {
	instance           *gateway.Instance
	ports              []compiledPort // with the shape's environment
	defaults, operator gateway.Layer
}

// same looks at pointers only: false says nothing.
func (m madeOf) same(other madeOf) bool {
	return m.instance == other.instance && identical(m.ports, other.ports) &&
		reflect.DeepEqual(m.defaults, other.defaults) && reflect.DeepEqual(m.operator, other.operator)
}

// port adds the listeners of one port, or withholds them.
func (s *sockets) port(env environment, inst instance, p compiledPort) {
	if p.err != nil {
		s.withheld = append(s.withheld, listenerNames(inst, p.port)...)
		s.problem(p.port, p.err)
		return
	}
	for _, address := range inst.addresses {
		if inst.unknown {
			s.withheld = append(s.withheld, listenerName(p.port, address))
			continue
		}
		l, err := listenerOf(env, inst, p.port, address)
		if err != nil {
			s.withheld = append(s.withheld, listenerName(p.port, address))
			s.problem(p.port, err)
			continue
		}
		s.listeners = s.listeners.With(l.Name, l)
	}
}

func (s *sockets) problem(p port, err error) {
	s.problems = append(s.problems, gateway.Problem{Where: p.where(), What: err.Error()})
}
