package xds

import (
	"container/list"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// admission keeps the Limits: it knows every connection and every stream. Its
// methods may be called from any goroutine.
type admission struct {
	limits  Limits
	metrics *Metrics
	log     *slog.Logger
	seed    maphash.Seed // of the hashes of tokens

	mu           sync.Mutex // guards what follows, and the fields of peers, connections and places
	peers        map[netip.Prefix]*peerState
	connections  map[*connection]struct{}
	streams      int
	rate         *rate.Limiter
	pendingConns list.List // of *connection, oldest first
	pending      list.List // of *place, oldest first
	requestBytes int
	known        map[uint64]*knownToken
	closed       bool // no connection is taken any more
}

// peerState is what is known of one peer.
type peerState struct {
	connections  int
	streams      int
	rate         *rate.Limiter // of its streams
	denied       *rate.Limiter // of those of its streams that are denied
	pendingConns list.List     // of *connection, oldest first
	pending      list.List     // of *place, oldest first
	refusals     refusals
}

// knownToken is a token that was authorised.
type knownToken struct {
	streams int       // that are open
	until   time.Time // when it is forgotten, while there are none
}

// place is one stream's share of the limits.
type place struct {
	admission *admission
	conn      *connection
	token     uint64      // a hash
	end       func(error) // ends the stream; it does not block

	authorized            bool
	element, peersElement *list.Element // in the lists of pending streams
}

func newAdmission(l Limits, m *Metrics, log *slog.Logger) *admission {
	l = l.withDefaults()
	m.showLimits(l)
	return &admission{
		limits: l, metrics: m, log: log, seed: maphash.MakeSeed(),
		peers:       map[netip.Prefix]*peerState{},
		connections: map[*connection]struct{}{},
		rate:        limiter(l.StreamRate),
		known:       map[uint64]*knownToken{},
	}
}

func limiter(perSecond int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), rateBurst*perSecond)
}

// peerKey names a peer: an IPv4 address, the /64 network of an IPv6 one, or the
// zero Prefix for a unix socket.
func peerKey(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	key, _ := a.Prefix(bits) // the zero Prefix for the zero Addr
	return key
}

// peer returns the state of a peer. The caller holds mu.
func (a *admission) peer(key netip.Prefix) *peerState {
	p := a.peers[key]
	if p == nil {
		if len(a.peers) >= a.limits.Connections+maxIdlePeers {
			a.forgetIdlePeers()
		}
		p = &peerState{rate: limiter(a.limits.StreamRatePerPeer), denied: rate.NewLimiter(maxDeniedRate, maxDenied)}
		a.peers[key] = p
	}
	return p
}

func (a *admission) forgetIdlePeers() {
	for key, p := range a.peers {
		if p.connections == 0 {
			delete(a.peers, key)
		}
	}
}

// enter takes a connection in. It returns false when there is no place for it.
func (a *admission) enter(c *connection) bool {
	a.mu.Lock()
	c.peer = a.peer(peerKey(peerAddr(c.RemoteAddr())))
	var evicted []*connection
	ok := !a.closed && a.makeRoom(c.peer.connections >= a.limits.ConnectionsPerPeer, "connections_per_peer", c, &c.peer.pendingConns, &evicted) &&
		a.makeRoom(len(a.connections) >= a.limits.Connections, "connections", c, &a.pendingConns, &evicted)
	if ok {
		a.connections[c] = struct{}{}
		c.peer.connections++
		a.setPending(c)
	} else {
		c.closed = true
	}
	a.mu.Unlock()
	for _, old := range evicted {
		_ = old.Close()
	}
	return ok
}

// closePending closes the connections that are pending, and takes no more.
func (a *admission) closePending() {
	a.mu.Lock()
	a.closed = true
	var pending []*connection
	for e := a.pendingConns.Front(); e != nil; e = e.Next() {
		pending = append(pending, e.Value.(*connection))
	}
	a.mu.Unlock()
	for _, c := range pending {
		_ = c.Close()
	}
}

// makeRoom takes the oldest pending connection out of the way when the limit is
// reached. It returns false when there is none. The caller holds mu.
func (a *admission) makeRoom(full bool, limit string, c *connection, pending *list.List, evicted *[]*connection) bool {
	if !full {
		return true
	}
	a.refuse(c, limit, "too many connections", "")
	oldest := pending.Front()
	if oldest == nil {
		return false
	}
	old := oldest.Value.(*connection)
	a.drop(old)
	*evicted = append(*evicted, old)
	return true
}

// setPending puts a connection into the lists of those that are pending. The
// caller holds mu.
func (a *admission) setPending(c *connection) {
	c.element, c.peersElement = a.pendingConns.PushBack(c), c.peer.pendingConns.PushBack(c)
	c.expiry = time.AfterFunc(pendingTime, func() { a.expire(c) })
	a.show()
}

// setAuthorized is the contrary of setPending. The caller holds mu.
func (a *admission) setAuthorized(c *connection) {
	if c.element == nil {
		return
	}
	a.pendingConns.Remove(c.element)
	c.peer.pendingConns.Remove(c.peersElement)
	c.element, c.peersElement = nil, nil
	c.expiry.Stop()
	a.show()
}

// expire closes a connection that has been pending for too long.
func (a *admission) expire(c *connection) {
	a.mu.Lock()
	pending := c.element != nil
	if pending && !c.used {
		a.refuse(c, "pending_time", "the connection has opened no stream in time", "")
	}
	a.mu.Unlock()
	if pending {
		_ = c.Close()
	}
}

// leave forgets a connection that is closed.
func (a *admission) leave(c *connection) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(c)
}

// drop is leave for a caller that holds mu.
func (a *admission) drop(c *connection) {
	if c.closed {
		return
	}
	c.closed = true
	delete(a.connections, c)
	c.peer.connections--
	a.requestBytes -= c.requestBytes
	a.setAuthorized(c)
	a.show()
}

// received counts bytes of requests that have arrived. When there are too many
// of them, the connections whose requests are incomplete for longest are closed,
// those that are pending first.
func (a *admission) received(c *connection, n int) {
	a.mu.Lock()
	if c.closed {
		a.mu.Unlock()
		return
	}
	if c.requestBytes == 0 {
		c.requestSince = time.Now()
	}
	c.requestBytes += n
	a.requestBytes += n
	var evicted []*connection
	for a.requestBytes > maxRequestBytes {
		old := a.slowest()
		a.refuse(old, "request_bytes", "its requests take too long to arrive while many do", "")
		a.drop(old)
		evicted = append(evicted, old)
	}
	a.metrics.requestBytes.Set(float64(a.requestBytes))
	a.mu.Unlock()
	for _, old := range evicted {
		_ = old.Close()
	}
}

// slowest returns the connection whose requests have been arriving for longest,
// among those that are pending if one of them has any. There is one. The caller
// holds mu.
func (a *admission) slowest() *connection {
	var slowest *connection
	for c := range a.connections {
		if c.requestBytes > 0 && (slowest == nil || c.slowerThan(slowest)) {
			slowest = c
		}
	}
	return slowest
}

// handled is the contrary of received.
func (a *admission) handled(c *connection, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.closed {
		return
	}
	n = min(n, c.requestBytes)
	c.requestBytes -= n
	a.requestBytes -= n
	c.requestSince = time.Now()
	a.metrics.requestBytes.Set(float64(a.requestBytes))
}

// open admits a stream; end is called when it has to give way. An error is a
// status.
func (a *admission) open(c *connection, token Token, end func(error)) (*place, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.used = true
	hash := maphash.String(a.seed, string(token))
	known := a.isKnown(hash)
	p := &place{admission: a, conn: c, token: hash, end: end}
	for _, limit := range []struct {
		name    string
		full    bool
		pending *list.List // the oldest gives way; nil: none can
	}{
		{"stream_rate_per_peer", !known && !c.peer.rate.Allow(), nil},
		{"denied_rate_per_peer", !known && c.peer.denied.Tokens() < 1, nil},
		{"stream_rate", !known && !a.rate.Allow(), nil},
		{"streams_per_peer", c.peer.streams >= a.limits.StreamsPerPeer, &c.peer.pending},
		{"streams", a.streams >= a.limits.Streams, &a.pending},
		{"pending_streams_per_peer", !known && c.peer.pending.Len() >= maxPendingStreamsPerPeer, &c.peer.pending},
		{"pending_streams", !known && a.pending.Len() >= maxPendingStreams, &a.pending},
	} {
		if !limit.full {
			continue
		}
		a.refuse(c, limit.name, "too many streams", token)
		if limit.pending == nil || limit.pending.Len() == 0 {
			return nil, errLimit(limit.name)
		}
		a.giveWay(limit.pending.Front().Value.(*place), limit.name)
	}
	a.streams++
	c.peer.streams++
	if !known {
		p.element, p.peersElement = a.pending.PushBack(p), c.peer.pending.PushBack(p)
		a.metrics.pendingStreams.Set(float64(a.pending.Len()))
	}
	return p, nil
}

func errLimit(name string) error {
	return status.Errorf(codes.ResourceExhausted, "usher takes no more streams for now (limit %s); try again later", name)
}

// giveWay ends a pending stream. The caller holds mu.
func (a *admission) giveWay(p *place, limit string) {
	p.unlist()
	p.end(errLimit(limit))
}

// unlist takes a stream out of the lists of those that are pending. The caller
// holds mu.
func (p *place) unlist() {
	if p.element == nil {
		return
	}
	p.admission.pending.Remove(p.element)
	p.conn.peer.pending.Remove(p.peersElement)
	p.element, p.peersElement = nil, nil
	p.admission.metrics.pendingStreams.Set(float64(p.admission.pending.Len()))
}

// authorize notes that the stream is authorised, and so its connection.
func (p *place) authorize() {
	a := p.admission
	a.mu.Lock()
	defer a.mu.Unlock()
	p.authorized = true
	p.unlist()
	k := a.known[p.token]
	if k == nil {
		a.forgetTokens()
		k = &knownToken{}
		a.known[p.token] = k
	}
	k.streams++
	p.conn.authorized++
	if !p.conn.closed {
		a.setAuthorized(p.conn)
	}
}

// leave gives the place back.
func (p *place) leave() {
	a := p.admission
	a.mu.Lock()
	defer a.mu.Unlock()
	a.streams--
	p.conn.peer.streams--
	p.unlist()
	if !p.authorized {
		return
	}
	if k := a.known[p.token]; k != nil {
		k.streams--
		k.until = time.Now().Add(knownTime)
	}
	p.conn.authorized--
	if p.conn.authorized == 0 && !p.conn.closed {
		a.setPending(p.conn)
	}
}

// isKnown reports whether a token was authorised lately. The caller holds mu.
func (a *admission) isKnown(token uint64) bool {
	k := a.known[token]
	return k != nil && (k.streams > 0 || time.Now().Before(k.until))
}

// forgetTokens makes room for one more token. Those of open streams stay. The
// caller holds mu.
func (a *admission) forgetTokens() {
	if len(a.known) < maxKnownTokens {
		return
	}
	for token, k := range a.known {
		if k.streams == 0 {
			delete(a.known, token)
		}
	}
}

// show brings the gauges of connections up to date. The caller holds mu.
func (a *admission) show() {
	pending := a.pendingConns.Len()
	a.metrics.connections.WithLabelValues("pending").Set(float64(pending))
	a.metrics.connections.WithLabelValues("authorized").Set(float64(len(a.connections) - pending))
}
