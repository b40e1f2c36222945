package xds

import (
	"cmp"
	"time"
)

// Limits bound what callers cost. They hold before anything is decoded, logged or
// asked of the Authorizer. Zero stands for that of DefaultLimits.
//
// A peer is an IP address; an IPv6 network of 64 bits is one peer, and all unix
// sockets are one. A connection is pending until one of its streams is
// authorised, and again when the last of those has ended. A stream is pending
// until it is authorised. When a limit is reached, one that is pending gives way to
// the newest, so that callers who only hold a place lose it: the oldest stream,
// first of those whose token is not known from the last ten minutes; the oldest
// connection of the peer that has most of them. When nothing is pending, the
// newest is refused.
type Limits struct {
	// Connections is how many may be open, and ConnectionsPerPeer how many of
	// them from one peer.
	Connections, ConnectionsPerPeer int
	// Streams is how many may be open, and StreamsPerPeer how many of them by
	// one peer.
	Streams, StreamsPerPeer int
	// StreamRate is how many streams may be opened in a second, and
	// StreamRatePerPeer how many of them by one peer; ten times as many may come
	// at once. Streams with a token that was authorised in the last ten minutes
	// do not count.
	StreamRate, StreamRatePerPeer int
}

// DefaultLimits are those that zeros stand for.
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

// The limits that no option changes.
const (
	// rateBurst is how many seconds' worth of streams may come at once.
	rateBurst = 10
	// maxPendingStreams bounds the streams that are not authorised yet, of all
	// peers and of one.
	maxPendingStreams        = 2048
	maxPendingStreamsPerPeer = 1024
	// maxRequestBytes bounds the bytes of requests that have arrived and are not
	// handled yet, of all connections.
	maxRequestBytes = 64 << 20
	// maxPendingRequest bounds what the requests of one pending connection take:
	// one of the largest, and what others have sent that are not read yet.
	maxPendingRequest = maxRequest + 1<<20
	// maxRefused is how many streams of a pending connection may be refused before
	// it is closed.
	maxRefused = 100
	// maxDeniedRate is how many streams of one peer may be denied in a second, and
	// maxDenied how many at once, before further ones are refused without a
	// question: each question costs Consul as well.
	maxDeniedRate = 10
	maxDenied     = 100
	// handshakeTime bounds the TLS and HTTP/2 handshakes.
	handshakeTime = 10 * time.Second
	// firstRequestTime is how long a stream may take to send its first request.
	firstRequestTime = 10 * time.Second
	// pendingTime is how long a connection may be pending: time for the
	// handshakes, a first request, and the Authorizer's answer.
	pendingTime = 30 * time.Second
	// sendTime is how long Envoy may take to let a response be written, and
	// answerTime how long it may answer none. An Envoy with a thousand clusters can
	// be busy for a minute and a half.
	sendTime   = 2 * time.Minute
	answerTime = 5 * time.Minute
	// knownTime is how long a token is known after its last stream.
	knownTime = 10 * time.Minute
	// maxKnownTokens bounds the tokens that are known.
	maxKnownTokens = 10_000
	// maxIdlePeers bounds the peers without connections of which rates and log
	// lines are remembered.
	maxIdleCallers = 1000
	// refusalLogTime is how often one peer's refusals are logged, and
	// maxRefusalLines how many lines a second there are of all peers.
	refusalLogTime  = time.Minute
	maxRefusalLines = 10
)
