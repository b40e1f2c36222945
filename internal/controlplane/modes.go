package controlplane

import (
	"cmp"
	"maps"
	"slices"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// listenerOf names the listener of an instance on a port.
type listenerOf struct {
	registeredOn
	port int
}

// modeInForce is the mode of a listener.
type modeInForce struct {
	settings.Mode
	followsService bool
	where          string // it is set
}

// listenerInfo is the labels of a series of usher_listener_info, besides the gateway.
type listenerInfo struct {
	port   int
	mode   settings.Mode
	source string
}

// modeChange is a change of the mode of listeners on one port.
type modeChange struct {
	port     int
	from, to settings.Mode
	where    string // the new one is set
}

// modes are those of the listeners of a gateway. The zero value has none.
type modes struct {
	inForce map[listenerOf]modeInForce // of instances with Envoys; never modified
	// left are those of instances whose Envoys have left: the next ones get the last valid version of a listener again.
	left     map[listenerOf]modeInForce
	heldBack map[listenerOf]bool
}

// checkModes logs which listeners of connected Envoys have another mode than before, and where it is set. If a listener has
// followed its Service and still does, the watcher of Services logs the change, with its reason.
func (w *gatewayWorker) checkModes() {
	if w.encoder.snapshot.Entry == nil {
		w.showListeners(nil)
		return
	}
	heldBack := w.encoder.heldBackListeners(w.served)
	if !w.modesOutdated && !w.servedChanged && maps.Equal(heldBack, w.modes.heldBack) {
		return
	}
	changes := w.modes.update(w.encoder.snapshot, w.served, heldBack, w.modesOutdated)
	w.modesOutdated, w.servedChanged = false, false
	w.showListeners(w.modes.inForce)
	for _, c := range slices.SortedFunc(maps.Keys(changes), func(a, b modeChange) int {
		return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.where, b.where), cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	}) {
		w.log.Info("proxy_protocol.mode of a listener changed", "port", c.port, "from", string(c.from), "to", string(c.to),
			"where", c.where, "instances", changes[c])
	}
}

// update replaces the modes: those of all instances with Envoys or, unless all is set, those of new ones, and of listeners
// that are no longer held back. It returns how many instances have each change.
func (m *modes) update(s *gateway.Snapshot, served map[envoyKey]bool, heldBack map[listenerOf]bool, all bool) map[modeChange]int {
	before := *m
	*m = modes{inForce: make(map[listenerOf]modeInForce, len(before.inForce)), left: map[listenerOf]modeInForce{}, heldBack: heldBack}
	hasEnvoy := make(map[registeredOn]bool, len(served))
	for k := range served {
		hasEnvoy[registeredOn{k.node, k.serviceID}] = true
	}
	changes := map[modeChange]int{}
	for _, in := range s.Instances {
		of := registeredOn{in.Node, in.ServiceID}
		for _, l := range s.Entry.Listeners {
			key := listenerOf{of, l.Port}
			was, inForce := before.inForce[key]
			if !inForce {
				was = before.left[key]
			}
			if !hasEnvoy[of] {
				m.left[key] = was
				continue
			}
			now := was
			if !heldBack[key] && (all || !inForce || before.heldBack[key]) {
				now = modeNow(s, in, l.Port, was)
			}
			if now.Mode == "" {
				continue
			}
			m.inForce[key] = now
			if inForce && now.Mode != was.Mode && (!now.followsService || !was.followsService) {
				changes[modeChange{l.Port, was.Mode, now.Mode, now.where}]++
			}
		}
	}
	return changes
}

// modeNow returns the mode that is set for a listener: the one before if that is not known.
func modeNow(s *gateway.Snapshot, in *gateway.Instance, port int, was modeInForce) modeInForce {
	resolved, resolves := s.ListenerSettings(in, port)
	if !resolves {
		return was
	}
	return modeInForce{resolved.ProxyProtocol.Mode, s.FollowsService(in, port), s.PlaceOfMode(in, port)}
}

// showListeners replaces the series of the listeners.
func (w *gatewayWorker) showListeners(modes map[listenerOf]modeInForce) {
	before := w.shownListeners
	w.shownListeners = listenerInfos(modes)
	w.plane.options.Metrics.setListeners(w.id, before, w.shownListeners)
}

// listenerInfos returns one item for each port and mode, however many instances and places there are.
func listenerInfos(modes map[listenerOf]modeInForce) map[listenerInfo]struct{} {
	places := map[listenerInfo][]string{}
	for of, m := range modes {
		l := listenerInfo{port: of.port, mode: m.Mode}
		places[l] = append(places[l], m.where)
	}
	infos := make(map[listenerInfo]struct{}, len(places))
	for l, all := range places {
		slices.Sort(all)
		if l.source = all[0]; l.source != all[len(all)-1] {
			l.source += " and others"
		}
		infos[l] = struct{}{}
	}
	return infos
}

// updateServed finds the keys of the Envoys, and of those that have a set.
func (w *gatewayWorker) updateServed() {
	served := map[envoyKey]bool{}
	w.connected = map[envoyKey]bool{}
	for _, s := range w.streams {
		for _, in := range w.encoder.instances.candidates(s.node) {
			k := keyOf(in, s.node)
			w.connected[k] = true
			if s.sent != nil {
				served[k] = true
			}
		}
	}
	if !maps.Equal(served, w.served) {
		w.served, w.servedChanged = served, true
	}
}

// heldBackListeners returns the listeners of Envoys that are held back.
func (e *encoder) heldBackListeners(served map[envoyKey]bool) map[listenerOf]bool {
	heldBack := map[listenerOf]bool{}
	for k := range served {
		for _, port := range e.heldBackPorts(e.current[k]) {
			heldBack[listenerOf{registeredOn{k.node, k.serviceID}, port}] = true
		}
	}
	return heldBack
}
