package probe

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeListener begins connections as Envoy's listeners do, or as other servers.
type fakeListener struct {
	mode      Finding // Off, Permissive or Strict
	versions  string  // of the headers that are looked for; "" is "v1 v2"
	untrusted bool    // trusted_cidrs do not have the probe's host
	onePart   bool    // a header has to arrive in one segment
	refuse    string  // headers with these bytes are refused
	serverTLS *tls.Config
	serve     func(conn net.Conn, r *bufio.Reader, client string) // after the header and the handshake
}

// start listens on loopback until the test ends, and returns the address.
func (f *fakeListener) start(t *testing.T) string {
	t.Helper()
	f.versions = cmp.Or(f.versions, "v1 v2")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				f.handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		running.Wait()
	})
	return l.Addr().String()
}

func (f *fakeListener) handle(conn net.Conn) {
	r := bufio.NewReader(conn)
	client := hostOf(conn.RemoteAddr())
	if f.mode != Off {
		header, ok := f.readHeader(r)
		if !ok || f.untrusted && f.mode == Strict {
			return
		}
		if header != nil && !f.untrusted && !header.Command.IsLocal() {
			client = hostOf(header.SourceAddr)
		}
	}
	if f.serverTLS == nil {
		f.serve(conn, r, client)
		return
	}
	secure := tls.Server(&bufferedConn{conn, r}, f.serverTLS)
	if secure.HandshakeContext(context.Background()) == nil {
		f.serve(secure, bufio.NewReader(secure), client)
	}
}

func hostOf(a net.Addr) string { return a.(*net.TCPAddr).IP.String() }

// bufferedConn reads what is in the reader first.
type bufferedConn struct {
	net.Conn
	reader io.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.reader.Read(p) }

// readHeader reads a PROXY header. It returns false if the connection is to be closed.
func (f *fakeListener) readHeader(r *bufio.Reader) (*proxyproto.Header, bool) {
	if _, err := r.Peek(1); err != nil {
		return nil, false
	}
	begin, _ := r.Peek(r.Buffered())
	version := ""
	switch {
	case bytes.HasPrefix(begin, proxyproto.SIGV1):
		version = "v1"
	case bytes.HasPrefix(begin, proxyproto.SIGV2):
		version = "v2"
	}
	if version == "" || !strings.Contains(f.versions, version) && f.mode == Permissive {
		return nil, f.mode == Permissive
	}
	if f.onePart && len(begin) == len(proxyproto.SIGV2) {
		return nil, false
	}
	if f.refuse != "" && bytes.Contains(begin, []byte(f.refuse)) {
		return nil, false
	}
	header, err := proxyproto.Read(r)
	return header, err == nil && strings.Contains(f.versions, version)
}

// answer is how a fake answers HTTP.
type answer struct {
	server  string // header Server; "" for none
	service bool   // as Envoy passes on what a service answers
	status  int
	shows   bool // the body has the client's address
	header  string
}

// serve is HTTP as an Envoy or another server speaks it: what is not HTTP gets 400.
func (a answer) serve(conn net.Conn, r *bufio.Reader, client string) {
	request, err := http.ReadRequest(r)
	if err != nil || strings.HasPrefix(request.Method, "PROXY") {
		if errors.Is(err, io.EOF) {
			return
		}
		fmt.Fprintf(conn, "HTTP/1.1 400 Bad Request\r\nServer: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", a.server)
		return
	}
	body := "hello"
	if a.shows {
		body = "the client is " + client + "."
	}
	fmt.Fprintf(conn, "HTTP/1.1 %d Status\r\nServer: %s\r\nContent-Length: %d\r\n%s", a.status, a.server, len(body), a.header)
	if a.service {
		fmt.Fprint(conn, "X-Envoy-Upstream-Service-Time: 1\r\n")
	}
	fmt.Fprint(conn, "\r\n"+body)
}

// envoy answers as an Envoy whose service answers 200.
var envoy = answer{server: "envoy", service: true, status: 200}.serve

// envoyBehindSender answers as an Envoy that gets a PROXY header in front of each request.
func envoyBehindSender(conn net.Conn, r *bufio.Reader, client string) {
	envoy(conn, bufio.NewReader(io.MultiReader(strings.NewReader("PROXY UNKNOWN\r\n"), r)), client)
}

// onlyHTTP closes connections that do not begin with a request.
func onlyHTTP(conn net.Conn, r *bufio.Reader, client string) {
	if begin, err := r.Peek(3); err == nil && string(begin) == "GET" {
		answer{server: "nginx/1.26.3", status: 200}.serve(conn, r, client)
	}
}

// hangs answers requests, and nothing else.
func hangs(conn net.Conn, r *bufio.Reader, client string) {
	onlyHTTP(conn, r, client)
	waiter(conn, r, client)
}

// greeter is a tcp service that speaks first, and then answers with what it gets.
var greeter = greeterWith("hello")

func greeterWith(greeting string) func(net.Conn, *bufio.Reader, string) {
	return func(conn net.Conn, r *bufio.Reader, _ string) {
		fmt.Fprint(conn, greeting+"\r\n")
		_, _ = io.Copy(conn, r)
	}
}

// httpsOnly answers as nginx does on a port for TLS: HTTP without TLS gets 400.
func httpsOnly(f fakeListener) fakeListener {
	secure, config := f.serve, f.serverTLS
	f.serverTLS = nil
	f.serve = func(conn net.Conn, r *bufio.Reader, client string) {
		const handshake = 0x16
		if begin, err := r.Peek(1); err != nil || begin[0] != handshake {
			answer{server: "nginx/1.26.3", status: 400}.serve(conn, r, client)
			return
		}
		(&fakeListener{mode: Off, serve: secure, serverTLS: config}).handle(&bufferedConn{conn, r})
	}
	return f
}

// answerer is a tcp service that answers each line with the same.
func answerer(conn net.Conn, r *bufio.Reader, _ string) {
	if _, err := r.ReadString('\n'); err == nil {
		fmt.Fprint(conn, "-ERR unknown command\r\n")
	}
	_, _ = io.Copy(io.Discard, r)
}

// waiter is a tcp service that answers nothing.
func waiter(_ net.Conn, r *bufio.Reader, _ string) { _, _ = io.Copy(io.Discard, r) }

// ends closes connections at once, as Envoy does if a tcp service has no healthy instance.
func ends(net.Conn, *bufio.Reader, string) {}

// closer closes connections when it gets something.
func closer(_ net.Conn, r *bufio.Reader, _ string) { _, _ = r.ReadByte() }

// serverTLS is a server's configuration with a certificate for any name. If a name is given, it closes handshakes
// with other names.
func serverTLS(t *testing.T, name string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if name != "" && hello.ServerName != name {
			hello.Conn.Close()
			return nil, errors.New("no such name")
		}
		return &tls.Config{Certificates: []tls.Certificate{certificate}}, nil
	}}
}

// brokenHTTP answers with what only begins like HTTP.
func brokenHTTP(conn net.Conn, r *bufio.Reader, _ string) {
	_, _ = r.ReadByte()
	fmt.Fprint(conn, "HTTP/1.1 hello\r\n\r\n")
	_, _ = io.Copy(io.Discard, r)
}
