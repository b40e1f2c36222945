package controlplane

import (
	"slices"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// unservedAfter is how long the Envoys of a gateway have to connect: they start with their pods, and come from other
// replicas of Usher.
const unservedAfter = time.Minute

// registeredOn names an instance. A service ID is of one node only.
type registeredOn struct{ node, serviceID string }

// unserved finds out that a gateway whose listeners accept PROXY headers has no Envoy here. If no other replica has one
// either, the gateway runs on Consul's own xDS, which answers 400 to each connection with a header.
type unserved struct {
	instances int  // registered ones with a listener that accepts PROXY headers
	outdated  bool // the count of instances

	since  time.Time        // zero: there is an Envoy, or no such instance
	timer  <-chan time.Time // for unservedAfter
	logged bool
}

// update reports whether it is time to log that the gateway has been without an Envoy for unservedAfter.
func (u *unserved) update(envoys int, now time.Time) bool {
	switch {
	case envoys > 0 || u.instances == 0:
		u.since, u.timer, u.logged = time.Time{}, nil, false
	case u.since.IsZero():
		u.since, u.timer = now, time.After(unservedAfter)
	case !u.logged && now.Sub(u.since) >= unservedAfter:
		u.logged = true
		return true
	}
	return false
}

// checkServed updates what the metrics and the log say about the gateway's Envoys.
func (w *gatewayWorker) checkServed() {
	u := &w.unserved
	if u.outdated {
		u.instances, u.outdated = countProxyProtocol(w.fullSnapshot()), false
	}
	envoys := map[registeredOn]struct{}{}
	for _, s := range w.streams {
		envoys[registeredOn{s.node.Metadata["node_name"], s.node.ID}] = struct{}{}
	}
	w.plane.options.Metrics.setGateway(w.id, len(envoys), len(w.snapshot.Instances), u.instances)
	if u.update(len(envoys), time.Now()) {
		w.log.Warn("no Envoy of the gateway is connected here, and its listeners accept PROXY headers",
			"instances", u.instances, "check", "if usher_gateway_envoys is 0 on all replicas of Usher, "+
				"the gateway runs on Consul's own xDS, which answers 400 to PROXY headers; docs/kubernetes.md says what leads its pods to Usher")
	}
}

// countProxyProtocol returns how many instances have a listener that accepts PROXY headers.
func countProxyProtocol(s *gateway.Snapshot) (n int) {
	if s.Entry == nil {
		return 0
	}
	for _, in := range s.Instances {
		if slices.ContainsFunc(s.Entry.Listeners, func(l gateway.Listener) bool {
			resolved, known := s.ListenerSettings(in, l.Port)
			return known && resolved.ProxyProtocol.Enabled()
		}) {
			n++
		}
	}
	return n
}
