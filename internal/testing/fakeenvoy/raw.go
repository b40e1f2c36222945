package fakeenvoy

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"net"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Raw is a client that writes HTTP/2 frames itself. It ignores the server's limits, and may leave messages unfinished.
type Raw struct {
	conn    net.Conn
	framer  *http2.Framer
	unsent  *bufio.Writer // what the framer has written
	headers bytes.Buffer
	encoder *hpack.Encoder
	window  chan struct{} // has a value when the server accepts more data
	answer  chan struct{} // closed when the server has sent data
	done    chan struct{} // closed when the connection has ended
}

// maxFrame is the size of the largest frames, in bytes.
const maxFrame = 16 << 10

// freeBytes are the bytes of a message that every server accepts before it reads the message.
const freeBytes = 32 << 10

// NewRaw starts HTTP/2 on a connection, and reads until the connection is closed.
func NewRaw(conn net.Conn) (*Raw, error) {
	unsent := bufio.NewWriterSize(conn, 64<<10)
	r := &Raw{
		conn: conn, framer: http2.NewFramer(unsent, conn), unsent: unsent,
		window: make(chan struct{}, 1), answer: make(chan struct{}), done: make(chan struct{}),
	}
	r.encoder = hpack.NewEncoder(&r.headers)
	go r.read()
	_, err := unsent.WriteString(http2.ClientPreface)
	return r, errors.Join(err, r.framer.WriteSettings(), r.framer.WriteSettingsAck(), unsent.Flush())
}

// Answered is closed when the server has begun to send a response.
func (r *Raw) Answered() <-chan struct{} { return r.answer }

// Done is closed when the connection has ended.
func (r *Raw) Done() <-chan struct{} { return r.done }

func (r *Raw) read() {
	defer close(r.done)
	var once sync.Once
	for {
		f, err := r.framer.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.WindowUpdateFrame:
			if f.StreamID != 0 {
				r.grant()
			}
		case *http2.DataFrame:
			once.Do(func() { close(r.answer) })
		}
	}
}

func (r *Raw) grant() {
	select {
	case r.window <- struct{}{}:
	default:
	}
}

// Open opens a stream of the delta protocol. Its id must be odd. The token may have any size.
func (r *Raw) Open(stream uint32, token string) error {
	r.headers.Reset()
	for _, h := range [][2]string{
		{":method", "POST"},
		{":scheme", "http"},
		{":path", discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName},
		{":authority", "usher"},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
		{"x-consul-token", token},
	} {
		if err := r.encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			return err
		}
	}
	first := r.headers.Next(maxFrame)
	err := r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndHeaders: r.headers.Len() == 0})
	for err == nil && r.headers.Len() > 0 {
		more := r.headers.Next(maxFrame)
		err = r.framer.WriteContinuation(stream, r.headers.Len() == 0, more)
	}
	return cmp.Or(err, r.unsent.Flush())
}

// Drip starts a message of the given size and sends some of its bytes, one per frame.
func (r *Raw) Drip(stream uint32, size, bytes int) error {
	data := binary.BigEndian.AppendUint32([]byte{0}, uint32(size))
	err := r.framer.WriteData(stream, false, data)
	for sent := 0; err == nil && sent < bytes; sent++ {
		if sent == freeBytes {
			err = r.waitWindow()
		}
		err = cmp.Or(err, r.framer.WriteData(stream, false, data[:1]))
	}
	return cmp.Or(err, r.unsent.Flush())
}

// Send starts a message of the given size and sends its first bytes.
func (r *Raw) Send(stream uint32, size int, body []byte) error {
	data := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(size)), body...)
	for sent := 0; sent < len(data); {
		n := min(len(data)-sent, maxFrame)
		if sent <= freeBytes && sent+n > freeBytes {
			if err := r.waitWindow(); err != nil {
				return err
			}
		}
		if err := r.framer.WriteData(stream, false, data[sent:sent+n]); err != nil {
			return err
		}
		sent += n
	}
	return r.unsent.Flush()
}

// waitWindow waits until the server accepts the rest of a message.
func (r *Raw) waitWindow() error {
	if err := r.unsent.Flush(); err != nil {
		return err
	}
	select {
	case <-r.window:
		return nil
	case <-r.done:
		return net.ErrClosed
	}
}
