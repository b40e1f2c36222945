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

// crowd bounds the connections of a server: one too many takes the place of
// another that has had no request under way for longest. So connections that
// only wait never keep a probe out, nor use up the files of the process. Use
// newCrowd.
type crowd struct {
	limit int

	mu    sync.Mutex
	order *list.List // of *guest; who has changed last stands at the end
	place map[net.Conn]*list.Element
}

type guest struct {
	conn net.Conn
	busy bool // it has a request under way
}

func newCrowd(limit int) *crowd {
	return &crowd{limit: limit, order: list.New(), place: map[net.Conn]*list.Element{}}
}

// note is for http.Server.ConnState.
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

// sendAway closes the connection that is worth least. Its server notes the end
// later, so it is forgotten here.
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
