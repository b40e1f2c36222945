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
	limits     Limits
	metrics    *Metrics
	log        *slog.Logger
	seed       maphash.Seed  // of the hashes of tokens
	logLimiter *rate.Limiter // of the log about refusals

	mu           sync.Mutex // guards what follows, and the fields of peers, connections and places
	callers      map[netip.Prefix]*callerState
	connections  map[*connection]struct{}
	streams      int
	rate         *rate.Limiter
	pendingConns list.List // of *connection, oldest first
	pending      pendingStreams
	requestBytes int
	knownTokens  map[uint64]*knownToken
	closed       bool // no connection is taken any more
}

// peerState is what is known of one peer.
type callerState struct {
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
func (p *pendingStreams) oldest() *admittedStream {
	for _, l := range []*list.List{&p.strangers, &p.known} {
		if e := l.Front(); e != nil {
			return e.Value.(*admittedStream)
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
type admittedStream struct {
	admission *admission
	conn      *connection
	token     uint64      // a hash
	end       func(error) // ends the stream; it does not block

	authorized            bool
	known                 bool          // its token was authorised lately
	released              bool          // it no longer counts
	element, peersElement *list.Element // in the lists of pending streams
}

func newAdmission(l Limits, m *Metrics, log *slog.Logger) *admission {
	l = l.withDefaults()
	m.setLimits(l)
	return &admission{
		limits: l, metrics: m, log: log, seed: maphash.MakeSeed(), logLimiter: limiter(maxRefusalLines),
		callers:     map[netip.Prefix]*callerState{},
		connections: map[*connection]struct{}{},
		rate:        limiter(l.StreamRate),
		knownTokens: map[uint64]*knownToken{},
	}
}

func limiter(perSecond int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), rateBurst*perSecond)
}

// peerKey names a peer: an IPv4 address, the /64 network of an IPv6 one, or the
// zero Prefix for a unix socket.
func networkOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	key, _ := a.Prefix(bits) // the zero Prefix for the zero Addr
	return key
}

// peer returns the state of a peer. The caller holds mu.
func (a *admission) caller(key netip.Prefix) *callerState {
	p := a.callers[key]
	if p == nil {
		if len(a.callers) >= a.limits.Connections+maxIdleCallers {
			a.pruneIdleCallers()
		}
		p = &callerState{rate: limiter(a.limits.StreamRatePerPeer), denied: rate.NewLimiter(maxDeniedRate, maxDenied)}
		a.callers[key] = p
	}
	return p
}

func (a *admission) pruneIdleCallers() {
	for key, p := range a.callers {
		if p.connections == 0 && p.streams == 0 {
			delete(a.callers, key)
		}
	}
}

// enter takes a connection in. It returns false when there is no place for it.
func (a *admission) addConnection(c *connection) bool {
	a.mu.Lock()
	c.caller = a.caller(networkOf(clientAddr(c.RemoteAddr())))
	var evicted []*connection
	ok := !a.closed
	if ok && c.caller.connections >= a.limits.ConnectionsPerPeer {
		ok = a.evictOldest("connections_per_peer", c, c.caller, &evicted)
	}
	if ok && len(a.connections) >= a.limits.Connections {
		ok = a.evictOldest("connections", c, a.mostPending(c.caller), &evicted)
	}
	if ok {
		a.connections[c] = struct{}{}
		c.caller.connections++
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
func (a *admission) mostPending(p *callerState) *callerState {
	for _, other := range a.callers {
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
func (a *admission) evictOldest(limit string, c *connection, of *callerState, evicted *[]*connection) bool {
	a.countLimit(c, limit, "too many connections", "")
	oldest := of.pendingConns.Front()
	if oldest == nil {
		return false
	}
	old := oldest.Value.(*connection)
	a.dropConnection(old)
	*evicted = append(*evicted, old)
	return true
}

// setPending puts a connection into the lists of those that are pending. The
// caller holds mu.
func (a *admission) setPending(c *connection) {
	c.element, c.peersElement = a.pendingConns.PushBack(c), c.caller.pendingConns.PushBack(c)
	c.expiry = time.AfterFunc(pendingTime, func() { a.expire(c) })
	a.updateGauges()
}

// setAuthorized is the contrary of setPending. The caller holds mu.
func (a *admission) setAuthorized(c *connection) {
	if c.element == nil {
		return
	}
	a.pendingConns.Remove(c.element)
	c.caller.pendingConns.Remove(c.peersElement)
	c.element, c.peersElement = nil, nil
	c.extended = false
	c.expiry.Stop()
	a.updateGauges()
}

// expire closes a connection that has been pending for too long.
func (a *admission) expire(c *connection) {
	a.mu.Lock()
	pending := c.element != nil
	if pending && !c.used {
		a.countLimit(c, "pending_time", "the connection has opened no stream in time", "")
	}
	a.mu.Unlock()
	if pending {
		_ = c.Close()
	}
}

// leave forgets a connection that is closed.
func (a *admission) removeConnection(c *connection) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropConnection(c)
}

// drop is leave for a caller that holds mu.
func (a *admission) dropConnection(c *connection) {
	if c.closed {
		return
	}
	c.closed = true
	delete(a.connections, c)
	c.caller.connections--
	a.adjustRequestBytes(c, -c.requestBytes, 0)
	a.setAuthorized(c)
	a.updateGauges()
}

// received counts requests that have arrived. When they take too much, those of
// the peer that has most of them give way, the connections that are pending first.
func (a *admission) addRequestBytes(c *connection, bytes, frames int) {
	a.mu.Lock()
	if c.closed {
		a.mu.Unlock()
		return
	}
	a.adjustRequestBytes(c, bytes, frames)
	var evicted []*connection
	evict := func(old *connection) {
		a.countLimit(old, "request_bytes", "its requests take too much while they arrive", "")
		a.dropConnection(old)
		evicted = append(evicted, old)
	}
	if c.element != nil && c.cost() > maxPendingRequest {
		evict(c)
	}
	for a.requestBytes > maxRequestBytes {
		evict(a.largestRequest())
	}
	a.mu.Unlock()
	for _, old := range evicted {
		_ = old.Close()
	}
}

// charge adds to what a connection's requests take; negative numbers subtract.
// The caller holds mu.
func (a *admission) adjustRequestBytes(c *connection, bytes, frames int) {
	before := c.cost()
	c.requestBytes = max(0, c.requestBytes+bytes)
	c.frames += frames
	if c.requestBytes == 0 {
		c.frames = 0
	}
	change := c.cost() - before
	c.caller.requestBytes += change
	a.requestBytes += change
	a.metrics.requestBytes.Set(float64(a.requestBytes))
}

// largest returns the connection whose requests give way first. There is one that
// has any. The caller holds mu.
func (a *admission) largestRequest() *connection {
	var largest *connection
	for c := range a.connections {
		switch {
		case c.cost() == 0:
		case largest == nil, c.caller.requestBytes > largest.caller.requestBytes:
			largest = c
		case c.caller == largest.caller && c.evictedBefore(largest):
			largest = c
		}
	}
	return largest
}

// handled is the contrary of received.
func (a *admission) releaseRequestBytes(c *connection, bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !c.closed {
		a.adjustRequestBytes(c, -bytes, 0)
	}
}

// open admits a stream; end is called when it has to give way. An error is a
// status. A connection on which nothing but refused streams come is closed.
func (a *admission) openStream(c *connection, token Token, end func(error)) (*admittedStream, error) {
	a.mu.Lock()
	p, err := a.admitStream(c, token, end)
	useless := err != nil && c.element != nil && c.refused >= maxRefused
	a.mu.Unlock()
	if useless {
		_ = c.Close()
	}
	return p, err
}

// admit is open for a caller that holds mu.
func (a *admission) admitStream(c *connection, token Token, end func(error)) (*admittedStream, error) {
	c.used = true
	hash := maphash.String(a.seed, string(token))
	p := &admittedStream{admission: a, conn: c, token: hash, known: a.isKnown(hash), end: end}
	for _, limit := range []struct {
		name    string
		full    func() bool
		pending *pendingStreams // the oldest gives way; nil: none can
	}{
		{"stream_rate_per_peer", func() bool { return !p.known && !c.caller.rate.Allow() }, nil},
		{"denied_rate_per_peer", func() bool { return !p.known && c.caller.denied.Tokens() < 1 }, nil},
		{"stream_rate", func() bool { return !p.known && !a.rate.Allow() }, nil},
		{"streams_per_peer", func() bool { return c.caller.streams >= a.limits.StreamsPerPeer }, &c.caller.pending},
		{"streams", func() bool { return a.streams >= a.limits.Streams }, &a.pending},
		{"pending_streams_per_peer", func() bool { return !p.known && c.caller.pending.strangers.Len() >= maxPendingStreamsPerPeer }, &c.caller.pending},
		{"pending_streams", func() bool { return !p.known && a.pending.strangers.Len() >= maxPendingStreams }, &a.pending},
	} {
		if !limit.full() {
			continue
		}
		a.countLimit(c, limit.name, "too many streams", token)
		if limit.pending == nil || limit.pending.oldest() == nil {
			c.refused++
			return nil, errLimit(limit.name)
		}
		limit.pending.oldest().evict(limit.name)
	}
	a.streams++
	c.streams++
	c.caller.streams++
	p.element, p.peersElement = a.pending.of(p.known).PushBack(p), c.caller.pending.of(p.known).PushBack(p)
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
func (p *admittedStream) evict(limit string) {
	p.removeFromPending()
	p.release()
	p.end(errLimit(limit))
}

// uncount gives the stream's share of the limits back, once. The caller holds mu.
func (p *admittedStream) release() {
	if p.released {
		return
	}
	p.released = true
	p.admission.streams--
	p.conn.streams--
	p.conn.caller.streams--
}

// unlist takes a stream out of the lists of those that are pending. The caller
// holds mu.
func (p *admittedStream) removeFromPending() {
	if p.element == nil {
		return
	}
	p.admission.pending.of(p.known).Remove(p.element)
	p.conn.caller.pending.of(p.known).Remove(p.peersElement)
	p.element, p.peersElement = nil, nil
	p.admission.metrics.pendingStreams.Set(float64(p.admission.pending.strangers.Len()))
}

// authorize notes that the stream is authorised, and so its connection.
func (p *admittedStream) markAuthorized() {
	a := p.admission
	a.mu.Lock()
	defer a.mu.Unlock()
	p.authorized = true
	p.removeFromPending()
	k := a.knownTokens[p.token]
	if k == nil {
		a.pruneTokens()
		k = &knownToken{}
		a.knownTokens[p.token] = k
	}
	k.streams++
	p.conn.authorized++
	if !p.conn.closed {
		a.setAuthorized(p.conn)
	}
}

// leave gives the place back.
func (p *admittedStream) close() {
	a := p.admission
	a.mu.Lock()
	defer a.mu.Unlock()
	p.removeFromPending()
	p.release()
	if c := p.conn; c.streams == 0 && !c.closed {
		a.adjustRequestBytes(c, -c.requestBytes, 0) // what ended streams have sent and were not read for
	}
	if !p.authorized {
		return
	}
	if k := a.knownTokens[p.token]; k != nil {
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
	k := a.knownTokens[token]
	return k != nil && (k.streams > 0 || time.Now().Before(k.until))
}

// forgetTokens makes room for one more token. Those of open streams stay. The
// caller holds mu.
func (a *admission) pruneTokens() {
	if len(a.knownTokens) < maxKnownTokens {
		return
	}
	for token, k := range a.knownTokens {
		if k.streams == 0 {
			delete(a.knownTokens, token)
		}
	}
}

// show brings the gauges of connections up to date. The caller holds mu.
func (a *admission) updateGauges() {
	pending := a.pendingConns.Len()
	a.metrics.connections.WithLabelValues("pending").Set(float64(pending))
	a.metrics.connections.WithLabelValues("authorized").Set(float64(len(a.connections) - pending))
}
