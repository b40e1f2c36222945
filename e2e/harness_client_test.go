//go:build e2e

package e2e

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// labHost is the Host header of the lab's request.
const labHost = "static-server.ingress.consul"

// waitPrefix is the path of requests that wait for a change.
const waitPrefix = "/wait"

// callTimeout is the longest that a client waits for its answer.
const callTimeout = 5 * time.Second

// call is one HTTP request on a connection of its own.
type call struct {
	From   *host
	To     string // address:port
	Path   string
	Host   string // labHost when empty
	Header http.Header
	Source netip.AddrPort // of the connection; zero for the host's choice
	Proxy  io.WriterTo    // written in front of the request; nil for none
	TLS    *tls.Config    // nil for plain text; without a server name it is Host
}

// answer is what the client got.
type answer struct {
	Status int
	Body   string
	Header http.Header
}

// do makes the request. The error is the connection's.
func (c call) do(ctx context.Context) (answer, error) {
	conn, err := c.connect(ctx)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	return conn.exchange(c, "close")
}

// must makes the request and fails the test when the connection does.
func (c call) must(t *testing.T) answer {
	t.Helper()
	a, err := c.do(t.Context())
	if err != nil {
		t.Fatalf("%s -> %s%s: %v", c.From.Name, c.To, c.Path, err)
	}
	return a
}

// connect opens a connection, writes the PROXY header and speaks TLS.
func (c call) connect(ctx context.Context) (*clientConn, error) {
	opened := time.Now()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := c.From.dialFrom(ctx, c.Source, c.To)
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
	return &clientConn{Conn: conn, reader: bufio.NewReader(conn), opened: opened}, nil
}

// clientConn is a client's HTTP/1.1 connection. Unlike Go's own client it
// neither retries nor minds an answer that comes before the request, as the 400
// to a PROXY header does.
type clientConn struct {
	net.Conn
	reader *bufio.Reader
	last   bool // the peer has said that it will close
	opened time.Time
	served time.Time // the first answer; zero: none yet
}

// exchange sends the request and reads its answer.
func (conn *clientConn) exchange(c call, connection string) (answer, error) {
	if err := conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return answer{}, err
	}
	_, sendErr := io.WriteString(conn, c.text(connection))
	response, err := http.ReadResponse(conn.reader, nil)
	if err != nil {
		return answer{}, errors.Join(sendErr, fmt.Errorf("wait for the answer: %w", err))
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, fmt.Errorf("read the answer: %w", err)
	}
	conn.last = response.Close
	if conn.served.IsZero() {
		conn.served = time.Now()
	}
	return answer{Status: response.StatusCode, Body: string(body), Header: response.Header}, nil
}

func (c call) host() string { return cmp.Or(c.Host, labHost) }

// text is the request as it goes over the wire.
func (c call) text(connection string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n", c.Path, c.host(), connection)
	_ = c.Header.Write(&text) // a strings.Builder takes everything
	text.WriteString("\r\n")
	return text.String()
}

// wantHello fails the test unless the answer is the service's.
func (a answer) wantHello(t *testing.T) {
	t.Helper()
	if a.Status != http.StatusOK || a.Body != "hello world\n" {
		t.Errorf("the client got %d %q, want 200 \"hello world\"", a.Status, a.Body)
	}
}

// waitStatus makes requests until they are answered with the status, several
// times in a row: an Envoy takes a new listener thread by thread.
func waitStatus(t *testing.T, c call, status int) {
	t.Helper()
	const row = 10
	c.Path = waitPrefix
	eventually(t, fmt.Sprintf("requests through %s are answered %d", c.To, status), changeDeadline, func() error {
		for range row {
			got, err := c.do(t.Context())
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

// newPath is a path that no other request has, to find it in the logs.
func newPath() string {
	return fmt.Sprintf("/request-%d", paths.Add(1))
}
