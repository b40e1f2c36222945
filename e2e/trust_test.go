//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

// vpce is the id of a VPC endpoint.
const vpce = "vpce-08d2bf15fac5001c9"

// fromEndpoint is the PROXY header of a connection that came by the endpoint.
func fromEndpoint(t *testing.T, client string) *proxyproto.Header {
	t.Helper()
	h := proxied(client)
	if err := h.SetTLVs([]proxyproto.TLV{{Type: 0xEA, Value: append([]byte{1}, vpce...)}}); err != nil {
		t.Fatal(err)
	}
	return h
}

// TestWhoMaySayWhoTheClientIs has a gateway that believes its balancer, and
// somebody else who connects to it and claims to be another.
func TestWhoMaySayWhoTheClientIs(t *testing.T) {
	onBothEnvoys(t, func(t *testing.T, envoy string) {
		l := startMeshLab(t, consulNew, envoy, false)
		settings := func(mode string) string {
			return fmt.Sprintf(`
usher {
  proxy_protocol {
    mode          = %q
    trusted_cidrs = [%q]
    tlvs          = [{ type = "aws_vpce_id", name = "vpce", header = "x-vpce" }]
  }
  access_log { rejected_per_second = "any" }
}
`, mode, balancerIP)
		}
		usher := startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul, Config: settings("permissive")})
		gateway := startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})
		l.HAProxy.setHeader(t, v2Header)
		l.wantClientsAddress(t, gateway)
		l.wantEndpointTold(t, gateway)
		l.wantClaimUnused(t, gateway)

		writeFile(t, filepath.Dir(usher.ConfigFile), filepath.Base(usher.ConfigFile), settings("strict"))
		l.waitMode(t, l.Gateway, "strict")
		l.wantClientsAddress(t, gateway)
		l.wantStrangersClosed(t, gateway)
	})
}

// wantEndpointTold wants the log and the service to be told of the endpoint, and
// not by the client.
func (l *meshLab) wantEndpointTold(t *testing.T, gateway *envoy) {
	t.Helper()
	for want, header := range map[string]*proxyproto.Header{vpce: fromEndpoint(t, clientIP), "": proxied(clientIP)} {
		request := call{
			From: l.Balancer, To: l.Gateway.addr(8080), Path: newPath(), Proxy: header,
			Header: http.Header{"X-Vpce": {"vpce-forged"}},
		}
		request.must(t).wantHello(t)
		if got := strings.Join(l.Echo.request(t, request.Path).Header.Values("X-Vpce"), ","); got != want {
			t.Errorf("the service is told of the endpoint %q, want %q", got, want)
		}
		if got := gateway.Log.request(t, request.Path).text("vpce"); got != want {
			t.Errorf("access log has the endpoint %q, want %q", got, want)
		}
	}
}

// wantClaimUnused connects from the client's host, past the balancer, with and
// without a header that names another.
func (l *meshLab) wantClaimUnused(t *testing.T, gateway *envoy) {
	t.Helper()
	for _, claim := range []io.WriterTo{nil, fromEndpoint(t, "203.0.113.99")} {
		request := call{
			From: l.Client, To: l.Gateway.addr(8080), Path: newPath(),
			Header: http.Header{"X-Forwarded-For": {"6.6.6.6"}, "X-Forwarded-Proto": {"https"}, "X-Vpce": {"vpce-forged"}},
		}
		if claim != nil {
			request.Proxy = claim
		}
		request.must(t).wantHello(t)
		entry := gateway.Log.request(t, request.Path)
		for _, field := range []string{"downstream_remote_address", "downstream_direct_remote_address"} {
			if got := entry.ip(t, field); got != clientIP {
				t.Errorf("access log has %s for %s of one that claims %v, want %s", got, field, claim, clientIP)
			}
		}
		if got := entry.text("vpce"); got != "" {
			t.Errorf("access log has the endpoint %q of one that is not believed", got)
		}
		seen := l.Echo.request(t, request.Path).Header
		for name, want := range map[string]string{"X-Forwarded-For": clientIP, "X-Envoy-External-Address": clientIP, "X-Forwarded-Proto": "http", "X-Vpce": ""} {
			if got := strings.Join(seen.Values(name), ","); got != want {
				t.Errorf("the service got %s %q of one that claims %v, want %q", name, got, claim, want)
			}
		}
	}
}

// wantStrangersClosed wants connections closed, and a line in the log with who
// it was: of one that is not trusted, and of the balancer without a header.
func (l *meshLab) wantStrangersClosed(t *testing.T, gateway *envoy) {
	t.Helper()
	for _, closed := range []struct {
		name   string
		call   call
		fields map[string]string
	}{
		{"a stranger", call{From: l.Client, To: l.Gateway.addr(8080), Path: "/", Proxy: proxied("203.0.113.99")}, map[string]string{"response_flags": "NR"}},
		{"the balancer without a header", call{From: l.Balancer, To: l.Gateway.addr(8080), Path: "/"}, map[string]string{"response_flags": "-", "path": ""}},
	} {
		if got := closed.call.status(t); got != 0 {
			t.Errorf("%s is answered %d, want the connection closed", closed.name, got)
		}
		entry := gateway.Log.wait(t, closed.fields)
		if got, want := entry.ip(t, "downstream_remote_address"), closed.call.From.IP.String(); got != want {
			t.Errorf("%s is logged as %s, want %s", closed.name, got, want)
		}
	}
}

// TestApacheGetsAPROXYHeader has an Apache that understands PROXY protocol in
// the mesh, behind a tcp listener, which tells it of the client.
func TestApacheGetsAPROXYHeader(t *testing.T) {
	onBothEnvoys(t, func(t *testing.T, envoy string) {
		l := startMeshLab(t, consulNew, envoy, false)
		apache := startApache(t, l.Service, tcpPort, proxyProtocol)
		registerService(t, serviceOptions{
			Name: "static-tcp", Port: tcpPort, Consul: l.Consul, Host: l.Service, Envoy: envoy, SidecarPort: 21001,
		})
		l.Consul.writeEntry(t, fmt.Sprintf(`
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [{ Port = %d, Protocol = "tcp", Services = [{ Name = "static-tcp" }] }]
`, tcpPort))
		startBalancer(t, balancerOptions{Host: l.Balancer, Targets: []*host{l.Gateway}, Ports: []int{tcpPort}, Header: v2Header})
		settings := func(mode, upstream string) string {
			return fmt.Sprintf("usher { proxy_protocol { mode = %q upstream = %q trusted_cidrs = [%q] } }", mode, upstream, balancerIP)
		}
		usher := startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul, Config: settings("strict", "v2")})
		gateway := startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})
		gateway.waitListener(t, tcpPort)

		throughBalancer := call{From: l.Client, To: l.Balancer.addr(tcpPort)}
		waitStatus(t, throughBalancer, http.StatusOK)
		apache.wantClient(t, throughBalancer, clientIP)

		// Another Envoy takes the place of this one.
		gateway = l.exchange(t, gateway, gatewayOptions{
			Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr, AdminPort: 19001,
		})
		apache.wantClient(t, throughBalancer, clientIP)

		// Settings that are refused leave everything as it is.
		writeFile(t, filepath.Dir(usher.ConfigFile), filepath.Base(usher.ConfigFile), strings.Replace(settings("strict", "none"), "mode", `server_speaks_first = "yes" mode`, 1))
		usher.waitProblems(t)
		apache.wantClient(t, throughBalancer, clientIP)

		// A stranger is told of as itself, if it claims nothing else.
		writeFile(t, filepath.Dir(usher.ConfigFile), filepath.Base(usher.ConfigFile), settings("permissive", "v1"))
		stranger := call{From: l.Client, To: l.Gateway.addr(tcpPort)}
		waitStatus(t, stranger, http.StatusOK)
		apache.wantClient(t, stranger, clientIP)
		apache.wantClient(t, throughBalancer, clientIP)
		stranger.Proxy = proxied("203.0.113.99")
		if got := stranger.status(t); got != 0 {
			t.Errorf("a stranger that claims to be another is answered %d, want the connection closed", got)
		}
		gateway.wantDocumentedCounters(t)
	})
}

// exchange starts one more Envoy for the gateway and ends the old one, as the
// README has it, while connections are made.
func (l *meshLab) exchange(t *testing.T, old *envoy, next gatewayOptions) *envoy {
	t.Helper()
	l.Gateway.shell(t, "sysctl -w net.ipv4.tcp_migrate_req=1")
	load := startLoad(t, call{From: l.Client, To: l.Balancer.addr(tcpPort)})
	now := startGateway(t, next)
	now.waitListener(t, tcpPort)
	load.waitMore(t)
	l.Gateway.shell(t, fmt.Sprintf("curl -sf -X POST http://127.0.0.1:%d/drain_listeners", old.AdminPort))
	eventually(t, old.Name+" has no connection any more", startDeadline, func() error {
		stats, err := old.admin("/stats?filter=worker_.*downstream_cx_active")
		if err == nil && (stats == "" || openConnections.MatchString(stats)) {
			err = errors.New(stats)
		}
		return err
	})
	old.Stop(t)
	load.waitMore(t)
	load.wantNoFailures(t)
	return now
}

// wantDocumentedCounters wants Envoy to have every counter that the
// documentation asks for, and to have counted connections with a header and
// without one.
func (e *envoy) wantDocumentedCounters(t *testing.T) {
	t.Helper()
	counters, err := e.admin("/stats/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	documented := regexp.MustCompile(`\benvoy_(proxy_proto|http|tcp|listener)_[a-z_]+`).FindAllString(readFile(t, "../docs/client-address.md"), -1)
	if len(documented) < 8 {
		t.Errorf("docs/client-address.md asks for %v only", documented)
	}
	for _, name := range documented {
		if label := strings.HasSuffix(name, "_prefix"); !label && !strings.Contains(counters, "\n"+name+"{") {
			t.Errorf("docs/client-address.md asks for %s, which Envoy does not have", name)
		}
	}
	const listener = `envoy_proxy_protocol_prefix="static-tcp_198_18_0_20_9000"`
	for _, counter := range []string{`proxy_proto_not_found_allowed{` + listener + `}`, `proxy_proto_found{envoy_proxy_protocol_version="2",` + listener + `}`} {
		name, labels, _ := strings.Cut(strings.TrimSuffix(counter, "}"), "{")
		counted := false
		for line := range strings.Lines(counters) {
			fields := strings.Fields(line)
			if !strings.HasPrefix(line, "envoy_"+name+"{") || fields[len(fields)-1] == "0" {
				continue
			}
			counted = counted || !slices.ContainsFunc(strings.Split(labels, ","), func(label string) bool { return !strings.Contains(line, label) })
		}
		if !counted {
			t.Errorf("Envoy has not counted %s", counter)
		}
	}
}

// waitProblems waits until Usher has something to mend.
func (u *usher) waitProblems(t *testing.T) {
	t.Helper()
	eventually(t, "usher has a problem", changeDeadline, func() error {
		if u.configProblems(t) == 0 {
			return errors.New("it has none")
		}
		return nil
	})
}

// wantClient wants Apache to log a client for a call.
func (a *apache) wantClient(t *testing.T, c call, client string) {
	t.Helper()
	c.Path = newPath()
	c.must(t).wantHello(t)
	if got := a.client(t, c.Path); got != client {
		t.Errorf("Apache's log has %s for the client, want %s", got, client)
	}
}
