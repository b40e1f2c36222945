package xds

import (
	"cmp"
	"container/list"
	"hash/maphash"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// admission enforces the Limits. It knows every connection and every stream. Any goroutine may call its methods.
type admission struct {
	limits   Limits
	metrics  *Metrics
	log      *slog.Logger
	seed     maphash.Seed              // for the hashes of credentials
	refusals *thinnedLog[netip.Prefix] // by caller

	authorizedStreams atomic.Uint64 // how many there have been

	mu             sync.Mutex // guards the rest, and callers, connections and streams
	closed         bool       // no connection and no stream is admitted any more
	callers        map[netip.Prefix]*callerState
	connections    map[*connection]struct{}
	pendingConns   int           // how many connections are pending
	evicted        []*connection // to be closed by unlock
	streams        map[*admittedStream]struct{}
	pendingStreams pendingStreams
	rate           *rate.Limiter // of new streams
	requestBytes   int
	// What one of these forgets does not depend on the other: reports cost nothing that streams need.
	streamTokens, reportProofs *knownTokens
}

// callerState is what is known of one caller.
type callerState struct {
	connections    int
	pendingConns   list.List // of *connection, oldest first
	streams        int
	pendingStreams pendingStreams
	rate           *rate.Limiter // of new streams
	denied         *rate.Limiter // of denied streams
	requestBytes   int
}

// pendingStreams are *admittedStreams, oldest first, by whether the token is known.
type pendingStreams struct{ unknown, known list.List }

// oldest returns the stream to evict first, or nil.
func (p *pendingStreams) oldest() *admittedStream {
	if e := cmp.Or(p.unknown.Front(), p.known.Front()); e != nil {
		return e.Value.(*admittedStream)
	}
	return nil
}

func (p *pendingStreams) of(known bool) *list.List {
	if known {
		return &p.known
	}
	return &p.unknown
}

// admittedStream is a stream that counts against the limits.
type admittedStream struct {
	conn   *connection
	token  uint64       // a hash of the credential
	tokens *knownTokens // for credentials of its kind
	known  bool         // the credential was authorized recently
	end    func(error)  // ends the stream without blocking

	authorized             bool
	node                   *Node         // of an authorized stream
	element, callerElement *list.Element // in the pending streams; nil: not pending

	client atomic.Pointer[Client] // what the stream's Envoy has now; nil before it is authorized; mu does not guard it
}

func newAdmission(l Limits, m *Metrics, log *slog.Logger) *admission {
	l = l.withDefaults()
	for name, value := range limitValues(l) {
		m.limits.WithLabelValues(name).Set(value)
	}
	return &admission{
		limits: l, metrics: m, log: log, seed: maphash.MakeSeed(), refusals: newThinnedLog[netip.Prefix](),
		callers: map[netip.Prefix]*callerState{}, connections: map[*connection]struct{}{},
		streams: map[*admittedStream]struct{}{}, rate: limiter(l.StreamRate),
		streamTokens: newKnownTokens(), reportProofs: newKnownTokens(),
	}
}

func limiter(perSecond int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), rateBurst*perSecond)
}

// unlock updates the gauges, releases mu and closes the evicted connections. Close needs mu.
func (a *admission) unlock() {
	a.metrics.connections.WithLabelValues("pending").Set(float64(a.pendingConns))
	a.metrics.connections.WithLabelValues("authorized").Set(float64(len(a.connections) - a.pendingConns))
	a.metrics.pendingStreams.Set(float64(a.pendingStreams.unknown.Len()))
	a.metrics.requestBytes.Set(float64(a.requestBytes))
	evicted := a.evicted
	a.evicted = nil
	a.mu.Unlock()
	for _, c := range evicted {
		_ = c.Close()
	}
}

// shutDown admits nothing any more and closes the pending connections. It returns the open streams, in no order.
func (a *admission) shutDown() []*admittedStream {
	a.mu.Lock()
	defer a.unlock()
	a.closed = true
	for c := range a.connections {
		if c.pending != nil {
			a.evict(c)
		}
	}
	return slices.Collect(maps.Keys(a.streams))
}

// NetworkOf returns what Limits count as one caller: an IPv4 address, the /64 of an IPv6 address, or zero for unix sockets.
func NetworkOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	network, _ := a.Prefix(bits) // the zero Prefix for the zero Addr
	return network
}

// caller returns the state of a caller. mu is locked.
func (a *admission) caller(network netip.Prefix) *callerState {
	c := a.callers[network]
	if c == nil {
		if len(a.callers) >= a.limits.Connections+maxIdleCallers {
			maps.DeleteFunc(a.callers, func(_ netip.Prefix, c *callerState) bool { return c.connections == 0 && c.streams == 0 })
		}
		c = &callerState{rate: limiter(a.limits.StreamRatePerPeer), denied: rate.NewLimiter(maxDeniedRate, maxDenied)}
		a.callers[network] = c
	}
	return c
}

// addConnection admits a connection, unless a limit is reached and none is pending.
func (a *admission) addConnection(c *connection) bool {
	a.mu.Lock()
	defer a.unlock()
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		c.address = tcp.AddrPort().Addr().Unmap()
	}
	c.caller = a.caller(NetworkOf(c.address))
	c.closed = a.closed ||
		c.caller.connections >= a.limits.ConnectionsPerPeer && !a.evictOldest(c, "connections_per_peer", c.caller) ||
		len(a.connections) >= a.limits.Connections && !a.evictOldest(c, "connections", a.mostPending(c.caller))
	if c.closed {
		return false
	}
	a.connections[c] = struct{}{}
	c.caller.connections++
	a.setPending(c)
	return true
}

// mostPending returns the caller with most pending connections; the given one if none has more. mu is locked.
func (a *admission) mostPending(most *callerState) *callerState {
	for _, other := range a.callers {
		if other.pendingConns.Len() > most.pendingConns.Len() {
			most = other
		}
	}
	return most
}

// evictOldest makes room for c: it evicts the oldest pending connection of a caller. It reports whether there is one.
// mu is locked.
func (a *admission) evictOldest(c *connection, limit string, from *callerState) bool {
	a.countLimit(c, limit, "too many connections", Credential{})
	oldest := from.pendingConns.Front()
	if oldest != nil {
		a.evict(oldest.Value.(*connection))
	}
	return oldest != nil
}

// evict removes a connection, which unlock closes. mu is locked.
func (a *admission) evict(c *connection) {
	a.dropConnection(c)
	a.evicted = append(a.evicted, c)
}

// setPending marks a connection as pending. mu is locked.
func (a *admission) setPending(c *connection) {
	c.pending = c.caller.pendingConns.PushBack(c)
	a.pendingConns++
	c.expiry = time.AfterFunc(pendingTime, func() { a.expire(c) })
}

// clearPending is the inverse of setPending. mu is locked.
func (a *admission) clearPending(c *connection) {
	if c.pending == nil {
		return
	}
	c.caller.pendingConns.Remove(c.pending)
	a.pendingConns--
	c.pending, c.extended = nil, false
	c.expiry.Stop()
}

// expire closes a connection that has been pending for too long.
func (a *admission) expire(c *connection) {
	a.mu.Lock()
	defer a.unlock()
	if c.pending == nil {
		return
	}
	if !c.used {
		a.countLimit(c, "pending_time", "no stream was authorized on the connection in time; check that the caller is an Envoy", Credential{})
	}
	a.evict(c)
}

// dropConnection removes a connection that is closed. mu is locked.
func (a *admission) dropConnection(c *connection) {
	if c.closed {
		return
	}
	c.closed = true
	delete(a.connections, c)
	c.caller.connections--
	a.adjustRequestBytes(c, -c.requestBytes, 0)
	a.clearPending(c)
}

// countRequestBytes counts the bytes of requests that have arrived; those that are handled, as a negative number. Over
// the limit, it evicts connections of the caller that has most bytes, pending ones first.
func (a *admission) countRequestBytes(c *connection, bytes, frames int) {
	a.mu.Lock()
	defer a.unlock()
	if c.closed {
		return
	}
	a.adjustRequestBytes(c, bytes, frames)
	evict := func(old *connection) {
		a.countLimit(old, "request_bytes", "all requests that Usher has not handled yet are too large together; this one is among the largest", Credential{})
		a.evict(old)
	}
	if c.pending != nil && c.cost() > maxPendingRequest {
		evict(c)
	}
	for a.requestBytes > maxRequestBytes {
		evict(a.largestRequest())
	}
}

// adjustRequestBytes adds to a connection's request bytes. mu is locked.
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
}

// dropUnread ends the count of a connection's requests if it has no stream: streams that have ended, or were refused, leave
// some that are never read.
// mu is locked.
func (a *admission) dropUnread(c *connection) {
	if c.streams == 0 && !c.closed {
		a.adjustRequestBytes(c, -c.requestBytes, 0)
	}
}

// largestRequest returns the connection to evict for its requests. One of them has some. mu is locked.
func (a *admission) largestRequest() *connection {
	pendingCost := func(c *connection) int {
		if c.pending == nil {
			return 0
		}
		return c.cost()
	}
	return slices.MaxFunc(slices.Collect(maps.Keys(a.connections)), func(x, y *connection) int {
		return cmp.Or(cmp.Compare(x.caller.requestBytes, y.caller.requestBytes),
			cmp.Compare(pendingCost(x), pendingCost(y)), cmp.Compare(x.cost(), y.cost()))
	})
}

// openStream admits a stream. end is called to evict it. An error is a status. A pending connection on which too
// many streams were refused is closed.
func (a *admission) openStream(c *connection, credential Credential, end func(error)) (*admittedStream, error) {
	return a.open(c, a.streamTokens, credential, end)
}

// openReport is openStream for a report with a proof.
func (a *admission) openReport(c *connection, proof string) (*admittedStream, error) {
	return a.open(c, a.reportProofs, Credential{Bearer: Bearer(proof)}, func(error) {})
}

// open is openStream for one of the known tokens.
func (a *admission) open(c *connection, tokens *knownTokens, credential Credential, end func(error)) (*admittedStream, error) {
	a.mu.Lock()
	defer a.unlock()
	if a.closed {
		return nil, errShuttingDown
	}
	c.used = true
	hash := maphash.Comparable(a.seed, credential)
	s := &admittedStream{conn: c, token: hash, tokens: tokens, known: tokens.has(hash), end: end}
	if err := a.makeRoom(s, credential); err != nil {
		c.refused++
		a.dropUnread(c)
		if c.pending != nil && c.refused >= maxRefused {
			a.evict(c)
		}
		return nil, err
	}
	a.streams[s] = struct{}{}
	c.streams++
	c.caller.streams++
	s.element = a.pendingStreams.of(s.known).PushBack(s)
	s.callerElement = c.caller.pendingStreams.of(s.known).PushBack(s)
	if c.pending != nil && !c.extended {
		c.extended = true
		c.expiry.Reset(pendingTime)
	}
	return s, nil
}

// makeRoom evicts a pending stream for each limit that is reached. It returns an error if there is none, or if the
// limit is a rate. mu is locked.
func (a *admission) makeRoom(s *admittedStream, credential Credential) error {
	caller := s.conn.caller
	all, own := &a.pendingStreams, &caller.pendingStreams
	for _, limit := range []struct {
		name    string
		reached func() bool
		pending *pendingStreams
	}{
		{"stream_rate_per_peer", func() bool { return !s.known && !caller.rate.Allow() }, nil},
		{"denied_rate_per_peer", func() bool { return !s.known && caller.denied.Tokens() < 1 }, nil},
		{"stream_rate", func() bool { return !s.known && !a.rate.Allow() }, nil},
		{"streams_per_peer", func() bool { return caller.streams >= a.limits.StreamsPerPeer }, own},
		{"streams", func() bool { return len(a.streams) >= a.limits.Streams }, all},
		{"pending_streams_per_peer", func() bool { return !s.known && own.unknown.Len() >= maxPendingStreamsPerPeer }, own},
		{"pending_streams", func() bool { return !s.known && all.unknown.Len() >= maxPendingStreams }, all},
	} {
		if !limit.reached() {
			continue
		}
		a.countLimit(s.conn, limit.name, "too many streams", credential)
		err := status.Errorf(codes.ResourceExhausted, "usher takes no more streams for now (limit %s); try again later", limit.name)
		if limit.pending == nil || limit.pending.oldest() == nil {
			return err
		}
		oldest := limit.pending.oldest()
		oldest.remove()
		oldest.end(err)
	}
	return nil
}

// remove ends the stream's count against the limits. mu is locked.
func (s *admittedStream) remove() {
	s.clearPending()
	a := s.conn.admission
	if _, open := a.streams[s]; open {
		delete(a.streams, s)
		s.conn.streams--
		s.conn.caller.streams--
	}
}

// clearPending removes the stream from the pending ones. mu is locked.
func (s *admittedStream) clearPending() {
	if s.element == nil {
		return
	}
	s.conn.admission.pendingStreams.of(s.known).Remove(s.element)
	s.conn.caller.pendingStreams.of(s.known).Remove(s.callerElement)
	s.element, s.callerElement = nil, nil
}

// markAuthorized marks the stream, its token and its connection as authorized.
func (s *admittedStream) markAuthorized(node *Node) {
	a := s.conn.admission
	a.mu.Lock()
	defer a.unlock()
	s.authorized, s.node = true, node
	s.clearPending()
	s.tokens.begin(s.token)
	s.conn.authorized++
	if !s.conn.closed {
		a.clearPending(s.conn)
	}
}

// close removes a stream that has ended.
func (s *admittedStream) close() {
	a := s.conn.admission
	a.mu.Lock()
	defer a.unlock()
	s.remove()
	a.dropUnread(s.conn)
	if !s.authorized {
		return
	}
	s.tokens.end(s.token)
	s.conn.authorized--
	if s.conn.authorized == 0 && !s.conn.closed {
		a.setPending(s.conn)
	}
}
