package main

import (
	"net"
	"sync"
	"time"
)

// handshakes is a listener that knows which of its connections have not ended
// their handshake. A gRPC server that stops waits for these, and a peer that
// connects and says nothing would hold it up until the handshake times out.
type handshakes struct {
	net.Listener

	mu   sync.Mutex
	open map[*greeting]struct{} // nil once cut was called
}

func newHandshakes(l net.Listener) *handshakes {
	return &handshakes{Listener: l, open: map[*greeting]struct{}{}}
}

// Accept implements net.Listener.
func (h *handshakes) Accept() (net.Conn, error) {
	conn, err := h.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g := &greeting{Conn: conn, of: h}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open == nil {
		conn.Close()
	} else {
		h.open[g] = struct{}{}
	}
	return g, nil
}

// cut closes the connections that have not ended their handshake, and those that
// come later.
func (h *handshakes) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for g := range h.open {
		g.Conn.Close()
	}
	h.open = nil
}

func (h *handshakes) forget(g *greeting) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.open, g)
}

// greeting is a connection whose handshake lasts until its deadline is taken
// away, which gRPC does when it is over.
type greeting struct {
	net.Conn
	of *handshakes
}

// SetDeadline implements net.Conn.
func (g *greeting) SetDeadline(t time.Time) error {
	if t.IsZero() {
		g.of.forget(g)
	}
	return g.Conn.SetDeadline(t)
}

// Close implements net.Conn.
func (g *greeting) Close() error {
	g.of.forget(g)
	return g.Conn.Close()
}
