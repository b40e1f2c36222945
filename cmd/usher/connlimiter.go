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
type connLimiter struct {
	limit int

	mu       sync.Mutex
	order    *list.List // of *guest; the one that changed last is at the end
	elements map[net.Conn]*list.Element
}

type limitedConn struct {
	conn net.Conn
	busy bool // it has a request under way
}

func newConnLimiter(limit int) *connLimiter {
	return &connLimiter{limit: limit, order: list.New(), elements: map[net.Conn]*list.Element{}}
}

// note records the new state of a connection. Use it as http.Server.ConnState.
func (c *connLimiter) track(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.elements[conn]; old != nil {
		c.order.Remove(old)
		delete(c.elements, conn)
	}
	if state == http.StateClosed || state == http.StateHijacked {
		return
	}
	if c.order.Len() >= c.limit {
		c.evict()
	}
	c.elements[conn] = c.order.PushBack(&limitedConn{conn: conn, busy: state == http.StateActive})
}

// sendAway closes the connection that has been idle for longest, or else the oldest
// one. The server reports its end later, so sendAway already forgets it.
func (c *connLimiter) evict() {
	worst := c.order.Front()
	for e := worst; e != nil; e = e.Next() {
		if !e.Value.(*limitedConn).busy {
			worst = e
			break
		}
	}
	conn := c.order.Remove(worst).(*limitedConn).conn
	delete(c.elements, conn)
	conn.Close()
}
