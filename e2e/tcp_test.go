//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// tcpPort is the port of the tcp listener, and of its service.
const tcpPort = 9000

// TestTCPListener tells the lab's story for a service that does not speak HTTP:
// with PROXY protocol off the header is data for the service, as with Consul's
// own gateway. With it on, the gateway takes the header off, and the log has the
// client's address. Of two headers the second is data.
func TestTCPListener(t *testing.T) {
	t.Parallel()
	l := startMeshLab(t, consulNew, envoyNew, false)
	startTCPEcho(t, l.Service, tcpPort)
	registerService(t, serviceOptions{
		Name: "static-tcp", Port: tcpPort, Consul: l.Consul, Host: l.Service, Envoy: envoyNew, SidecarPort: 21001,
	})
	l.Consul.writeEntry(t, fmt.Sprintf(`
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [{ Port = %d, Protocol = "tcp", Services = [{ Name = "static-tcp" }] }]
`, tcpPort))
	balancer := startBalancer(t, balancerOptions{
		Host: l.Balancer, Targets: []*host{l.Gateway}, Ports: []int{tcpPort}, Header: v2Header,
	})
	usher := startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul})
	gateway := startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoyNew, GRPCAddr: usher.GRPCAddr})
	gateway.waitListener(t, tcpPort)

	v1, v2 := proxied("203.0.113.1"), proxied("203.0.113.2")
	v1.Version = 1
	plain := tcpCall{From: l.Balancer, To: l.Gateway.addr(tcpPort)}
	withV1, withV2, withBoth := plain, plain, plain
	withV1.Headers = []io.WriterTo{v1}
	withV2.Headers = []io.WriterTo{v2}
	withBoth.Headers = []io.WriterTo{v2, v1}

	l.setMode(t, "off")
	withV2.wait(t, bytesOf(t, v2))
	plain.wait(t, "")

	l.setMode(t, "strict")
	plain.waitClosed(t)
	withV2.wait(t, "")
	withV1.wait(t, "")
	withBoth.wait(t, bytesOf(t, v1))
	for _, header := range []proxyHeader{v1Header, v2Header} {
		balancer.setHeader(t, header)
		l.wantTCPClientLogged(t, gateway)
	}

	l.setMode(t, "permissive")
	plain.wait(t, "")
	withV2.wait(t, "")
	l.wantTCPClientLogged(t, gateway)
}

// tcpCall is a connection to a service that greets and then echoes.
type tcpCall struct {
	From    *host
	To      string
	Source  netip.AddrPort // zero for the host's choice
	Headers []io.WriterTo
	TLS     *tls.Config // nil for plain text
}

const (
	tcpGreeting = "hello world\n"
	// tcpWord is longer than the start of a PROXY header: with less, Envoy waits
	// for more before it decides that there is none.
	tcpWord = "a word of more than sixteen bytes\n"
)

// do sends the headers and a word. It gives what came back between the greeting
// and the word, which is what the service got before the word, and the client's
// end of the connection.
func (c tcpCall) do(ctx context.Context) (data, client string, err error) {
	conn, err := c.From.dialFrom(ctx, c.Source, c.To)
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return "", "", err
	}
	conn, sendErr := c.send(conn)
	var got []byte
	for !bytes.HasSuffix(got, []byte(tcpWord)) {
		chunk := make([]byte, 1024)
		n, err := conn.Read(chunk)
		if err != nil {
			return string(got), "", errors.Join(err, sendErr)
		}
		got = append(got, chunk[:n]...)
	}
	data, greeted := strings.CutPrefix(strings.TrimSuffix(string(got), tcpWord), tcpGreeting)
	if !greeted {
		return data, "", fmt.Errorf("got %q, want it to begin with %q", got, tcpGreeting)
	}
	return data, conn.LocalAddr().String(), nil
}

// send writes the headers and the word, and gives the connection on which the
// answer comes.
func (c tcpCall) send(conn net.Conn) (net.Conn, error) {
	for _, h := range c.Headers {
		if _, err := h.WriteTo(conn); err != nil {
			return conn, err
		}
	}
	if c.TLS != nil {
		conn = tls.Client(conn, c.TLS)
	}
	_, err := io.WriteString(conn, tcpWord)
	return conn, err
}

// wait waits until the service gets the data before the word, and no more.
func (c tcpCall) wait(t *testing.T, data string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s -> %s: the service gets %q before the word", c.From.Name, c.To, data), changeDeadline, func() error {
		got, _, err := c.do(t.Context())
		if err == nil && got != data {
			err = fmt.Errorf("it gets %q", got)
		}
		return err
	})
}

// waitClosed waits until the connection is closed without a byte.
func (c tcpCall) waitClosed(t *testing.T) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s -> %s is closed", c.From.Name, c.To), changeDeadline, func() error {
		got, _, err := c.do(t.Context())
		if err == nil || got != "" {
			return fmt.Errorf("got %q", got)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New("it is still open")
		}
		return nil
	})
}

// wantTCPClientLogged makes the client's connection through the balancer. The
// log has the client's end of it, and the balancer's beside.
func (l *meshLab) wantTCPClientLogged(t *testing.T, gateway *envoy) {
	t.Helper()
	data, client, err := tcpCall{From: l.Client, To: l.Balancer.addr(tcpPort)}.do(t.Context())
	if err != nil || data != "" {
		t.Fatalf("the service got %q before the word (%v), want nothing", data, err)
	}
	entry := gateway.Log.wait(t, map[string]string{"downstream_remote_address": client})
	if got := entry.ip(t, "downstream_direct_remote_address"); got != balancerIP {
		t.Errorf("access log has %s for the balancer, want %s", got, balancerIP)
	}
}

// bytesOf is a header as it goes over the wire.
func bytesOf(t *testing.T, h *proxyproto.Header) string {
	t.Helper()
	var b strings.Builder
	if _, err := h.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
