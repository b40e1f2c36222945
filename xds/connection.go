package xds

import (
	"container/list"
	"encoding/binary"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/credentials"
)

// connection is an accepted connection, as the limits know it. The fields below
// once belong to the admission's lock.
type connection struct {
	net.Conn
	admission *admission
	once      sync.Once

	caller                *callerState
	closed                bool
	streams               int           // that are open
	authorized            int           // of them
	used                  bool          // it had a stream
	element, peersElement *list.Element // in the lists of pending connections; nil: it is not pending
	expiry                *time.Timer   // closes it while it is pending
	requestBytes          int           // of requests that are not handled yet
	frames                int           // that they came in
	refused               int           // streams
	extended              bool          // the time that it may be pending, for a stream
}

// frameCost is how many bytes gRPC needs to keep a frame of data, besides the data.
const frameCost = 64

// cost is the memory that requests take which are not handled yet.
func (c *connection) cost() int { return c.requestBytes + frameCost*c.frames }

// Close implements net.Conn.
func (c *connection) Close() error {
	c.once.Do(func() { c.admission.removeConnection(c) })
	return c.Conn.Close()
}

// givesWayBefore reports whether c's requests give way before those of other.
func (c *connection) evictedBefore(other *connection) bool {
	if pending := c.element != nil; pending != (other.element != nil) {
		return pending
	}
	return c.cost() > other.cost()
}

// listener admits connections.
type listener struct {
	net.Listener
	admission *admission
}

// Accept implements net.Listener. A connection for which there is no place is
// closed.
func (l listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &connection{Conn: conn, admission: l.admission}
		if l.admission.addConnection(c) {
			return c, nil
		}
		_ = conn.Close()
	}
}

// authInfo is what a handshake says, with the connection.
type authInfo struct {
	credentials.AuthInfo
	conn *connection
}

// countingCredentials count the bytes of requests behind the handshake.
type countingCredentials struct {
	credentials.TransportCredentials
}

// ServerHandshake implements credentials.TransportCredentials.
func (c countingCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	of := raw.(*connection)
	return &countedConn{Conn: conn, conn: of}, authInfo{info, of}, nil
}

// Clone implements credentials.TransportCredentials.
func (c countingCredentials) Clone() credentials.TransportCredentials {
	return countingCredentials{c.TransportCredentials.Clone()}
}

// countedConn counts what arrives, behind TLS.
type countedConn struct {
	net.Conn
	conn *connection
	data dataCounter
}

// Read implements net.Conn.
func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if data, frames := c.data.count(p[:n]); frames > 0 || data > 0 {
		c.conn.admission.addRequestBytes(c.conn, data, frames)
	}
	return n, err
}

// dataCounter counts the bytes in DATA frames of what an HTTP/2 client sends
// (https://www.rfc-editor.org/rfc/rfc9113#section-4.1). gRPC holds them until a
// whole message is there, and tells nobody.
type dataCounter struct {
	begun   bool
	rest    int  // bytes until the next frame's header
	isData  bool // they are data
	header  [9]byte
	headers int // bytes of header that are there
}

// count takes the next bytes and returns how many of them are data, and how many
// frames of data begin with them.
func (d *dataCounter) count(p []byte) (data, frames int) {
	if !d.begun {
		d.begun, d.rest = true, len(http2.ClientPreface)
	}
	for len(p) > 0 {
		if d.rest == 0 {
			n := copy(d.header[d.headers:], p)
			p, d.headers = p[n:], d.headers+n
			if d.headers == len(d.header) {
				d.rest = int(binary.BigEndian.Uint32(d.header[:4]) >> 8)
				d.isData = http2.FrameType(d.header[3]) == http2.FrameData
				d.headers = 0
				if d.isData {
					frames++
				}
			}
			continue
		}
		n := min(d.rest, len(p))
		p, d.rest = p[n:], d.rest-n
		if d.isData {
			data += n
		}
	}
	return data, frames
}
