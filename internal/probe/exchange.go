package probe

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"syscall"
	"time"
)

// Reaction is the type of an Answer.
type Reaction string

// The reactions.
const (
	HTTP        Reaction = "http"          // an HTTP response
	Data        Reaction = "data"          // bytes that are no HTTP response
	Closed      Reaction = "closed"        // the end of the connection, without a byte
	Reset       Reaction = "reset"         // the same, by a TCP reset
	Silence     Reaction = "silence"       // nothing until the timeout
	Alert       Reaction = "tls alert"     // a TLS alert
	NotTLS      Reaction = "not tls"       // bytes that are not TLS, in a TLS handshake
	Refused     Reaction = "refused"       // no connection: nothing listens
	Unreachable Reaction = "not reachable" // no connection for another reason
	TLSFailed   Reaction = "tls handshake" // the handshake failed for another reason
	Unreadable  Reaction = "unreadable"    // it begins like an HTTP response, and is none
)

// Answer is what came back on one connection.
type Answer struct {
	Sent      string   `json:"sent"`
	OverTLS   bool     `json:"over_tls"`
	Reaction  Reaction `json:"reaction"`
	Handshake bool     `json:"tls_handshake"`          // the TLS handshake was completed
	Status    int      `json:"status,omitempty"`       // of the HTTP response
	Server    string   `json:"server,omitempty"`       // the Server header of the response, if it looks like a product
	Service   bool     `json:"by_service,omitempty"`   // Envoy has this response from a service
	Bytes     int      `json:"bytes,omitempty"`        // of a reaction that is Data
	Echoed    bool     `json:"echoed,omitempty"`       // the header that was sent is in the data
	Step      string   `json:"after,omitempty"`        // what had been sent when it came; "" is everything
	Claimed   bool     `json:"shows_source,omitempty"` // the response has the address that the PROXY header claims
	Direct    bool     `json:"shows_own,omitempty"`    // the response has the address of this host
	Detail    string   `json:"detail,omitempty"`       // the text of an alert or an error
}

// maxAnswer is how many bytes of a response are read.
const maxAnswer = 64 << 10

// minPause is the default of Options.pause. A listener that is slower looks like one that waits for more.
const minPause = 250 * time.Millisecond

// product is a Server header that can be printed.
var product = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._/() +-]{0,39}$`)

// exchange opens a connection, begins it, and returns what comes back.
func (o *Options) exchange(ctx context.Context, target netip.AddrPort, b beginning, overTLS bool) Answer {
	e := &connection{options: o, begin: b, target: target, answer: Answer{Sent: b.name, OverTLS: overTLS}}
	e.run(ctx)
	return e.answer
}

// connection is one connection of a probe.
type connection struct {
	net.Conn
	options *Options
	begin   beginning
	target  netip.AddrPort
	reader  *bufio.Reader
	pause   time.Duration
	answer  Answer
}

// Read reads what the reader has buffered, too. It is for the TLS handshake.
func (e *connection) Read(p []byte) (int, error) { return e.reader.Read(p) }

func (e *connection) run(ctx context.Context) {
	started, timeout := time.Now(), e.options.Timeout
	conn, err := (&net.Dialer{Timeout: timeout}).DialContext(ctx, "tcp", e.target.String())
	if err != nil {
		e.notConnected(err)
		return
	}
	defer conn.Close()
	e.Conn, e.reader = conn, bufio.NewReader(conn)
	e.pause = min(max(cmp.Or(e.options.pause, minPause), 4*time.Since(started)), timeout) // the answer takes a round trip
	deadline := started.Add(timeout + time.Duration(len(e.begin.steps))*e.pause)
	_ = conn.SetDeadline(deadline) // it fails on closed connections only
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	payload := e.options.payload()
	switch {
	case e.begin.silent:
		e.readAnswer(e.reader)
	case e.answer.OverTLS:
		if e.writeHeader(deadline) {
			e.overTLS(ctx, payload)
		}
	case e.begin.steps == nil: // one write: a listener that closes early would otherwise reset the connection
		_, _ = conn.Write(append(e.begin.all(), payload...)) // the answer says more than the error
		e.readAnswer(e.reader)
	default:
		if e.writeHeader(deadline) {
			_, _ = conn.Write(payload)
			e.readAnswer(e.reader)
		}
	}
}

// writeHeader writes the segments. It returns false if something came back before all of them were sent; that is the
// answer.
func (e *connection) writeHeader(deadline time.Time) bool {
	for i, segment := range e.begin.segments {
		_, _ = e.Write(segment) // the answer says more than the error
		if i >= len(e.begin.steps) {
			continue
		}
		_ = e.SetReadDeadline(time.Now().Add(e.pause))
		_, err := e.reader.Peek(1)
		_ = e.SetReadDeadline(deadline)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			e.answer.Step = e.begin.steps[i]
			e.readAnswer(e.reader)
			return false
		}
	}
	return true
}

// overTLS makes the handshake, sends the payload, and reads the answer.
func (e *connection) overTLS(ctx context.Context, payload []byte) {
	config := &tls.Config{
		ServerName:         e.options.serverName(),
		InsecureSkipVerify: true, //nolint:gosec // the probe sends nothing that is secret, and looks at no certificate
	}
	if !e.options.TCP {
		config.NextProtos = []string{"http/1.1"}
	}
	secure := tls.Client(e, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		e.readError(err)
		return
	}
	e.answer.Handshake = true
	_, _ = secure.Write(payload)
	e.readAnswer(bufio.NewReader(secure))
}

// tlsAlertRecord is the first byte of a TLS alert.
const tlsAlertRecord = 0x15

// readAnswer reads what comes back.
func (e *connection) readAnswer(r *bufio.Reader) {
	begin, err := r.Peek(len("HTTP/"))
	switch {
	case string(begin) == "HTTP/":
		e.readHTTP(r)
	case len(begin) > 1 && begin[0] == tlsAlertRecord && begin[1] == 3:
		e.answer.Reaction = Alert
	case len(begin) > 0:
		e.readData(r)
	default:
		e.readError(err)
	}
}

// readHTTP reads an HTTP response. Of its content, it remembers only what is in Answer.
func (e *connection) readHTTP(r *bufio.Reader) {
	response, err := http.ReadResponse(r, &http.Request{Method: e.options.method()}) // there is no body after HEAD
	if err != nil {
		e.fail(Unreadable, errors.New("it begins like an HTTP response, and is none"))
		return
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, maxAnswer)) // a part of it may do
	e.answer.Reaction, e.answer.Status = HTTP, response.StatusCode
	if server := response.Header.Get("Server"); product.MatchString(server) {
		e.answer.Server = server
	}
	e.answer.Service = response.Header.Get("X-Envoy-Upstream-Service-Time") != ""
	e.lookForAddresses(body)
}

// lookForAddresses looks in a response for the two addresses that the service can take for the client's.
func (e *connection) lookForAddresses(body []byte) {
	has := func(ip netip.Addr) bool {
		found := regexp.MustCompile(`(^|[^0-9a-fA-F:.])` + regexp.QuoteMeta(ip.String()) + `($|[^0-9a-fA-F:.]|[:.]($|[^0-9a-fA-F]))`)
		return found.Match(body)
	}
	e.answer.Claimed = has(e.options.claimed(e.target.Addr()))
	if own, err := netip.ParseAddrPort(e.LocalAddr().String()); err == nil {
		e.answer.Direct = has(own.Addr().Unmap())
	}
}

// readData counts the bytes that arrive until there is a pause.
func (e *connection) readData(r *bufio.Reader) {
	_ = e.SetReadDeadline(time.Now().Add(e.pause))
	data, _ := io.ReadAll(io.LimitReader(r, maxAnswer)) // it ends with the pause, or with the connection
	e.answer.Reaction, e.answer.Bytes = Data, len(data)
	header := e.begin.all()
	e.answer.Echoed = len(header) > 0 && bytes.Contains(data, header[:min(len(header), 12)])
}

// readError says how a connection ended, or that nothing came.
func (e *connection) readError(err error) {
	var alert *net.OpError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &alert) && alert.Op == "remote error":
		e.fail(Alert, alert.Err)
	case errors.As(err, &record):
		e.answer.Reaction = NotTLS
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		e.answer.Reaction = Silence
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		e.answer.Reaction = Reset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		e.answer.Reaction = Closed
	default:
		e.fail(TLSFailed, err)
	}
}

func (e *connection) notConnected(err error) {
	var why syscall.Errno
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		e.answer.Reaction = Refused
	case errors.As(err, &why):
		e.fail(Unreachable, why)
	default:
		e.fail(Unreachable, fmt.Errorf("no connection within %v", e.options.Timeout))
	}
}

func (e *connection) fail(r Reaction, err error) {
	e.answer.Reaction, e.answer.Detail = r, err.Error()
}
