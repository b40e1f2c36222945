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
	seed    maphash.Seed  // of the hashes of tokens
	lines   *rate.Limiter // of the log about refusals

	mu           sync.Mutex // guards what follows, and the fields of peers, connections and places
	peers        map[netip.Prefix]*peerState
	connections  map[*connection]struct{}
	streams      int
	rate         *rate.Limiter
	pendingConns list.List // of *connection, oldest first
	pending      pendingStreams
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
	pending      pendingStreams
	requestBytes int
	refusals     refusals
}

// pendingStreams are streams that are not authorised yet, oldest first: those of
// strangers, and those whose token is known.
type pendingStreams struct{ strangers, known list.List }

// oldest returns the stream that gives way first; nil if there is none.
func (p *pendingStreams) oldest() *place {
	for _, l := range []*list.List{&p.strangers, &p.known} {
		if e := l.Front(); e != nil {
			return e.Value.(*place)
		}
	}
	return nil
}

func (p *pendingStreams) of(known bool) *list.List {
	if known {
		return &p.known
	}
	return &p.strangers
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
	known                 bool          // its token was authorised lately
	gone                  bool          // it no longer counts
	element, peersElement *list.Element // in the lists of pending streams
}

func newAdmission(l Limits, m *Metrics, log *slog.Logger) *admission {
	l = l.withDefaults()
	m.showLimits(l)
	return &admission{
		limits: l, metrics: m, log: log, seed: maphash.MakeSeed(), lines: limiter(maxRefusalLines),
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
		if p.connections == 0 && p.streams == 0 {
			delete(a.peers, key)
		}
	}
}

// enter takes a connection in. It returns false when there is no place for it.
func (a *admission) enter(c *connection) bool {
	a.mu.Lock()
	c.peer = a.peer(peerKey(peerAddr(c.RemoteAddr())))
	var evicted []*connection
	ok := !a.closed
	if ok && c.peer.connections >= a.limits.ConnectionsPerPeer {
		ok = a.makeRoom("connections_per_peer", c, c.peer, &evicted)
	}
	if ok && len(a.connections) >= a.limits.Connections {
		ok = a.makeRoom("connections", c, a.mostPending(c.peer), &evicted)
	}
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

// mostPending returns the peer that has most pending connections, or the given one
// where none has more. The caller holds mu.
func (a *admission) mostPending(p *peerState) *peerState {
	for _, other := range a.peers {
		if other.pendingConns.Len() > p.pendingConns.Len() {
			p = other
		}
	}
	return p
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

// makeRoom takes the oldest pending connection of a peer out of the way of c. It
// returns false when there is none. The caller holds mu.
func (a *admission) makeRoom(limit string, c *connection, of *peerState, evicted *[]*connection) bool {
	a.refuse(c, limit, "too many connections", "")
	oldest := of.pendingConns.Front()
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
	c.extended = false
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
	a.charge(c, -c.requestBytes, 0)
	a.setAuthorized(c)
	a.show()
}

// received counts requests that have arrived. When they take too much, those of
// the peer that has most of them give way, the connections that are pending first.
func (a *admission) received(c *connection, bytes, frames int) {
	a.mu.Lock()
	if c.closed {
		a.mu.Unlock()
		return
	}
	a.charge(c, bytes, frames)
	var evicted []*connection
	evict := func(old *connection) {
		a.refuse(old, "request_bytes", "its requests take too much while they arrive", "")
		a.drop(old)
		evicted = append(evicted, old)
	}
	if c.element != nil && c.cost() > maxPendingRequest {
		evict(c)
	}
	for a.requestBytes > maxRequestBytes {
		evict(a.largest())
	}
	a.mu.Unlock()
	for _, old := range evicted {
		_ = old.Close()
	}
}

// charge adds to what a connection's requests take; negative numbers subtract.
// The caller holds mu.
func (a *admission) charge(c *connection, bytes, frames int) {
	before := c.cost()
	c.requestBytes = max(0, c.requestBytes+bytes)
	c.frames += frames
	if c.requestBytes == 0 {
		c.frames = 0
	}
	change := c.cost() - before
	c.peer.requestBytes += change
	a.requestBytes += change
	a.metrics.requestBytes.Set(float64(a.requestBytes))
}

// largest returns the connection whose requests give way first. There is one that
// has any. The caller holds mu.
func (a *admission) largest() *connection {
	var largest *connection
	for c := range a.connections {
		switch {
		case c.cost() == 0:
		case largest == nil, c.peer.requestBytes > largest.peer.requestBytes:
			largest = c
		case c.peer == largest.peer && c.givesWayBefore(largest):
			largest = c
		}
	}
	return largest
}

// handled is the contrary of received.
func (a *admission) handled(c *connection, bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !c.closed {
		a.charge(c, -bytes, 0)
	}
}

// open admits a stream; end is called when it has to give way. An error is a
// status. A connection on which nothing but refused streams come is closed.
func (a *admission) open(c *connection, token Token, end func(error)) (*place, error) {
	a.mu.Lock()
	p, err := a.admit(c, token, end)
	useless := err != nil && c.element != nil && c.refused >= maxRefused
	a.mu.Unlock()
	if useless {
		_ = c.Close()
	}
	return p, err
}

// admit is open for a caller that holds mu.
func (a *admission) admit(c *connection, token Token, end func(error)) (*place, error) {
	c.used = true
	hash := maphash.String(a.seed, string(token))
	p := &place{admission: a, conn: c, token: hash, known: a.isKnown(hash), end: end}
	for _, limit := range []struct {
		name    string
		full    func() bool
		pending *pendingStreams // the oldest gives way; nil: none can
	}{
		{"stream_rate_per_peer", func() bool { return !p.known && !c.peer.rate.Allow() }, nil},
		{"denied_rate_per_peer", func() bool { return !p.known && c.peer.denied.Tokens() < 1 }, nil},
		{"stream_rate", func() bool { return !p.known && !a.rate.Allow() }, nil},
		{"streams_per_peer", func() bool { return c.peer.streams >= a.limits.StreamsPerPeer }, &c.peer.pending},
		{"streams", func() bool { return a.streams >= a.limits.Streams }, &a.pending},
		{"pending_streams_per_peer", func() bool { return !p.known && c.peer.pending.strangers.Len() >= maxPendingStreamsPerPeer }, &c.peer.pending},
		{"pending_streams", func() bool { return !p.known && a.pending.strangers.Len() >= maxPendingStreams }, &a.pending},
	} {
		if !limit.full() {
			continue
		}
		a.refuse(c, limit.name, "too many streams", token)
		if limit.pending == nil || limit.pending.oldest() == nil {
			c.refused++
			return nil, errLimit(limit.name)
		}
		limit.pending.oldest().giveWay(limit.name)
	}
	a.streams++
	c.streams++
	c.peer.streams++
	p.element, p.peersElement = a.pending.of(p.known).PushBack(p), c.peer.pending.of(p.known).PushBack(p)
	a.metrics.pendingStreams.Set(float64(a.pending.strangers.Len()))
	if c.element != nil && !c.extended {
		c.extended = true
		c.expiry.Reset(pendingTime)
	}
	return p, nil
}

func errLimit(name string) error {
	return status.Errorf(codes.ResourceExhausted, "usher takes no more streams for now (limit %s); try again later", name)
}

// giveWay ends a pending stream, which no longer counts. The caller holds mu.
func (p *place) giveWay(limit string) {
	p.unlist()
	p.uncount()
	p.end(errLimit(limit))
}

// uncount gives the stream's share of the limits back, once. The caller holds mu.
func (p *place) uncount() {
	if p.gone {
		return
	}
	p.gone = true
	p.admission.streams--
	p.conn.streams--
	p.conn.peer.streams--
}

// unlist takes a stream out of the lists of those that are pending. The caller
// holds mu.
func (p *place) unlist() {
	if p.element == nil {
		return
	}
	p.admission.pending.of(p.known).Remove(p.element)
	p.conn.peer.pending.of(p.known).Remove(p.peersElement)
	p.element, p.peersElement = nil, nil
	p.admission.metrics.pendingStreams.Set(float64(p.admission.pending.strangers.Len()))
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
	p.unlist()
	p.uncount()
	if c := p.conn; c.streams == 0 && !c.closed {
		a.charge(c, -c.requestBytes, 0) // what ended streams have sent and were not read for
	}
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
