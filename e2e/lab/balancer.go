//go:build e2e

package lab

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// ProxyHeader is what a balancer writes in front of every connection, as
// HAProxy's configuration has it.
type ProxyHeader string

// The headers.
const (
	SendNone  ProxyHeader = "none"
	SendV1    ProxyHeader = "send-proxy"
	SendV2    ProxyHeader = "send-proxy-v2"
	SendV2SSL ProxyHeader = "send-proxy-v2-ssl" // with a TLV about the client's TLS
	// SendV2SSLCN is SendV2SSL with the common name in the client's certificate.
	SendV2SSLCN ProxyHeader = "send-proxy-v2-ssl-cn"
)

var proxyHeaders = []ProxyHeader{SendNone, SendV1, SendV2, SendV2SSL, SendV2SSLCN}

// HAProxyOptions describe the network load balancer.
type HAProxyOptions struct {
	Host    *Host
	Targets []*Host
	Ports   []int // the same at the balancer and at its targets
	Header  ProxyHeader
	// Certificate is a file with a certificate and its key, for a balancer that
	// ends the clients' TLS; "" for one that leaves the bytes alone.
	Certificate string
	// ClientCA is a file with the authority of the clients' certificates, which clients need not have; "" for none.
	// Connections with a certificate of another authority are served, too.
	ClientCA string
	// ForwardFor makes it balance requests: it adds the client's address to X-Forwarded-For.
	ForwardFor bool
	// NoRetries ends a client's connection when a target refuses one, instead of
	// trying again three times.
	NoRetries bool
}

// HAProxy is a running HAProxy that balances connections, or requests.
type HAProxy struct {
	*testprocess.Process
	options HAProxyOptions
	socket  string // HAProxy's admin socket
}

// StartHAProxy starts HAProxy and waits for its admin socket.
func StartHAProxy(t *testing.T, o HAProxyOptions) *HAProxy {
	t.Helper()
	dir := testprocess.NewDir(t)
	b := &HAProxy{options: o, socket: filepath.Join(dir, "admin.sock")}
	b.Process = testprocess.Start(t, testprocess.Command{
		Name: "haproxy", Path: testprocess.Debian(t, "haproxy", "haproxy"), Host: o.Host,
		Args: []string{"-db", "-f", WriteFile(t, dir, "haproxy.cfg", b.config())},
	})
	testprocess.Eventually(t, "haproxy answers on its admin socket", testprocess.StartDeadline, func() error {
		if err := b.Alive(); err != nil {
			return err
		}
		_, err := b.command("show info")
		return err
	})
	return b
}

// config has, for each port and target, one server for each type of header. Those with the
// wanted one are enabled, so that a change of the header ends no connection.
func (b *HAProxy) config() string {
	var c strings.Builder
	fmt.Fprintf(&c, `global
  stats socket %s level admin
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
`, b.socket)
	if b.options.NoRetries {
		fmt.Fprintln(&c, "  retries 0")
	}
	for _, port := range b.options.Ports {
		fmt.Fprintf(&c, "listen port-%d\n  bind %s%s\n", port, b.options.Host.Addr(port), b.bindTLS())
		if b.options.ForwardFor {
			fmt.Fprintln(&c, "  mode http\n  option forwardfor")
		}
		for i, target := range b.options.Targets {
			for _, header := range proxyHeaders {
				fmt.Fprintf(&c, "  server %s-%d %s %s\n", header, i, target.Addr(port), b.flags(header))
			}
		}
	}
	return c.String()
}

func (b *HAProxy) bindTLS() string {
	if b.options.Certificate == "" {
		return ""
	}
	text := " ssl crt " + b.options.Certificate
	if b.options.ClientCA != "" {
		text += " ca-file " + b.options.ClientCA + " verify optional crt-ignore-err all ca-ignore-err all"
	}
	return text
}

func (b *HAProxy) flags(header ProxyHeader) string {
	var flags []string
	if header != SendNone {
		flags = append(flags, string(header))
	}
	if header != b.options.Header {
		flags = append(flags, "disabled")
	}
	return strings.Join(flags, " ")
}

// SetHeader changes the header of new connections.
func (b *HAProxy) SetHeader(t *testing.T, header ProxyHeader) {
	t.Helper()
	b.setState(t, header, "ready")
	if header != b.options.Header {
		b.setState(t, b.options.Header, "maint")
	}
	b.options.Header = header
}

func (b *HAProxy) setState(t *testing.T, header ProxyHeader, state string) {
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
func (b *HAProxy) command(line string) (string, error) { return AskHAProxy(b.socket, line) }

// AskHAProxy asks an HAProxy on its admin socket.
func AskHAProxy(socket, line string) (string, error) {
	conn, err := net.DialTimeout("unix", socket, time.Second)
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

// StartNginx starts an nginx that balances TCP connections from the host's ports
// to those of the target, and begins each with a PROXY header, which nginx
// writes in version 1 only.
func StartNginx(t *testing.T, h, target *Host, ports ...int) {
	t.Helper()
	dir := testprocess.NewDir(t)
	var servers strings.Builder
	for _, port := range ports {
		fmt.Fprintf(&servers, "  server { listen %s; proxy_pass %s; proxy_protocol on; }\n", h.Addr(port), target.Addr(port))
	}
	runNginx(t, h, dir, fmt.Sprintf("load_module %s;", testprocess.Binary(t, "/usr/lib/nginx/modules/ngx_stream_module.so", "make tools")),
		"stream {\n"+servers.String()+"}\n")
}

// StartNginxHTTP starts an nginx that answers HTTP requests itself, with the lines of its servers.
func StartNginxHTTP(t *testing.T, h *Host, servers string) {
	t.Helper()
	runNginx(t, h, testprocess.NewDir(t), "", "http {\n  access_log off;\n"+servers+"}\n")
}

// runNginx starts an nginx with the beginning and the end of its configuration, and waits until it has bound its ports.
func runNginx(t *testing.T, h *Host, dir, begin, end string) {
	t.Helper()
	config := begin + fmt.Sprintf(`
daemon off;
user root;
pid %s/pid;
error_log stderr notice;
events {}
`, dir) + end
	p := testprocess.Start(t, testprocess.Command{
		Name: "nginx", Path: testprocess.Debian(t, "nginx", "nginx-core"), Host: h,
		Args: []string{"-e", "stderr", "-p", dir, "-c", WriteFile(t, dir, "nginx.conf", config)},
	})
	p.WaitOutput(t, "start worker process ") // it has bound its ports by then
}
