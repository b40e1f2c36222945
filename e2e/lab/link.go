//go:build e2e

package lab

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// Link carries TCP connections from a host's loopback to other hosts, as a balancer of
// connections would: each to the next of its targets that accepts. It can be cut and slowed.
type Link struct {
	host    *Host
	targets []string

	mu      sync.Mutex
	next    int // which target gets the next connection
	state   linkState
	changed chan struct{} // closed when the state changes
	conns   []net.Conn
}

// linkState is what becomes of data on a link.
type linkState struct {
	reset bool          // new connections are reset, and there are no others
	cut   bool          // nothing arrives, and nothing is closed
	delay time.Duration // of each piece of data
}

// StartLink listens on a host until the test ends.
func StartLink(t *testing.T, h *Host, address string, targets ...string) *Link {
	t.Helper()
	l := &Link{host: h, targets: targets, changed: make(chan struct{})}
	listener := h.Listen(t, address)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			work.Go(func() { l.carry(ctx, conn) })
		}
	})
	t.Cleanup(func() {
		cancel()
		listener.Close()
		l.closeAll()
		work.Wait()
	})
	return l
}

// Reset ends all connections with a TCP reset, and new ones at once, until Restore.
func (l *Link) Reset() {
	l.set(linkState{reset: true})
	l.closeAll()
}

// Cut lets nothing through until Restore, and closes nothing: both ends see silence.
func (l *Link) Cut() { l.set(linkState{cut: true}) }

// Slow delays each piece of data in each direction until Restore.
func (l *Link) Slow(delay time.Duration) { l.set(linkState{delay: delay}) }

// Restore ends a fault. What a cut has kept arrives.
func (l *Link) Restore() { l.set(linkState{}) }

func (l *Link) set(s linkState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = s
	close(l.changed)
	l.changed = make(chan struct{})
}

// closeAll resets the connections.
func (l *Link) closeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range l.conns {
		reset(conn)
	}
	l.conns = nil
}

func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // it may be closed already
	}
	conn.Close()
}

// carry carries one connection to its end.
func (l *Link) carry(ctx context.Context, near net.Conn) {
	if l.pass(ctx) != nil {
		reset(near)
		return
	}
	far, err := l.dial(ctx)
	if err != nil {
		reset(near)
		return
	}
	if !l.add(near, far) {
		return
	}
	defer l.remove(near, far)
	var work sync.WaitGroup
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		work.Go(func() {
			// One end that closes ends both: neither gRPC nor HTTP closes half of a connection.
			defer near.Close()
			defer far.Close()
			l.copy(ctx, way[1], way[0])
		})
	}
	work.Wait()
}

// dial connects to the next target that accepts.
func (l *Link) dial(ctx context.Context) (net.Conn, error) {
	l.mu.Lock()
	first := l.next
	l.next++
	l.mu.Unlock()
	var errs []error
	for i := range l.targets {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		conn, err := l.host.Dial(ctx, "tcp", l.targets[(first+i)%len(l.targets)])
		cancel()
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// add remembers the connections; it resets them if the link was reset meanwhile.
func (l *Link) add(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.reset {
		for _, conn := range conns {
			reset(conn)
		}
		return false
	}
	l.conns = append(l.conns, conns...)
	return true
}

func (l *Link) remove(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = slices.DeleteFunc(l.conns, func(c net.Conn) bool { return slices.Contains(conns, c) })
}

// copy copies until an end closes.
func (l *Link) copy(ctx context.Context, to, from net.Conn) {
	piece := make([]byte, 64<<10)
	for {
		n, err := from.Read(piece)
		if n > 0 {
			if l.pass(ctx) != nil {
				return
			}
			if _, err := to.Write(piece[:n]); err != nil {
				return
			}
		}
		if err != nil {
			// A close takes as long as data.
			_ = l.pass(ctx)
			return
		}
	}
}

// pass waits as long as the link delays data, which may be until it is restored. It is an error if it
// resets connections.
func (l *Link) pass(ctx context.Context) error {
	for {
		l.mu.Lock()
		s, changed := l.state, l.changed
		l.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case s.reset:
			return errors.New("the link is reset")
		case !s.cut && s.delay == 0:
			return nil
		}
		var over <-chan time.Time
		if !s.cut {
			over = time.After(s.delay)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-over:
			return nil
		}
	}
}
