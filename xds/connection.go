package xds

import (
	"container/list"
	"net"
	"net/netip"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/usherproxy/usher/internal/requestbytes"
)

// connection is an accepted connection. The admission's lock guards the fields below it.
type connection struct {
	net.Conn
	admission *admission
	decrypted bool // by another server: there is no handshake

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

// releaseRequest ends a request's count against the limits.
func (c *connection) releaseRequest(raw rawRequest) {
	const prefix = 5 // bytes that gRPC puts before each message
	c.admission.countRequestBytes(c, -len(raw)-prefix, 0)
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
	decrypted bool // its connections
}

func (l listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &connection{Conn: conn, admission: l.admission, decrypted: l.decrypted}
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
	conn := raw.(*connection)
	creds := c.TransportCredentials
	if conn.decrypted {
		creds = insecure.NewCredentials()
	}
	decrypted, info, err := creds.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	counted := requestbytes.NewConn(decrypted, func(data, frames int) { conn.admission.countRequestBytes(conn, data, frames) })
	return counted, authInfo{info, conn}, nil
}

func (c countingCredentials) Clone() credentials.TransportCredentials {
	return countingCredentials{c.TransportCredentials.Clone()}
}
