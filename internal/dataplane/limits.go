package dataplane

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/requestbytes"
	"github.com/usherproxy/usher/xds"
)

// Limits bound what callers may use. Zero means the value of DefaultLimits. A peer is an IPv4 address, or an IPv6 network of
// 64 bits. At a limit for connections, the newest one replaces the one that has been without a call for longest; if each
// has one, the newest is refused.
type Limits struct {
	// Connections bounds the open connections, and ConnectionsPerPeer those of one peer.
	Connections, ConnectionsPerPeer int
	// Calls bounds the open calls, and CallsPerPeer those of one peer. A consul-dataplane has one or two.
	Calls, CallsPerPeer int
}

// DefaultLimits are the values that zeros stand for.
var DefaultLimits = Limits{Connections: 4096, ConnectionsPerPeer: 1024, Calls: 10_000, CallsPerPeer: 2048}

// admission enforces the Limits. Any goroutine may call its methods.
type admission struct {
	limits  Limits
	metrics *Metrics

	mu          sync.Mutex // guards the rest, and peers and connections
	closed      bool       // no connection is admitted any more
	connections []*connection
	peers       map[netip.Prefix]*peerState
	calls       int
	bytes       int // of messages of callers that have arrived and are not passed on yet
}

// maxMessages bounds the messages of all callers that have arrived and are not passed on yet, in bytes: the largest one,
// and what else is on the way. At the limit, the connection with most of them is closed.
const maxMessages = 2 * maxMessage

// peerState is what is open for one peer.
type peerState struct{ connections, calls int }

// connection is an accepted connection.
type connection struct {
	net.Conn
	admission *admission
	network   netip.Prefix
	peer      *peerState
	calls     int // open ones
	bytes     int // of messages that are not passed on yet
}

func newAdmission(l Limits, m *Metrics) *admission {
	l = Limits{
		Connections:        cmp.Or(l.Connections, DefaultLimits.Connections),
		ConnectionsPerPeer: cmp.Or(l.ConnectionsPerPeer, DefaultLimits.ConnectionsPerPeer),
		Calls:              cmp.Or(l.Calls, DefaultLimits.Calls),
		CallsPerPeer:       cmp.Or(l.CallsPerPeer, DefaultLimits.CallsPerPeer),
	}
	return &admission{limits: l, metrics: m, peers: map[netip.Prefix]*peerState{}}
}

// add admits a connection, and returns the one that it replaces, to be closed; nil: none.
func (a *admission) add(c *connection) (admitted bool, replaced *connection) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		c.network = xds.NetworkOf(tcp.AddrPort().Addr().Unmap())
	}
	if a.closed {
		return false, nil
	}
	own := a.peers[c.network]
	switch {
	case own != nil && own.connections >= a.limits.ConnectionsPerPeer:
		replaced = a.longestIdle("connections_per_peer", func(other *connection) bool { return other.network == c.network })
	case len(a.connections) >= a.limits.Connections:
		replaced = a.longestIdle("connections", func(*connection) bool { return true })
	default:
		a.insert(c)
		return true, nil
	}
	if replaced == nil {
		return false, nil
	}
	a.remove(replaced)
	a.insert(c)
	return true, replaced
}

// longestIdle counts a limit that was reached. It returns the connection that has been without a call for longest, or nil.
// mu is locked.
func (a *admission) longestIdle(limit string, among func(*connection) bool) *connection {
	a.metrics.limited.WithLabelValues(limit).Inc()
	i := slices.IndexFunc(a.connections, func(c *connection) bool { return c.calls == 0 && among(c) })
	if i < 0 {
		return nil
	}
	return a.connections[i]
}

// insert adds a connection at the end of the list: those that are without a call for longest are at its beginning. mu is
// locked.
func (a *admission) insert(c *connection) {
	c.peer = a.peers[c.network]
	if c.peer == nil {
		c.peer = &peerState{}
		a.peers[c.network] = c.peer
	}
	c.peer.connections++
	a.connections = append(a.connections, c)
	a.metrics.connections.Set(float64(len(a.connections)))
}

// remove removes a connection. mu is locked.
func (a *admission) remove(c *connection) {
	i := slices.Index(a.connections, c)
	if i < 0 {
		return
	}
	a.connections = slices.Delete(a.connections, i, i+1)
	a.bytes -= c.bytes
	c.bytes = 0
	a.metrics.connections.Set(float64(len(a.connections)))
	c.peer.connections--
	a.forget(c)
}

// forget removes the state of a peer that has nothing open. mu is locked.
func (a *admission) forget(c *connection) {
	if c.peer.connections == 0 && c.peer.calls == 0 && a.peers[c.network] == c.peer {
		delete(a.peers, c.network)
	}
}

// openCall admits a call. An error is a status.
func (a *admission) openCall(c *connection) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	limit := ""
	switch {
	case c.peer.calls >= a.limits.CallsPerPeer:
		limit = "calls_per_peer"
	case a.calls >= a.limits.Calls:
		limit = "calls"
	default:
		a.calls++
		c.calls++
		c.peer.calls++
		return nil
	}
	a.metrics.limited.WithLabelValues(limit).Inc()
	return status.Errorf(codes.ResourceExhausted, "usher takes no more calls of consul-dataplane for now (limit %s); try again later", limit)
}

func (a *admission) closeCall(c *connection) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls--
	c.calls--
	c.peer.calls--
	if i := slices.Index(a.connections, c); i >= 0 && c.calls == 0 { // it is idle from now on
		a.bytes -= c.bytes // ended calls leave messages that are never read
		c.bytes = 0
		a.connections = append(slices.Delete(a.connections, i, i+1), c)
	}
	a.forget(c)
}

// countBytes counts bytes of messages that have arrived; those that are passed on, as a negative number.
func (a *admission) countBytes(c *connection, bytes int) {
	a.mu.Lock()
	var largest *connection
	if slices.Contains(a.connections, c) {
		before := c.bytes
		c.bytes = max(0, c.bytes+bytes)
		a.bytes += c.bytes - before
	}
	if a.bytes > maxMessages {
		largest = slices.MaxFunc(a.connections, func(x, y *connection) int { return cmp.Compare(x.bytes, y.bytes) })
		a.metrics.limited.WithLabelValues("message_bytes").Inc()
		a.remove(largest)
	}
	a.mu.Unlock()
	if largest != nil {
		_ = largest.Conn.Close()
	}
}

// close admits nothing any more, and closes the connections without a call.
func (a *admission) close() {
	a.mu.Lock()
	a.closed = true
	idle := slices.DeleteFunc(slices.Clone(a.connections), func(c *connection) bool { return c.calls > 0 })
	a.mu.Unlock()
	for _, c := range idle {
		_ = c.Close()
	}
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.admission.mu.Lock()
	c.admission.remove(c)
	c.admission.mu.Unlock()
	return c.Conn.Close()
}

// listener admits connections, and closes those that are over a limit.
type listener struct {
	net.Listener
	admission *admission
}

func (l listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &connection{Conn: conn, admission: l.admission}
		admitted, replaced := l.admission.add(c)
		if replaced != nil {
			_ = replaced.Conn.Close()
		}
		if admitted {
			return c, nil
		}
		_ = conn.Close()
	}
}

// authInfo is the result of a handshake, and its connection.
type authInfo struct {
	credentials.AuthInfo
	conn *connection
}

// connCredentials make a call's connection known to its handler, and count the bytes that arrive on it.
type connCredentials struct {
	credentials.TransportCredentials
}

func (c connCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	decrypted, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	conn := raw.(*connection)
	counted := requestbytes.NewConn(decrypted, func(data, _ int) { conn.admission.countBytes(conn, data) })
	return counted, authInfo{info, conn}, nil
}

func (c connCredentials) Clone() credentials.TransportCredentials {
	return connCredentials{c.TransportCredentials.Clone()}
}
