package listeners

import (
	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
)

// Compiler compiles the snapshots of one gateway, one after the other, and makes
// anew only what a change has touched: a part that did not change is the same
// message as before, and where nothing of a kind changed it is the same map.
// For that, what did not change in a snapshot must have kept its pointer. The
// zero value is ready. A Compiler belongs to one goroutine.
type Compiler struct {
	snapshot *gateway.Snapshot // the one compiled last

	// The parts of that snapshot that somebody asked for, and of the one before.
	shapes, oldShapes   map[shapeKey]*shape
	sockets, oldSockets map[socketsKey]*sockets
}

// Compile gives the same resources as the function Compile does.
func (c *Compiler) Compile(s *gateway.Snapshot, in *gateway.Instance, e gateway.EnvoyVersion) *Resources {
	if s != c.snapshot {
		c.snapshot = s
		c.shapes, c.oldShapes = map[shapeKey]*shape{}, c.shapes
		c.sockets, c.oldSockets = map[socketsKey]*sockets{}, c.sockets
	}
	k := socketsKey{node: in.Node, serviceID: in.ServiceID, shape: shapeKey{envoy: envoy.CapabilitiesOf(e), fetch: fetchTimeoutOf(in)}}
	shape := c.shapeOf(k.shape)
	sockets := c.socketsOf(k, shape, in)
	return &Resources{
		Listeners:         sockets.listeners,
		WithheldListeners: sockets.withheld,
		WithheldEndpoints: shape.assignments.withheld(),
		Routes:            shape.routes,
		Clusters:          sockets.clusters,
		Endpoints:         shape.assignments.endpoints,
		Secrets:           shape.secrets,
		TokenBuckets:      sockets.buckets,
		Problems:          problemsOf(sockets.problems, shape.problems, shape.assignments.problems()),
	}
}

func (c *Compiler) shapeOf(k shapeKey) *shape {
	if c.shapes[k] == nil {
		c.shapes[k] = c.oldShapes[k].next(k, c.snapshot)
	}
	return c.shapes[k]
}

func (c *Compiler) socketsOf(k socketsKey, shape *shape, in *gateway.Instance) *sockets {
	if c.sockets[k] == nil {
		c.sockets[k] = c.oldSockets[k].next(shape, in)
	}
	return c.sockets[k]
}
