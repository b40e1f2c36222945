//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// proxyHeader is what a balancer writes in front of every connection, in
// HAProxy's words.
type proxyHeader string

const (
	noHeader    proxyHeader = "none"
	v1Header    proxyHeader = "send-proxy"
	v2Header    proxyHeader = "send-proxy-v2"
	v2SSLHeader proxyHeader = "send-proxy-v2-ssl" // with a TLV about the client's TLS
)

var proxyHeaders = []proxyHeader{noHeader, v1Header, v2Header, v2SSLHeader}

// balancerOptions describe the network load balancer.
type balancerOptions struct {
	Host    *host
	Targets []*host
	Ports   []int // the same at the balancer and at its targets
	Header  proxyHeader
	// Certificate is a file with a certificate and its key, for a balancer that
	// ends the clients' TLS; "" for one that leaves the bytes alone.
	Certificate string
}

// balancer is a running HAProxy that balances TCP connections.
type balancer struct {
	*process
	options balancerOptions
	socket  string // HAProxy's admin socket
}

func startBalancer(t *testing.T, o balancerOptions) *balancer {
	t.Helper()
	dir := newDir(t)
	b := &balancer{options: o, socket: filepath.Join(dir, "admin.sock")}
	b.process = startProcess(t, command{
		Name: "haproxy", Path: tool(t, "haproxy", "haproxy"), Host: o.Host,
		Args: []string{"-db", "-f", writeFile(t, dir, "haproxy.cfg", b.config())},
	})
	eventually(t, "haproxy answers on its admin socket", startDeadline, func() error {
		if err := b.Alive(); err != nil {
			return err
		}
		_, err := b.command("show info")
		return err
	})
	return b
}

// config has, for each port and target, one server for each kind of header, of
// which those with the wanted one are on. So a switch of the header disturbs no
// connection.
func (b *balancer) config() string {
	var c strings.Builder
	fmt.Fprintf(&c, `global
  stats socket %s level admin
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
`, b.socket)
	for _, port := range b.options.Ports {
		fmt.Fprintf(&c, "listen port-%d\n  bind %s%s\n", port, b.options.Host.addr(port), b.bindTLS())
		for i, target := range b.options.Targets {
			for _, header := range proxyHeaders {
				fmt.Fprintf(&c, "  server %s-%d %s %s\n", header, i, target.addr(port), b.flags(header))
			}
		}
	}
	return c.String()
}

func (b *balancer) bindTLS() string {
	if b.options.Certificate == "" {
		return ""
	}
	return " ssl crt " + b.options.Certificate
}

func (b *balancer) flags(header proxyHeader) string {
	var flags []string
	if header != noHeader {
		flags = append(flags, string(header))
	}
	if header != b.options.Header {
		flags = append(flags, "disabled")
	}
	return strings.Join(flags, " ")
}

// setHeader makes new connections begin with another header. Open connections
// stay as they are.
func (b *balancer) setHeader(t *testing.T, header proxyHeader) {
	t.Helper()
	b.setState(t, header, "ready")
	if header != b.options.Header {
		b.setState(t, b.options.Header, "maint")
	}
	b.options.Header = header
}

func (b *balancer) setState(t *testing.T, header proxyHeader, state string) {
	t.Helper()
	for _, port := range b.options.Ports {
		for i := range b.options.Targets {
			answer, err := b.command(fmt.Sprintf("set server port-%d/%s-%d state %s", port, header, i, state))
			if err != nil || strings.TrimSpace(answer) != "" {
				t.Fatalf("haproxy: server %s-%d %s: %v %s", header, i, state, err, answer)
			}
		}
	}
}

// command asks HAProxy on its admin socket.
func (b *balancer) command(line string) (string, error) {
	conn, err := net.DialTimeout("unix", b.socket, time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}
