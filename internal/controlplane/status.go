package controlplane

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/status"
	"github.com/usherproxy/usher/listeners"
	"github.com/usherproxy/usher/xds"
)

// view is what a worker's loop publishes about its gateway, for Plane.Status and Plane.State, after each change and with as
// little work as possible. It is immutable.
type view struct {
	snapshot  *gateway.Snapshot // the compiled one
	instances instancesByID
	modes     map[listenerOf]modeInForce
	built     map[listenerOf]status.Built // of listeners that are not status.Current; nil if all are
	sets      []SetState                  // without Connected
	streams   []sentTo
}

// publishView replaces the view.
func (w *gatewayWorker) publishView() {
	e := &w.encoder
	sets, streams := w.currentSets()
	w.view.Store(&view{
		snapshot: e.snapshot, instances: e.instances, modes: w.modes.inForce, built: e.notCurrent(w.connected), sets: sets, streams: streams,
	})
}

// notCurrent returns which listeners of instances with Envoys are not as their settings ask. Where the Envoys of an
// instance differ, the worst counts.
func (e *encoder) notCurrent(connected map[envoyKey]bool) map[listenerOf]status.Built {
	var built map[listenerOf]status.Built
	for k := range connected {
		for _, port := range e.heldBackPorts(e.current[k]) {
			if built == nil {
				built = map[listenerOf]status.Built{}
			}
			key := listenerOf{registeredOn{k.node, k.serviceID}, port}
			if !e.current[k].has(port) {
				built[key] = status.HeldBack
			} else if built[key] == "" {
				built[key] = status.Kept
			}
		}
	}
	return built
}

// heldBackPorts returns the ports of the listeners that are not as their settings ask.
func (e *encoder) heldBackPorts(c compiled) (ports []int) {
	if c.panicked && e.snapshot.Entry != nil {
		for _, l := range e.snapshot.Entry.Listeners {
			ports = append(ports, l.Port)
		}
		return ports
	}
	for _, name := range c.heldBack {
		ports = append(ports, portOf(name))
	}
	return ports
}

// has reports whether the set has a listener on a port.
func (c compiled) has(port int) bool {
	if c.set == nil {
		return false
	}
	for name := range c.set.Collection(xds.Listener).All() {
		if portOf(name) == port {
			return true
		}
	}
	return false
}

// portOf returns the port of a listener with a name.
func portOf(name string) int {
	port, _ := strconv.Atoi(listeners.PortOf(name)) // no error: a listener has a port
	return port
}

// Status returns the gateways that are watched, and the Envoys of the given clients, as the model has them.
func (p *Plane) Status(clients []*xds.Client) ([]status.Gateway, []status.Envoy) {
	views := p.views()
	connected := map[gateway.ID]connectedEnvoys{}
	envoys := make([]status.Envoy, 0, len(clients))
	for _, c := range clients {
		id, _ := GatewayOf(c.Node) // no error: a node with a stream has a gateway
		candidates := views[id].candidates(c.Node)
		connected[id] = connected[id].with(c, candidates)
		envoys = append(envoys, envoyStatus(id, c, candidates))
	}
	gateways := make([]status.Gateway, 0, len(views))
	for id, v := range views {
		gateways = append(gateways, v.status(id, connected[id]))
	}
	slices.SortFunc(gateways, func(a, b status.Gateway) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(envoys, func(a, b status.Envoy) int {
		return cmp.Or(cmp.Compare(a.Gateway, b.Gateway), cmp.Compare(a.ServiceID, b.ServiceID), cmp.Compare(a.Node, b.Node),
			cmp.Compare(a.Address, b.Address), a.Connected.Compare(b.Connected))
	})
	return gateways, envoys
}

// views returns the views of all gateways that are watched; nil for a gateway without a snapshot.
func (p *Plane) views() map[gateway.ID]*view {
	p.mu.Lock()
	defer p.mu.Unlock()
	views := make(map[gateway.ID]*view, len(p.workers))
	for id, w := range p.workers {
		views[id] = w.view.Load()
	}
	return views
}

// connectedEnvoys are the Envoys of one gateway that are connected here.
type connectedEnvoys struct {
	count     int
	instances map[*gateway.Instance][]*xds.Client // that they may be
}

func (e connectedEnvoys) with(c *xds.Client, candidates []*gateway.Instance) connectedEnvoys {
	if e.instances == nil {
		e.instances = map[*gateway.Instance][]*xds.Client{}
	}
	for _, in := range candidates {
		e.instances[in] = append(e.instances[in], c)
	}
	e.count++
	return e
}

// hasAccepted reports whether an Envoy has the newest version of the listener on a port.
func hasAccepted(c *xds.Client, port int) bool {
	of := c.Types[xds.Listener]
	if of.Sync == xds.Synced {
		return true
	}
	found := false
	for name := range of.Current.All() {
		if portOf(name) == port {
			if found = of.SyncOf(name) == xds.Synced; !found {
				return false
			}
		}
	}
	return found
}

// candidates returns the instances that an Envoy may be; none for nil.
func (v *view) candidates(n xds.Node) []*gateway.Instance {
	if v == nil {
		return nil
	}
	return v.instances.candidates(n)
}

// status returns the gateway.
func (v *view) status(id gateway.ID, connected connectedEnvoys) status.Gateway {
	g := status.Gateway{Name: id.String(), Envoys: connected.count, Listeners: []status.Listener{}}
	if v == nil {
		return g
	}
	s := v.snapshot
	g.Known, g.Entry, g.Instances, g.Restored = true, s.Entry != nil, len(s.Instances), s.Restored
	if s.Entry == nil {
		return g
	}
	instances := s.Instances
	if len(connected.instances) > 0 {
		instances = slices.DeleteFunc(slices.Clone(instances), func(in *gateway.Instance) bool { return connected.instances[in] == nil })
	}
	states := make([]instanceState, 0, len(instances))
	for _, in := range instances {
		states = append(states, instanceState{in, connected.instances[in], s.ModeSettings(in)})
	}
	for _, l := range s.Entry.Listeners {
		g.Listeners = append(g.Listeners, v.listeners(l, states)...)
	}
	slices.SortStableFunc(g.Listeners, func(a, b status.Listener) int { return cmp.Compare(a.Port, b.Port) })
	return g
}

// instanceState is an instance with the modes that are set for its listeners.
type instanceState struct {
	*gateway.Instance
	envoys      []*xds.Client // connected ones
	modeSetting func(port int) (mode settings.Mode, place string, known bool)
}

// listeners returns the listeners that instances have on a port: one for those whose modes are equal.
func (v *view) listeners(l gateway.Listener, instances []instanceState) []status.Listener {
	var all []status.Listener
	for _, in := range instances {
		mode, place := v.mode(in, l.Port)
		i := slices.IndexFunc(all, func(other status.Listener) bool { return other.Mode == mode })
		if i < 0 {
			i = len(all)
			all = append(all, status.Listener{
				Port: l.Port, Protocol: gateway.NormalProtocol(l.Protocol), TLS: v.snapshot.Entry.TLS.Override(l.TLS).Enabled,
				Mode: mode, Place: place, Settings: v.settings(in.Instance, l.Port), Services: v.services(l.Port),
			})
		}
		all[i].Instances = append(all[i].Instances, status.Instance{Node: in.Node, ServiceID: in.ServiceID})
	}
	if len(all) == 1 {
		all[0].Instances = nil
	}
	return all
}

// settings returns the settings of an instance's listener that do not have their default, and its mode.
func (v *view) settings(in *gateway.Instance, port int) (all []status.Setting) {
	if !v.snapshot.KnowsSettings(in) {
		return nil
	}
	for _, o := range v.snapshot.ExplainListener(in, port) {
		s := status.Setting{Setting: o.Setting, Value: o.Value, Place: cmp.Or(o.Place, "the default")}
		if o.Hidden {
			s.Value = `"[redacted]"`
		}
		if o.Layer >= 0 || o.Setting == "proxy_protocol.mode" {
			all = append(all, s)
		}
	}
	return all
}

// services returns the services on a port.
func (v *view) services(port int) (all []status.Service) {
	for _, s := range v.snapshot.Services {
		if s.Port == port {
			all = append(all, status.Service{Name: s.Service.String(), Hosts: s.Hosts})
		}
	}
	return all
}

// mode returns the mode of an instance's listener, and where it is set.
func (v *view) mode(in instanceState, port int) (mode status.Mode, place string) {
	key := listenerOf{registeredOn{in.Node, in.ServiceID}, port}
	asked, place, known := in.modeSetting(port)
	if !known {
		place = ""
	}
	mode = status.Mode{
		Asked: string(asked), InForce: string(v.modes[key].Mode), Built: cmp.Or(v.built[key], status.Current),
	}
	mode.Unconfirmed = slices.ContainsFunc(in.envoys, func(c *xds.Client) bool { return !hasAccepted(c, port) })
	var follows gateway.PortState
	if asked == settings.Auto {
		follows = v.snapshot.BalancerOf(in.Instance).ForPort(port)
		mode.GraceEnd = follows.GraceEnd
	}
	switch {
	case mode.Built == status.HeldBack:
		mode.InForce, mode.Unconfirmed, mode.Reason = "", false, "it cannot be built, and there is no valid version of it from before; the problems say why"
	case mode.Built == status.Kept:
		mode.Reason = "it cannot be built, and its last valid version stays; the problems say why"
	case asked != settings.Auto:
	case v.snapshot.Balancers == nil || in.Kubernetes == (gateway.KubernetesService{}):
		mode.Reason = "its instance has no Kubernetes Service that Usher watches, so auto is off"
	default:
		mode.Reason = in.Kubernetes.String() + reasonOf(follows)
	}
	return mode, place
}

// reasonOf returns what a Service says about a listener that follows it.
func reasonOf(state gateway.PortState) string {
	switch {
	case state.Reason != "":
		return ": " + state.Reason
	case !state.GraceEnd.IsZero():
		return " is being switched"
	case state.ProxyVersion != "":
		return " asks for PROXY " + string(state.ProxyVersion)
	case state.Mode != settings.Off:
		return " asks for PROXY headers"
	}
	return " asks for no PROXY headers"
}

// envoyStatus returns an Envoy. candidates are the instances that it may be.
func envoyStatus(id gateway.ID, c *xds.Client, candidates []*gateway.Instance) status.Envoy {
	e := status.Envoy{
		Gateway: id.String(), ServiceID: c.Node.ID, Node: c.Node.Metadata["node_name"], Release: c.Node.Release(),
		Protocol: c.Protocol, Dataplane: c.Node.Forwarded, Connected: c.Connected, Types: []status.Type{},
	}
	if len(candidates) == 1 {
		e.Node = candidates[0].Node
	}
	if c.Node.Peer.IsValid() {
		e.Address = c.Node.Peer.String()
	}
	for t, state := range c.Types {
		if state.Sync != xds.NotRequested {
			e.Types = append(e.Types, typeStatus(xds.Type(t), state))
		}
	}
	return e
}

var syncs = [...]status.Sync{
	xds.Pending: status.Pending, xds.Stale: status.Stale, xds.Refused: status.Refused, xds.Synced: status.Synced, xds.Waiting: status.Waiting,
}

func typeStatus(t xds.Type, state xds.ClientType) status.Type {
	s := status.Type{Type: t.String(), Sync: syncs[state.Sync], Since: state.Since}
	if state.Accepted != nil {
		s.Version, s.Resources = state.Accepted.Version(), state.Accepted.Len()
	}
	if r := state.Rejection; r != nil {
		s.Error, s.Refused, s.Missing = r.Message, xds.FirstNames(r.Resources), r.Missing
	}
	return s
}
