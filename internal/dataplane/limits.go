package dataplane

import (
	"cmp"
	"container/list"
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
// 64 bits.
//
// Usher does not check the callers' tokens. A connection is proven when a call on it was answered that needs a token. At a
// limit, the newest call or connection replaces one of a connection that is not proven, of the peer that has most of them:
// the oldest call, or the connection that has been without a call for longest. Otherwise, a new connection replaces the
// proven one that has been without a call for longest. If there is none, the newest is refused.
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
	calls       list.List // of *admittedCall, oldest first
	bytes       int       // the cost of all connections
}

const (
	// maxMessages bounds the memory of the messages of all callers that have arrived and are not passed on yet: the largest
	// one, and what else is on the way. At the limit, the largest connection of the peer that has most is closed.
	maxMessages = 2 * maxMessage
	// maxUnprovenCalls bounds the calls on connections that are not proven: each may have headers of maxHeaders bytes, which
	// need four times as much memory. maxUnprovenCallsPerPeer bounds those of one peer.
	maxUnprovenCalls        = 2048
	maxUnprovenCallsPerPeer = 1024
	// frameCost is how many bytes gRPC needs for a DATA frame besides the data.
	frameCost = 64
)

// peerState is what is open for one peer.
type peerState struct {
	connections, calls           int
	unprovenConns, unprovenCalls int // of them
	bytes                        int // the cost of its connections
}

// admittedCall is a call that counts against the limits.
type admittedCall struct {
	conn    *connection
	end     func(error) // ends the call without blocking
	element *list.Element
	users   int // goroutines that may have a message of it: its handler, and those that the handler started
	// unpassed are the bytes of the messages that were read, and not passed on.
	unpassed int
}

// connection is an accepted connection.
type connection struct {
	net.Conn
	admission *admission
	network   netip.Prefix
	peer      *peerState
	proven    bool
	closed    bool
	calls     int // open ones
	users     int // of its calls
	unread    int // bytes that have arrived, and were not read
	frames    int // in which they came
	unpassed  int // of its calls
}

// cost is the memory of messages that have arrived, and are not passed on yet.
func (c *connection) cost() int { return c.unread + frameCost*c.frames + c.unpassed }

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
		replaced = a.replaceable("connections_per_peer", c.network)
	case len(a.connections) >= a.limits.Connections:
		replaced = a.replaceable("connections", netip.Prefix{})
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

// replaceable counts a limit that was reached. It returns the connection that the newest one replaces, or nil. It is the
// given peer's, unless that is zero. mu is locked.
func (a *admission) replaceable(limit string, peer netip.Prefix) *connection {
	a.metrics.limited.WithLabelValues(limit).Inc()
	most := peer
	if !peer.IsValid() {
		most = a.mostOf(func(p *peerState) int { return p.unprovenConns })
	}
	i := slices.IndexFunc(a.connections, func(c *connection) bool { return !c.proven && c.network == most })
	if i < 0 {
		i = slices.IndexFunc(a.connections, func(c *connection) bool {
			return c.calls == 0 && (!peer.IsValid() || c.network == peer)
		})
	}
	if i < 0 {
		return nil
	}
	return a.connections[i]
}

// mostOf returns the peer that has most of something. mu is locked.
func (a *admission) mostOf(count func(*peerState) int) (most netip.Prefix) {
	largest := 0
	for network, p := range a.peers {
		if n := count(p); n > largest {
			most, largest = network, n
		}
	}
	return most
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
	c.peer.unprovenConns++
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
	a.change(c, func() { c.unread, c.frames, c.unpassed = 0, 0, 0 })
	c.closed = true
	a.metrics.connections.Set(float64(len(a.connections)))
	c.peer.connections--
	if !c.proven {
		c.peer.unprovenConns--
	}
	a.forget(c)
}

// forget removes the state of a peer that has nothing open. mu is locked.
func (a *admission) forget(c *connection) {
	if c.peer.connections == 0 && c.peer.calls == 0 && a.peers[c.network] == c.peer {
		delete(a.peers, c.network)
	}
}

// openCall admits a call with one user. end is called to replace it. An error is a status.
func (a *admission) openCall(c *connection, end func(error)) (*admittedCall, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, limit := range []struct {
		name    string
		reached bool
		perPeer bool
	}{
		{"calls_per_peer", c.peer.calls >= a.limits.CallsPerPeer, true},
		{"unproven_calls_per_peer", !c.proven && c.peer.unprovenCalls >= maxUnprovenCallsPerPeer, true},
		{"calls", a.calls.Len() >= a.limits.Calls, false},
		{"unproven_calls", !c.proven && a.unprovenCalls() >= maxUnprovenCalls, false},
	} {
		if !limit.reached {
			continue
		}
		from := c.network
		if !limit.perPeer {
			from = a.mostOf(func(p *peerState) int { return p.unprovenCalls })
		}
		if err := a.replaceCall(limit.name, from); err != nil {
			return nil, err
		}
		break
	}
	call := &admittedCall{conn: c, end: end, users: 1}
	call.element = a.calls.PushBack(call)
	c.users++
	c.calls++
	c.peer.calls++
	if !c.proven {
		c.peer.unprovenCalls++
	}
	return call, nil
}

// unprovenCalls returns how many calls are on connections that are not proven. mu is locked.
func (a *admission) unprovenCalls() (n int) {
	for _, p := range a.peers {
		n += p.unprovenCalls
	}
	return n
}

// replaceCall counts a limit that was reached, and ends the peer's oldest call on a connection that is not proven. It returns
// an error if there is none. mu is locked.
func (a *admission) replaceCall(limit string, peer netip.Prefix) error {
	a.metrics.limited.WithLabelValues(limit).Inc()
	err := status.Errorf(codes.ResourceExhausted, "usher takes no more calls of consul-dataplane for now (limit %s); try again later", limit)
	if p := a.peers[peer]; p == nil || p.unprovenCalls == 0 {
		return err
	}
	for e := a.calls.Front(); e != nil; e = e.Next() {
		if call := e.Value.(*admittedCall); call.conn.network == peer && !call.conn.proven {
			a.dropCall(call)
			call.end(err)
			return nil
		}
	}
	return err
}

// dropCall ends a call's count against the limits. mu is locked.
func (a *admission) dropCall(call *admittedCall) {
	if call.element == nil {
		return
	}
	a.calls.Remove(call.element)
	call.element = nil
	c := call.conn
	c.calls--
	c.peer.calls--
	if !c.proven {
		c.peer.unprovenCalls--
	}
}

// closeCall ends a call's count against the limits, and the use of it by its handler.
func (a *admission) closeCall(call *admittedCall) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropCall(call)
	c := call.conn
	if i := slices.Index(a.connections, c); i >= 0 && c.calls == 0 { // it is idle from now on
		a.connections = append(slices.Delete(a.connections, i, i+1), c)
	}
	a.removeUser(call)
	a.forget(c)
}

// addUser adds a user to a call that has one. Its end calls leave.
func (a *admission) addUser(call *admittedCall) {
	a.mu.Lock()
	defer a.mu.Unlock()
	call.users++
	call.conn.users++
}

func (a *admission) leave(call *admittedCall) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.removeUser(call)
}

// removeUser removes a user of a call. Messages that nothing can pass on any more do not count. mu is locked.
func (a *admission) removeUser(call *admittedCall) {
	c := call.conn
	call.users--
	c.users--
	a.change(c, func() {
		if call.users == 0 {
			c.unpassed -= call.unpassed
		}
		if c.users == 0 { // ended calls leave messages that are never read
			c.unread, c.frames = 0, 0
		}
	})
}

// markProven records that a call was answered that needs a token.
func (a *admission) markProven(c *connection) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.proven {
		return
	}
	c.proven = true
	c.peer.unprovenCalls -= c.calls
	if !c.closed {
		c.peer.unprovenConns--
	}
}

// countArrived counts bytes of messages that have arrived, and the frames in which they came.
func (a *admission) countArrived(c *connection, bytes, frames int) {
	a.mu.Lock()
	a.change(c, func() {
		c.unread += bytes
		c.frames += frames
	})
	var largest *connection
	if a.bytes > maxMessages {
		largest = slices.MaxFunc(a.connections, func(x, y *connection) int {
			return cmp.Or(cmp.Compare(x.peer.bytes, y.peer.bytes), cmp.Compare(x.cost(), y.cost()))
		})
		a.metrics.limited.WithLabelValues("message_bytes").Inc()
		a.remove(largest)
	}
	a.mu.Unlock()
	if largest != nil {
		_ = largest.Conn.Close()
	}
}

// countRead counts bytes of a message that a user of the call has read.
func (a *admission) countRead(call *admittedCall, bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := call.conn
	a.change(c, func() {
		had := c.unread
		c.unread = max(0, had-bytes) // they may have arrived before the connection's last call ended
		c.frames = c.frames * c.unread / max(1, had)
		call.unpassed += bytes
		c.unpassed += bytes
	})
}

// countPassed counts bytes of a message that a user of the call has passed on.
func (a *admission) countPassed(call *admittedCall, bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.change(call.conn, func() {
		call.unpassed -= bytes
		call.conn.unpassed -= bytes
	})
}

// change changes the cost of a connection, unless it is closed. mu is locked.
func (a *admission) change(c *connection, change func()) {
	if c.closed {
		return
	}
	before := c.cost()
	change()
	c.peer.bytes += c.cost() - before
	a.bytes += c.cost() - before
	a.metrics.bytes.Set(float64(a.bytes))
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
	counted := requestbytes.NewConn(decrypted, func(data, frames int) { conn.admission.countArrived(conn, data, frames) })
	return counted, authInfo{info, conn}, nil
}

func (c connCredentials) Clone() credentials.TransportCredentials {
	return connCredentials{c.TransportCredentials.Clone()}
}
