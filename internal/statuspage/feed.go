package statuspage

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/usherproxy/usher/internal/status"
)

// interval is how often a state is read, and so how often a page gets changes at most.
const interval = 250 * time.Millisecond

// feed shares each state between all who ask for one, and divides it into parts, so that pages get those that have changed.
type feed struct {
	read func() status.State

	mu      sync.Mutex // guards what follows
	readAt  time.Time
	last    status.State
	divided bool // parts are those of last
	parts   parts
}

// parts is a state, divided: the part "usher" without the lists, "problems", "changes", and a part for each gateway and for
// each Envoy. It is immutable.
type parts struct {
	time  time.Time
	items map[string]*part // a part that has not changed is the same as before
}

type part struct{ json json.RawMessage }

// state returns the state, which is at most about an interval old. It is read once for all who ask for it meanwhile.
func (f *feed) state() status.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.update()
	return f.last
}

// divide returns the parts of the state.
func (f *feed) divide() parts {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.update(); !f.divided {
		f.parts, f.divided = divide(f.last, f.parts.items), true
	}
	return f.parts
}

// update reads the state if the last one is old. The caller holds mu.
func (f *feed) update() {
	if now := time.Now(); now.Sub(f.readAt) > interval/2 {
		f.readAt, f.last, f.divided = now, f.read(), false
	}
}

// divide returns the parts of a state. before are those of the last one.
func divide(s status.State, before map[string]*part) parts {
	p := parts{time: s.Time, items: make(map[string]*part, len(s.Envoys)+len(s.Gateways)+3)}
	add := func(key string, value any) {
		encoded, err := json.Marshal(value)
		if err != nil {
			panic(err) // the model has nothing that cannot be encoded
		}
		p.items[key] = before[key]
		if same := before[key]; same == nil || !bytes.Equal(same.json, encoded) {
			p.items[key] = &part{encoded}
		}
	}
	add("usher", struct {
		Usher  status.Usher  `json:"usher"`
		Source status.Source `json:"source"`
	}{s.Usher, s.Source})
	add("problems", s.Problems)
	add("changes", s.Changes)
	for _, g := range s.Gateways {
		add("gateway/"+g.Name, g)
	}
	streams := map[string]int{}
	for _, e := range s.Envoys {
		key := fmt.Sprintf("envoy/%s/%s/%s/%s", e.Gateway, e.ServiceID, e.Node, e.Address)
		streams[key]++
		add(fmt.Sprintf("%s/%d", key, streams[key]), e)
	}
	return p
}

// message is what a page gets.
type message struct {
	Time    time.Time                  `json:"time"`
	All     bool                       `json:"all,omitempty"` // what is not in Parts does not exist
	Parts   map[string]json.RawMessage `json:"parts,omitempty"`
	Removed []string                   `json:"removed,omitempty"`
}

// since returns what has changed since before, or everything if that is nil. ok is false if nothing has.
func (p parts) since(before map[string]*part) (m message, ok bool) {
	m = message{Time: p.time, All: before == nil, Parts: map[string]json.RawMessage{}}
	for key, item := range p.items {
		if before[key] != item {
			m.Parts[key] = item.json
		}
	}
	for key := range maps.Keys(before) {
		if p.items[key] == nil {
			m.Removed = append(m.Removed, key)
		}
	}
	return m, m.All || len(m.Parts)+len(m.Removed) > 0
}
