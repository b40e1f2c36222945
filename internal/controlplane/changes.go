package controlplane

import (
	"slices"
	"sync"
	"time"
	"weak"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/status"
	"github.com/usherproxy/usher/xds"
)

const (
	maxChanges      = 50 // how many changes are kept
	maxChangedNames = 3  // how many names of a type a change has
)

// changes keeps the last changes of what Envoys get, and when the Envoys had them. The zero value has none. Any goroutine
// may call the methods.
type changes struct {
	mu      sync.Mutex // guards what follows
	last    []*change  // the newest is the last
	number  uint64
	waiting map[uint64][]delivery // by stream; the newest is the last
}

type change struct {
	status.Change
	answered time.Time // when the last Envoy acknowledged it
}

// delivery is a change on its way to an Envoy. A strong pointer would keep old sets alive.
type delivery struct {
	change *change
	set    weak.Pointer[xds.Set]
}

// update is the next set for a stream.
type update struct {
	stream *stream
	set    *xds.Set
}

// begin records a change before it is sent. A stream's first set is none.
func (c *changes) begin(id gateway.ID, updates []update) {
	updates = slices.DeleteFunc(slices.Clone(updates), func(u update) bool { return u.stream.sent == nil })
	resources := changedResources(updates)
	if len(resources) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.number++
	begun := &change{Change: status.Change{
		Number: c.number, Time: time.Now(), Gateway: id.String(), Resources: resources, Envoys: len(updates),
	}}
	c.last = lastOf(append(c.last, begun))
	if c.waiting == nil {
		c.waiting = map[uint64][]delivery{}
	}
	for _, u := range updates {
		n := u.stream.node.Stream
		c.waiting[n] = lastOf(append(c.waiting[n], delivery{begun, weak.Make(u.set)}))
	}
}

// lastOf returns the last of the items that are kept.
func lastOf[T any](all []T) []T { return slices.Delete(all, 0, max(0, len(all)-maxChanges)) }

// Delivered takes part in xds.Observer.
func (p *Plane) Delivered(n *xds.Node, s *xds.Set) { p.changes.delivered(n, s) }

// Changes returns the last changes of what Envoys get, the newest first. clients are those that are connected.
func (p *Plane) Changes(clients []*xds.Client) []status.Change { return p.changes.all(clients) }

// delivered records that an Envoy has a set, and with it the changes before.
func (c *changes) delivered(n *xds.Node, s *xds.Set) {
	c.mu.Lock()
	defer c.mu.Unlock()
	waiting, set := c.waiting[n.Stream], weak.Make(s)
	count := slices.IndexFunc(waiting, func(d delivery) bool { return d.set == set }) + 1
	for _, d := range waiting[:count] {
		d.change.Acknowledged++
		d.change.answered = time.Now()
	}
	c.setWaiting(n.Stream, slices.Delete(waiting, 0, count))
}

// end records that a stream has ended.
func (c *changes) end(stream uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.waiting[stream] {
		d.change.Disconnected++
	}
	c.setWaiting(stream, nil)
}

func (c *changes) setWaiting(stream uint64, waiting []delivery) {
	if len(waiting) == 0 {
		delete(c.waiting, stream)
		return
	}
	c.waiting[stream] = waiting
}

// all returns the changes, the newest first. Of the clients it takes which ones refuse theirs.
func (c *changes) all(clients []*xds.Client) []status.Change {
	c.mu.Lock()
	defer c.mu.Unlock()
	refused := map[*change]int{}
	for _, client := range clients {
		if slices.ContainsFunc(client.Types[:], func(t xds.ClientType) bool { return t.Sync == xds.Refused }) {
			for _, d := range c.waiting[client.Node.Stream] {
				refused[d.change]++
			}
		}
	}
	last := make([]status.Change, 0, len(c.last))
	for _, l := range slices.Backward(c.last) {
		now := l.Change
		now.Refused = refused[l]
		if now.Acknowledged > 0 && now.Waiting()+now.Refused == 0 {
			now.Milliseconds = float64(l.answered.Sub(l.Time).Microseconds()) / 1000
		}
		last = append(last, now)
	}
	return last
}

// changedResources returns what differs between the sets. Sets of different instances share most of their collections.
func changedResources(updates []update) (all []status.Resource) {
	type pair struct{ old, new *xds.Collection }
	for t := range xds.Type(xds.NumTypes) {
		seen, names := map[pair]bool{}, map[string]bool{}
		r := status.Resource{Type: t.String(), Names: []string{}}
		count := func(counter *int, changed []string) {
			for _, name := range changed {
				if !names[name] {
					names[name] = true
					*counter++
					r.Names = append(r.Names, name)
				}
			}
		}
		for _, u := range updates {
			if p := (pair{u.stream.sent.Collection(t), u.set.Collection(t)}); !seen[p] {
				seen[p] = true
				added, changed, removed := p.new.ChangedSince(p.old)
				count(&r.Added, added)
				count(&r.Changed, changed)
				count(&r.Removed, removed)
			}
		}
		if len(names) > 0 {
			slices.Sort(r.Names)
			r.Names = slices.Clone(r.Names[:min(len(r.Names), maxChangedNames)])
			all = append(all, r)
		}
	}
	return all
}
