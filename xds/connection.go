package xds

import (
	"container/list"
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/credentials"
)

// connection is an accepted connection. The admission's lock guards the fields below it.
type connection struct {
	net.Conn
	admission *admission

	address      netip.Addr // the client's; zero for a unix socket
	caller       *callerState
	closed       bool
	streams      int           // open ones
	authorized   int           // of them
	used         bool          // it had a stream
	pending      *list.Element // in the caller's pending connections; nil: not pending
	expiry       *time.Timer   // closes the connection while it is pending
	extended     bool          // a stream has restarted expiry
	refused      int           // streams
	requestBytes int           // of requests that are not handled yet
	frames       int           // in which they came
}

// frameCost is how many bytes gRPC needs for a DATA frame besides the data.
const frameCost = 64

// cost is the memory of requests that are not handled yet.
func (c *connection) cost() int { return c.requestBytes + frameCost*c.frames }

func (c *connection) Close() error {
	c.admission.mu.Lock()
	c.admission.dropConnection(c)
	c.admission.unlock()
	return c.Conn.Close()
}

// describeAddress returns the client's address for a log.
func (c *connection) describeAddress() string {
	if c.address.IsValid() {
		return c.address.String()
	}
	return "unix socket"
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
		if l.admission.addConnection(c) {
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

// countingCredentials count the bytes of requests that arrive after the handshake.
type countingCredentials struct {
	credentials.TransportCredentials
}

func (c countingCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	decrypted, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	conn := raw.(*connection)
	counter := dataCounter{rest: len(http2.ClientPreface)}
	return &countedConn{Conn: decrypted, conn: conn, counter: counter}, authInfo{info, conn}, nil
}

func (c countingCredentials) Clone() credentials.TransportCredentials {
	return countingCredentials{c.TransportCredentials.Clone()}
}

// countedConn counts what is read from a decrypted connection.
type countedConn struct {
	net.Conn
	conn    *connection
	counter dataCounter
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if data, frames := c.counter.count(p[:n]); frames > 0 || data > 0 {
		c.conn.admission.countRequestBytes(c.conn, data, frames)
	}
	return n, err
}

// dataCounter counts the bytes in the DATA frames of an HTTP/2 client
// (https://www.rfc-editor.org/rfc/rfc9113#section-4.1). gRPC buffers them until a message is complete, and has no hook
// for that.
type dataCounter struct {
	rest        int  // bytes until the next frame's header
	isData      bool // they are data
	header      [9]byte
	headerBytes int // how much of header has arrived
}

// count returns how many of the next bytes are data, and how many DATA frames begin in them.
func (d *dataCounter) count(p []byte) (data, frames int) {
	for len(p) > 0 {
		if d.rest > 0 {
			n := min(d.rest, len(p))
			p, d.rest = p[n:], d.rest-n
			if d.isData {
				data += n
			}
			continue
		}
		n := copy(d.header[d.headerBytes:], p)
		p, d.headerBytes = p[n:], d.headerBytes+n
		if d.headerBytes < len(d.header) {
			break
		}
		d.headerBytes, d.rest = 0, int(binary.BigEndian.Uint32(d.header[:4])>>8)
		if d.isData = http2.FrameType(d.header[3]) == http2.FrameData; d.isData {
			frames++
		}
	}
	return data, frames
}
