package xds

import (
	"cmp"
	"time"
)

// Limits bound what callers may use. The server applies them before it decodes, logs or asks the Authorizer
// anything. Zero means the value of DefaultLimits.
//
// A caller (peer, in the limits' names) is a client address: an IPv4 address, an IPv6 network of 64 bits, or all unix
// sockets together. A stream is pending until it is authorized. A connection is pending while none of its streams is
// authorized. When a limit is reached, the newest evicts a pending one, so that callers cannot block others by holding
// connections or streams: the oldest stream, first among those whose token was not authorized in the last ten minutes;
// or the oldest connection of the caller that has most pending ones. When nothing is pending, the newest is refused.
type Limits struct {
	// Connections bounds the open connections, and ConnectionsPerPeer those of one caller.
	Connections, ConnectionsPerPeer int
	// Streams bounds the open streams, and StreamsPerPeer those of one caller.
	Streams, StreamsPerPeer int
	// StreamRate bounds the new streams per second, and StreamRatePerPeer those of one caller. A burst may have ten
	// times as many. Streams with a token that was authorized in the last ten minutes do not count.
	StreamRate, StreamRatePerPeer int
}

// DefaultLimits are the values that zeros stand for.
var DefaultLimits = Limits{
	Connections: 4096, ConnectionsPerPeer: 1024,
	Streams: 10_000, StreamsPerPeer: 2048,
	StreamRate: 1000, StreamRatePerPeer: 200,
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Connections:        cmp.Or(l.Connections, DefaultLimits.Connections),
		ConnectionsPerPeer: cmp.Or(l.ConnectionsPerPeer, DefaultLimits.ConnectionsPerPeer),
		Streams:            cmp.Or(l.Streams, DefaultLimits.Streams),
		StreamsPerPeer:     cmp.Or(l.StreamsPerPeer, DefaultLimits.StreamsPerPeer),
		StreamRate:         cmp.Or(l.StreamRate, DefaultLimits.StreamRate),
		StreamRatePerPeer:  cmp.Or(l.StreamRatePerPeer, DefaultLimits.StreamRatePerPeer),
	}
}

// The limits without an option.
const (
	rateBurst       = 10       // how many seconds' worth of streams may come at once
	maxRequestBytes = 64 << 20 // of all connections' requests that have arrived and are not handled yet
	// maxPendingRequest bounds them for one pending connection: one of the largest requests, and parts of others.
	maxPendingRequest = maxRequest + 1<<20

	// maxPendingStreams bounds the pending streams, and maxPendingStreamsPerPeer those of one caller.
	maxPendingStreams        = 2048
	maxPendingStreamsPerPeer = 1024

	maxRefused = 100 // streams on a pending connection, before it is closed
	// maxDeniedRate is how many streams of one caller may be denied per second, and maxDenied how many at once.
	// Further streams are refused without asking the Authorizer, because each question costs Consul as well.
	maxDeniedRate = 10
	maxDenied     = 100

	handshakeTime    = 10 * time.Second // for the TLS and HTTP/2 handshakes
	firstRequestTime = 10 * time.Second // from a stream's start
	pendingTime      = 30 * time.Second // of a connection: handshakes, a first request, and the Authorizer's answer
	// sendTime is how long Envoy may take to read a response, and answerTime how long it may leave all responses
	// unanswered. An Envoy with a thousand clusters can be busy for a minute and a half.
	sendTime   = 2 * time.Minute
	answerTime = 5 * time.Minute

	knownTime      = 10 * time.Minute // for which a token is known after its last stream has ended
	maxKnownTokens = 10_000           // of streams, and as many of reports
	maxIdleCallers = 1000             // without connections, whose rates are kept
)

// countLimit counts a limit that was reached, and logs it. mu is locked.
func (a *admission) countLimit(c *connection, limit, reason string, credential Credential) {
	a.metrics.limited.WithLabelValues(limit).Inc()
	a.logRefusal(c, credential, Node{}, reason+" (limit "+limit+"; SECURITY.md lists the limits)")
}

// reportLimit is countLimit with its own lock.
func (a *admission) reportLimit(c *connection, limit string, credential Credential, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.countLimit(c, limit, reason, credential)
}

// reportRefusal logs a stream that is refused or denied, and is not read any more. A denial counts against the caller.
func (a *admission) reportRefusal(c *connection, credential Credential, reason string, denied bool) {
	a.reportDenial(c, credential, Node{}, reason, denied)
}

// reportDenial is reportRefusal for a stream whose node is known.
func (a *admission) reportDenial(c *connection, credential Credential, n Node, reason string, denied bool) {
	a.mu.Lock()
	defer a.unlock()
	a.dropUnread(c)
	if denied {
		c.caller.denied.Allow()
	}
	a.logRefusal(c, credential, n, reason)
}

// logRefusal logs now or within a minute. mu is locked.
func (a *admission) logRefusal(c *connection, credential Credential, n Node, reason string) {
	log, address := a.log, c.describeAddress()
	if n.ID != "" {
		log = log.With("envoy", n.ID, "cluster", n.Cluster, "release", n.Release())
	}
	a.refusals.add(NetworkOf(c.address), func(count int) {
		log.Warn("envoy refused", "address", address, "count", count, "token", credential, "error", reason)
	})
}
