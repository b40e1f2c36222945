package xds

import (
	"maps"
	"slices"
	"time"
)

// Client is an Envoy with an open and authorized stream. It is immutable.
type Client struct {
	Node      Node
	Protocol  string    // delta or sotw
	Connected time.Time // when it was authorized
	Types     [NumTypes]ClientType
}

// ClientType is what an Envoy has of one type. The zero value: it has not asked for the type.
type ClientType struct {
	Sync  Sync
	Since time.Time // since when Sync is so
	// Accepted are the resources of the type when the Envoy last had all that it subscribes to; nil: never on this stream.
	Accepted *Collection
	// Current are the resources that the Envoy is to have, as far as it subscribes to them; nil: not known yet.
	Current *Collection
	// Unsettled are the names that are Pending, Stale or Waiting by themselves; nil: none. It is never modified.
	Unsettled *map[string]Sync
	// Rejection is why Sync is Refused; nil otherwise.
	Rejection *Rejection
}

// Sync says whether an Envoy has what its set has for it.
type Sync uint8

// The states of a type.
const (
	NotRequested Sync = iota // the Envoy has not asked for the type
	Pending                  // something was not sent yet, or nothing is known yet
	Stale                    // something was sent, and the Envoy has not answered
	Refused                  // the Envoy has rejected something, and has not been sent it again and accepted it since
	Waiting                  // something differs, but the set is restored: the Envoy keeps what it has
	Synced                   // the Envoy has accepted everything
)

// SyncOf returns whether the Envoy has one of the resources in Current: Refused if it has rejected the last version that it was
// sent, even while another one is under way.
func (t ClientType) SyncOf(name string) Sync {
	if t.Current.Get(name) == nil {
		return t.Sync
	}
	if t.Rejection != nil && slices.Contains(t.Rejection.Resources, name) {
		return Refused
	}
	if t.Unsettled != nil {
		if sync, unsettled := (*t.Unsettled)[name]; unsettled {
			return sync
		}
	}
	return Synced
}

// Clients returns the Envoys whose streams are open and authorized, in no order.
func (s *Server) Clients() []*Client {
	s.admission.mu.Lock()
	streams := slices.Collect(maps.Keys(s.admission.streams))
	s.admission.mu.Unlock()
	var clients []*Client
	for _, stream := range streams {
		if c := stream.client.Load(); c != nil {
			clients = append(clients, c)
		}
	}
	return clients
}

// publishStatus publishes what the Envoy has, if that has changed.
func (s *session) publishStatus() {
	if s.node == nil {
		return
	}
	last := s.admitted.client.Load()
	if last == nil {
		last = &Client{}
	}
	now := Client{Node: *s.node, Protocol: s.protocol.name, Connected: s.connectedAt}
	for t := range s.state.types {
		now.Types[t] = s.clientType(Type(t), last.Types[t])
	}
	if last.Connected.IsZero() || now.Types != last.Types {
		s.admitted.client.Store(&now)
	}
}

// reportDelivered reports the set that the Envoy has, when it has all of it.
func (s *session) reportDelivered() {
	if s.node == nil || s.state.set == nil || s.state.set == s.delivered || s.options.Observer == nil {
		return
	}
	for _, t := range s.admitted.client.Load().Types {
		if t.Sync != Synced && t.Sync != NotRequested {
			return
		}
	}
	s.delivered = s.state.set
	s.options.Observer.Delivered(s.node, s.delivered)
}

// clientType returns what the Envoy has of a type now. last is what it had before.
func (s *session) clientType(t Type, last ClientType) ClientType {
	state, nack := &s.state.types[t], &s.nacks[t]
	now := ClientType{Sync: state.sync(), Since: last.Since, Accepted: last.Accepted, Current: state.baseline, Unsettled: last.Unsettled}
	if unsettled := state.unsettled(); len(unsettled) == 0 {
		now.Unsettled = nil
	} else if now.Unsettled == nil || !maps.Equal(unsettled, *now.Unsettled) {
		now.Unsettled = &unsettled
	}
	switch {
	case len(state.refused) > 0:
		now.Sync, now.Rejection = Refused, nack.reported
	case now.Sync == Synced:
		now.Accepted = state.baseline
	}
	if now.Sync != last.Sync {
		now.Since = time.Now()
	}
	return now
}

// sync returns whether Envoy has everything, without regard to a rejection.
func (t *typeState) sync() Sync {
	switch {
	case !t.started:
		return NotRequested
	case t.awaitingACK != nil:
		return Stale
	case t.keepsOld():
		return Waiting
	case t.baseline == nil || t.dirty > 0 || t.needsFirstResponse():
		return Pending
	}
	return Synced
}

// unsettled returns the names of the changes that wait to be sent, which are Pending or Waiting, and of those to which Envoy has
// not answered, which are Stale.
func (t *typeState) unsettled() map[string]Sync {
	if t.awaitingACK == nil && t.dirty == 0 {
		return nil
	}
	all := map[string]Sync{}
	if t.awaitingACK != nil {
		for _, r := range t.awaitingACK.changed {
			all[r.Name()] = Stale
		}
	}
	for name, n := range t.overrides {
		switch {
		case !n.dirty:
		case t.withholds(name):
			all[name] = Waiting
		default:
			all[name] = Pending
		}
	}
	return all
}
