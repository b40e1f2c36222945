package main

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// maxAdminConnections is how many connections the admin port holds. Probes and
// Prometheus need a few.
const maxAdminConnections = 100

// crowd bounds the connections of a server. When there is one too many, it closes
// the one that has been without a request for the longest time. So idle connections
// never keep a probe out, and do not use up the files of the process. Use newCrowd.
type crowd struct {
	limit int

	mu    sync.Mutex
	order *list.List // of *guest; the one that changed last is at the end
	place map[net.Conn]*list.Element
}

type guest struct {
	conn net.Conn
	busy bool // it has a request under way
}

func newCrowd(limit int) *crowd {
	return &crowd{limit: limit, order: list.New(), place: map[net.Conn]*list.Element{}}
}

// note records the new state of a connection. Use it as http.Server.ConnState.
func (c *crowd) note(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.place[conn]; old != nil {
		c.order.Remove(old)
		delete(c.place, conn)
	}
	if state == http.StateClosed || state == http.StateHijacked {
		return
	}
	if c.order.Len() >= c.limit {
		c.sendAway()
	}
	c.place[conn] = c.order.PushBack(&guest{conn: conn, busy: state == http.StateActive})
}

// sendAway closes the connection that has been idle for longest, or else the oldest
// one. The server reports its end later, so sendAway already forgets it.
func (c *crowd) sendAway() {
	worst := c.order.Front()
	for e := worst; e != nil; e = e.Next() {
		if !e.Value.(*guest).busy {
			worst = e
			break
		}
	}
	conn := c.order.Remove(worst).(*guest).conn
	delete(c.place, conn)
	conn.Close()
}
