package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc/credentials"
)

// Handshakes counts and logs the handshakes that fail on Usher's ports. It logs one line about a caller and a reason at
// once, and then one a minute with the count. Use NewHandshakes, and Stop at the end. Any goroutine may call its methods.
type Handshakes struct {
	log      *slog.Logger
	failures *prometheus.CounterVec
	lines    *thinnedLog[failingCaller]
}

// failingCaller is one caller of a port whose handshakes fail for one reason.
type failingCaller struct {
	port    string
	network netip.Prefix
	reason  string
}

// NewHandshakes registers the metric, unless r is nil.
func NewHandshakes(log *slog.Logger, r prometheus.Registerer) *Handshakes {
	h := &Handshakes{log: log, lines: newThinnedLog[failingCaller](), failures: promauto.With(r).NewCounterVec(prometheus.CounterOpts{
		Name: "usher_tls_handshake_failures_total",
		Help: "TLS handshakes that failed, by port (xds, dataplane or webhook): the caller does not accept Usher's certificate, or speaks no TLS. " +
			"On a port without TLS: callers that begin TLS. The log has addresses and reasons.",
	}, []string{"port"})}
	for _, port := range []string{"xds", "dataplane", "webhook"} {
		h.failures.WithLabelValues(port) // an alert sees also the first failure
	}
	return h
}

// Failed reports the handshake of a caller that failed.
func (h *Handshakes) Failed(port string, caller net.Addr, err error) {
	h.failures.WithLabelValues(port).Inc()
	var address netip.AddrPort
	if tcp, ok := caller.(*net.TCPAddr); ok {
		address = netip.AddrPortFrom(tcp.AddrPort().Addr().Unmap(), tcp.AddrPort().Port())
	}
	reason := handshakeReason(err)
	h.lines.add(failingCaller{port, NetworkOf(address.Addr()), reason}, func(count int) {
		where := "unix socket"
		if address.IsValid() {
			where = address.String()
		}
		h.log.Warn("TLS handshake failed", "port", port, "address", where, "count", count, "error", fmt.Errorf("%s (%w)", reason, err))
	})
}

// Stop ends the log lines. The metric goes on.
func (h *Handshakes) Stop() { h.lines.stop() }

var errBeginsTLS = errors.New("the first byte is that of a TLS handshake")

// handshakeReason returns why a handshake failed and what to do.
func handshakeReason(err error) string {
	text := err.Error()
	has := func(part string) bool { return strings.Contains(text, part) }
	switch {
	case errors.Is(err, errBeginsTLS):
		return "the caller begins TLS, and this port is plain text; set --tls-cert and --tls-key, or remove the TLS of the caller's cluster"
	case has("does not look like a TLS handshake"):
		return "the caller speaks plain text, and this port has TLS; give the caller an https:// address of Usher, and the CA of --tls-cert"
	case has("unknown certificate authority"), has("unknown authority"):
		return "the caller does not trust the CA of --tls-cert; give the caller that CA, or Usher a certificate of the CA that it trusts"
	case has("expired certificate"):
		return "the caller says that --tls-cert has expired; renew it, and compare the clocks"
	case has("remote error: tls: bad certificate"), has("remote error: tls: unknown certificate"), has("remote error: tls: unsupported certificate"):
		return "the caller does not accept --tls-cert; check its names, its CA and its dates"
	case has("protocol version"), has("unsupported versions"), has("cipher suite"), has("handshake failure"):
		return "the caller and Usher have no common TLS version or cipher suite; Usher takes TLS 1.2 and 1.3"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "the caller did not finish the handshake in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), has("connection reset"), has("broken pipe"):
		return "the caller closed the connection during the handshake; its own log has the reason"
	}
	return "the handshake failed"
}

// Credentials returns the credentials of a gRPC server that report its failures.
func (h *Handshakes) Credentials(port string, of credentials.TransportCredentials) credentials.TransportCredentials {
	h.failures.WithLabelValues(port)
	return reportingCredentials{of, h, port}
}

type reportingCredentials struct {
	credentials.TransportCredentials
	handshakes *Handshakes
	port       string
}

func (c reportingCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn := &handshakeConn{Conn: raw, isPlain: c.Info().SecurityProtocol == "insecure"}
	secured, info, err := c.TransportCredentials.ServerHandshake(conn)
	if err == nil && conn.isPlain {
		err = conn.peek()
	}
	c.handshakes.ended(c.port, conn, err)
	return secured, info, err
}

// ended reports the end of a handshake if it failed. A probe that connects and closes is no handshake, and neither is a
// connection that Usher closes.
func (h *Handshakes) ended(port string, conn *handshakeConn, err error) {
	if err != nil && conn.read && !errors.Is(err, net.ErrClosed) && !errors.Is(err, context.Canceled) {
		h.Failed(port, conn.RemoteAddr(), err)
	}
}

func (c reportingCredentials) Clone() credentials.TransportCredentials {
	c.TransportCredentials = c.TransportCredentials.Clone()
	return c
}

// Listener returns a listener of TLS connections that reports the handshakes that fail. A connection makes its handshake
// at the first Read, within the deadline of that.
func (h *Handshakes) Listener(port string, l net.Listener, config *tls.Config) net.Listener {
	return reportingListener{l, h, port, config}
}

type reportingListener struct {
	net.Listener
	handshakes *Handshakes
	port       string
	config     *tls.Config
}

func (l reportingListener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	conn := &handshakeConn{Conn: raw}
	secured := tls.Server(conn, l.config)
	handshake := func() { l.handshakes.ended(l.port, conn, secured.HandshakeContext(context.Background())) } // Read has no context
	return &reportingConn{Conn: secured, handshake: sync.OnceFunc(handshake)}, nil
}

type reportingConn struct {
	*tls.Conn
	handshake func()
}

func (c *reportingConn) Read(p []byte) (int, error) {
	c.handshake()
	return c.Conn.Read(p)
}

// handshakeConn notices what a caller sends first.
type handshakeConn struct {
	net.Conn
	isPlain bool
	read    bool // it has sent something
	first   []byte
}

// peek reads the first byte. It returns errBeginsTLS if it is that of a TLS handshake.
func (c *handshakeConn) peek() error {
	const handshake = 22 // the type of a TLS record (RFC 8446, section 5.1)
	first := make([]byte, 1)
	if _, err := io.ReadFull(c.Conn, first); err != nil {
		return err
	}
	c.first = first
	if first[0] == handshake {
		c.read = true
		return errBeginsTLS
	}
	return nil
}

func (c *handshakeConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 && len(p) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p)
	c.read = c.read || n > 0
	return n, err
}
