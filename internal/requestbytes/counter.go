// Package requestbytes counts the bytes of gRPC requests as they arrive. gRPC buffers them until a message is complete, and
// has no hook for that.
package requestbytes

import (
	"encoding/binary"
	"net"

	"golang.org/x/net/http2"
)

// NewConn returns a decrypted connection that calls count after each read of data, with its bytes and with how many DATA
// frames begin in it.
func NewConn(decrypted net.Conn, count func(data, frames int)) net.Conn {
	return &conn{Conn: decrypted, counter: NewCounter(), count: count}
}

type conn struct {
	net.Conn
	counter Counter
	count   func(data, frames int)
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if data, frames := c.counter.Count(p[:n]); data > 0 || frames > 0 {
		c.count(data, frames)
	}
	return n, err
}

// NewCounter returns a Counter for what a client sends from the beginning of its connection on.
func NewCounter() Counter { return Counter{rest: len(http2.ClientPreface)} }

// Counter counts the bytes in the DATA frames of an HTTP/2 client
// (https://www.rfc-editor.org/rfc/rfc9113#section-4.1).
type Counter struct {
	rest        int  // bytes until the next frame's header
	isData      bool // they are data
	header      [9]byte
	headerBytes int // how much of header has arrived
}

// Count returns how many of the next bytes are data, and how many DATA frames begin in them.
func (d *Counter) Count(p []byte) (data, frames int) {
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
