//go:build e2e

package lab

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
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// ServiceHost is the Host header of the lab's request.
const ServiceHost = "static-server.ingress.consul"

// PollPath is the path of requests that wait for a change.
const PollPath = "/wait"

// RequestTimeout is the longest that a client waits for its answer, unless its request says otherwise. An answer that is
// late is no failure: a machine with too much to do can stop a process for seconds.
const RequestTimeout = 20 * time.Second

// Request is one HTTP request on a new connection.
type Request struct {
	From   *Host
	To     string // address:port
	Path   string
	Host   string // ServiceHost when empty
	Header http.Header
	Source netip.AddrPort // of the connection; zero for the host's choice
	Proxy  io.WriterTo    // written in front of the request; nil for none
	TLS    *tls.Config    // nil for plain text; without a server name it is Host
	// WantBody is the whole body that a load wants; "" for any.
	WantBody string
	Timeout  time.Duration // for the connection, and for each answer; RequestTimeout when 0
}

// Response is the response that the client got.
type Response struct {
	Status int
	Body   string
	Header http.Header
}

// Do makes the request. The error is the connection's.
func (c Request) Do(ctx context.Context) (Response, error) {
	conn, err := c.Connect(ctx)
	if err != nil {
		return Response{}, err
	}
	defer conn.Close()
	return conn.RoundTrip(c, "close")
}

// MustDo makes the request and fails the test when the connection does.
func (c Request) MustDo(t *testing.T) Response {
	t.Helper()
	a, err := c.Do(t.Context())
	if err != nil {
		t.Fatalf("%s -> %s%s: %v", c.From.Name, c.To, c.Path, err)
	}
	return a
}

// Connect opens a connection, writes the PROXY header and speaks TLS.
func (c Request) Connect(ctx context.Context) (*ClientConn, error) {
	opened := time.Now()
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(c.Timeout, RequestTimeout))
	defer cancel()
	conn, err := c.From.DialFrom(ctx, c.Source, c.To)
	if err != nil {
		return nil, err
	}
	if c.Proxy != nil {
		if _, err := c.Proxy.WriteTo(conn); err != nil {
			conn.Close()
			return nil, err
		}
	}
	if c.TLS != nil {
		config := c.TLS.Clone()
		config.ServerName = cmp.Or(config.ServerName, c.host())
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		conn = secure
	}
	return &ClientConn{Conn: conn, Reader: bufio.NewReader(conn), opened: opened}, nil
}

// ClientConn is a client's HTTP/1.1 connection. Unlike Go's own client it
// neither retries nor rejects a response that comes before the end of the request,
// such as the 400 to a PROXY header.
type ClientConn struct {
	net.Conn
	Reader *bufio.Reader
	last   bool // the server will close the connection
	opened time.Time
	served time.Time // the first answer; zero: none yet
}

// RoundTrip sends the request and reads its answer.
func (conn *ClientConn) RoundTrip(c Request, connection string) (Response, error) {
	if err := conn.SetDeadline(time.Now().Add(cmp.Or(c.Timeout, RequestTimeout))); err != nil {
		return Response{}, err
	}
	_, sendErr := io.WriteString(conn, c.text(connection))
	response, err := http.ReadResponse(conn.Reader, nil)
	if err != nil {
		return Response{}, errors.Join(sendErr, fmt.Errorf("wait for the answer: %w", err))
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return Response{}, fmt.Errorf("read the answer: %w", err)
	}
	conn.last = response.Close
	if conn.served.IsZero() {
		conn.served = time.Now()
	}
	return Response{Status: response.StatusCode, Body: string(body), Header: response.Header}, nil
}

// Last reports whether the latest answer said that the server closes the connection.
func (conn *ClientConn) Last() bool { return conn.last }

func (c Request) host() string { return cmp.Or(c.Host, ServiceHost) }

// text is the request as it goes over the wire.
func (c Request) text(connection string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n", c.Path, c.host(), connection)
	_ = c.Header.Write(&text) // a strings.Builder takes everything
	text.WriteString("\r\n")
	return text.String()
}

// WantHello wants the response to be the service's.
func (a Response) WantHello(t *testing.T) {
	t.Helper()
	if a.Status != http.StatusOK || a.Body != "hello world\n" {
		t.Errorf("the client got %d %q, want 200 \"hello world\"", a.Status, a.Body)
	}
}

// WaitStatus makes requests until they are answered with the status, several
// times in a row: an Envoy takes a new listener thread by thread.
func WaitStatus(t *testing.T, c Request, status int) {
	t.Helper()
	const consecutive = 10
	c.Path = PollPath
	testprocess.Eventually(t, fmt.Sprintf("requests through %s are answered %d", c.To, status), testprocess.ChangeDeadline, func() error {
		for range consecutive {
			got, err := c.Do(t.Context())
			if err == nil && got.Status != status {
				err = fmt.Errorf("status %d: %s", got.Status, strings.TrimSpace(got.Body))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

var paths atomic.Int64

// NewPath is a path that no other request has, to find it in the logs.
func NewPath() string {
	return fmt.Sprintf("/request-%d", paths.Add(1))
}

// TCPExchange is a connection to a service that greets and then echoes.
type TCPExchange struct {
	From    *Host
	To      string
	Source  netip.AddrPort // zero for the host's choice
	Headers []io.WriterTo
	TLS     *tls.Config   // nil for plain text
	Timeout time.Duration // RequestTimeout when 0
}

// Do sends the headers and the payload. It returns what came back between the
// greeting and the payload, which is what the service got before the payload, and
// the client's address.
func (c TCPExchange) Do(ctx context.Context) (data, client string, err error) {
	conn, err := c.From.DialFrom(ctx, c.Source, c.To)
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(cmp.Or(c.Timeout, RequestTimeout))); err != nil {
		return "", "", err
	}
	conn, sendErr := c.send(conn)
	var got []byte
	for !bytes.HasSuffix(got, []byte(tcpPayload)) {
		chunk := make([]byte, 1024)
		n, err := conn.Read(chunk)
		if err != nil {
			return string(got), "", errors.Join(err, sendErr)
		}
		got = append(got, chunk[:n]...)
	}
	data, greeted := strings.CutPrefix(strings.TrimSuffix(string(got), tcpPayload), TCPGreeting)
	if !greeted {
		return data, "", fmt.Errorf("got %q, want it to begin with %q", got, TCPGreeting)
	}
	return data, conn.LocalAddr().String(), nil
}

// send writes the headers and the payload, and returns the connection on which the
// answer comes.
func (c TCPExchange) send(conn net.Conn) (net.Conn, error) {
	for _, h := range c.Headers {
		if _, err := h.WriteTo(conn); err != nil {
			return conn, err
		}
	}
	if c.TLS != nil {
		conn = tls.Client(conn, c.TLS)
	}
	_, err := io.WriteString(conn, tcpPayload)
	return conn, err
}

// WaitData waits until the service gets the data before the payload, and no more.
func (c TCPExchange) WaitData(t *testing.T, data string) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("%s -> %s: the service gets %q before the word", c.From.Name, c.To, data), testprocess.ChangeDeadline, func() error {
		got, _, err := c.Do(t.Context())
		if err == nil && got != data {
			err = fmt.Errorf("it gets %q", got)
		}
		return err
	})
}

// WaitClosed waits until the connection is closed without a byte.
func (c TCPExchange) WaitClosed(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("%s -> %s is closed", c.From.Name, c.To), testprocess.ChangeDeadline, func() error {
		got, _, err := c.Do(t.Context())
		if err == nil || got != "" {
			return fmt.Errorf("got %q", got)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New("it is still open")
		}
		return nil
	})
}

// What a TCPExchange receives first, and what it sends.
const (
	TCPGreeting = "hello world\n"
	// tcpPayload is longer than the start of a PROXY header: with less, Envoy waits
	// for more before it decides that there is none.
	tcpPayload = "a word of more than sixteen bytes\n"
)
