//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// vpce is the id of a VPC endpoint.
const vpce = "vpce-08d2bf15fac5001c9"

// fromEndpoint is the PROXY header of a connection that came by the endpoint.
func fromEndpoint(t *testing.T, client string) *proxyproto.Header {
	t.Helper()
	h := lab.ProxyHeaderFor(client)
	if err := h.SetTLVs([]proxyproto.TLV{{Type: 0xEA, Value: append([]byte{1}, vpce...)}}); err != nil {
		t.Fatal(err)
	}
	return h
}

// TestOnlyTrustedAddressesNameTheClient has a gateway that trusts its balancer,
// and other addresses that connect and claim to be another client.
func TestOnlyTrustedAddressesNameTheClient(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := lab.Start(t, lab.ConsulNew, envoy, false)
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
`, mode, lab.BalancerIP)
		}
		usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: settings("permissive")})
		gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})
		l.HAProxy.SetHeader(t, lab.SendV2)
		l.WantClientAddress(t, gateway)
		wantEndpointLogged(t, l, gateway)
		wantClaimUnused(t, l, gateway)

		usher.WriteConfig(t, settings("strict"))
		l.WaitMode(t, l.Gateway, "strict")
		l.WantClientAddress(t, gateway)
		wantUntrustedClosed(t, l, gateway)
	})
}

// wantEndpointLogged wants the log and the service to get the endpoint, and
// not by the client.
func wantEndpointLogged(t *testing.T, l *lab.Lab, gateway *lab.Envoy) {
	t.Helper()
	for want, header := range map[string]*proxyproto.Header{vpce: fromEndpoint(t, lab.ClientIP), "": lab.ProxyHeaderFor(lab.ClientIP)} {
		request := lab.Request{
			From: l.Balancer, To: l.Gateway.Addr(8080), Path: lab.NewPath(), Proxy: header,
			Header: http.Header{"X-Vpce": {"vpce-forged"}},
		}
		request.MustDo(t).WantHello(t)
		if got := strings.Join(l.Echo.Received(t, request.Path).Header.Values("X-Vpce"), ","); got != want {
			t.Errorf("the service gets the endpoint %q, want %q", got, want)
		}
		if got := gateway.Log.WaitRequest(t, request.Path).Text("vpce"); got != want {
			t.Errorf("access log has the endpoint %q, want %q", got, want)
		}
	}
}

// wantClaimUnused connects from the client's host, past the balancer, with and
// without a header that names another.
func wantClaimUnused(t *testing.T, l *lab.Lab, gateway *lab.Envoy) {
	t.Helper()
	for _, claim := range []io.WriterTo{nil, fromEndpoint(t, "203.0.113.99")} {
		request := lab.Request{
			From: l.Client, To: l.Gateway.Addr(8080), Path: lab.NewPath(),
			Header: http.Header{"X-Forwarded-For": {"6.6.6.6"}, "X-Forwarded-Proto": {"https"}, "X-Vpce": {"vpce-forged"}},
		}
		if claim != nil {
			request.Proxy = claim
		}
		request.MustDo(t).WantHello(t)
		entry := gateway.Log.WaitRequest(t, request.Path)
		for _, field := range []string{"downstream_remote_address", "downstream_direct_remote_address"} {
			if got := entry.IP(t, field); got != lab.ClientIP {
				t.Errorf("access log has %s for %s of one that claims %v, want %s", got, field, claim, lab.ClientIP)
			}
		}
		if got := entry.Text("vpce"); got != "" {
			t.Errorf("access log has the endpoint %q of one that is not believed", got)
		}
		seen := l.Echo.Received(t, request.Path).Header
		for name, want := range map[string]string{"X-Forwarded-For": lab.ClientIP, "X-Envoy-External-Address": lab.ClientIP, "X-Forwarded-Proto": "http", "X-Vpce": ""} {
			if got := strings.Join(seen.Values(name), ","); got != want {
				t.Errorf("the service got %s %q of one that claims %v, want %q", name, got, claim, want)
			}
		}
	}
}

// wantUntrustedClosed wants connections closed, and a line in the log with who
// it was: of one that is not trusted, and of the balancer without a header.
func wantUntrustedClosed(t *testing.T, l *lab.Lab, gateway *lab.Envoy) {
	t.Helper()
	for _, closed := range []struct {
		name   string
		call   lab.Request
		fields map[string]string
	}{
		{"an untrusted address", lab.Request{From: l.Client, To: l.Gateway.Addr(8080), Path: "/", Proxy: lab.ProxyHeaderFor("203.0.113.99")}, map[string]string{"response_flags": "NR"}},
		{"the balancer without a header", lab.Request{From: l.Balancer, To: l.Gateway.Addr(8080), Path: "/"}, map[string]string{"response_flags": "-", "path": ""}},
	} {
		if got := closed.call.StatusCode(t); got != 0 {
			t.Errorf("%s is answered %d, want the connection closed", closed.name, got)
		}
		entry := gateway.Log.Wait(t, closed.fields)
		if got, want := entry.IP(t, "downstream_remote_address"), closed.call.From.IP.String(); got != want {
			t.Errorf("%s is logged as %s, want %s", closed.name, got, want)
		}
	}
}

// TestApacheGetsAPROXYHeader has an Apache that understands PROXY protocol in
// the mesh, behind a tcp listener, which sends it the client's address.
func TestApacheGetsAPROXYHeader(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := lab.Start(t, lab.ConsulNew, envoy, false)
		apache := lab.StartApache(t, l.Service, lab.TCPPort, lab.RemoteIPProxyProtocol)
		lab.RegisterService(t, lab.ServiceOptions{
			Name: "static-tcp", Port: lab.TCPPort, Consul: l.Consul, Host: l.Service, Envoy: envoy, SidecarPort: 21001,
		})
		l.Consul.WriteEntry(t, fmt.Sprintf(`
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [{ Port = %d, Protocol = "tcp", Services = [{ Name = "static-tcp" }] }]
`, lab.TCPPort))
		lab.StartHAProxy(t, lab.HAProxyOptions{Host: l.Balancer, Targets: []*lab.Host{l.Gateway}, Ports: []int{lab.TCPPort}, Header: lab.SendV2})
		settings := func(mode, upstream string) string {
			return fmt.Sprintf("usher { proxy_protocol { mode = %q upstream = %q trusted_cidrs = [%q] } }", mode, upstream, lab.BalancerIP)
		}
		usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: settings("strict", "v2")})
		gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})
		gateway.WaitListener(t, lab.TCPPort)

		throughBalancer := lab.Request{From: l.Client, To: l.Balancer.Addr(lab.TCPPort)}
		lab.WaitStatus(t, throughBalancer, http.StatusOK)
		wantApacheClient(t, apache, throughBalancer, lab.ClientIP)

		// Another Envoy takes the place of this one.
		gateway = replaceEnvoy(t, l, gateway, lab.GatewayOptions{
			Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr, AdminPort: 19001,
		})
		wantApacheClient(t, apache, throughBalancer, lab.ClientIP)

		// Settings that are refused leave everything as it is.
		usher.WriteConfig(t, strings.Replace(settings("strict", "none"), "mode", `server_speaks_first = "yes" mode`, 1))
		waitProblemCount(t, usher)
		wantApacheClient(t, apache, throughBalancer, lab.ClientIP)

		// An untrusted address is logged as itself, if it claims nothing else.
		usher.WriteConfig(t, settings("permissive", "v1"))
		untrusted := lab.Request{From: l.Client, To: l.Gateway.Addr(lab.TCPPort)}
		lab.WaitStatus(t, untrusted, http.StatusOK)
		wantApacheClient(t, apache, untrusted, lab.ClientIP)
		wantApacheClient(t, apache, throughBalancer, lab.ClientIP)
		untrusted.Proxy = lab.ProxyHeaderFor("203.0.113.99")
		if got := untrusted.StatusCode(t); got != 0 {
			t.Errorf("an untrusted address that claims to be another is answered %d, want the connection closed", got)
		}
		wantDocumentedCounters(t, gateway)
	})
}

// replaceEnvoy lets another Envoy take the place of a gateway's, as for an upgrade, while connections are made.
func replaceEnvoy(t *testing.T, l *lab.Lab, old *lab.Envoy, next lab.GatewayOptions) *lab.Envoy {
	t.Helper()
	l.Gateway.Shell(t, "sysctl -w net.ipv4.tcp_migrate_req=1")
	load := lab.StartLoad(t, lab.Request{From: l.Client, To: l.Balancer.Addr(lab.TCPPort)})
	run := testprocess.Start(t, cutoverCommand(t, l, "usher cutover"))
	run.WaitOutput(t, "start the new Envoy now")
	now := lab.StartGateway(t, next)
	if code := run.Wait(t); code != 0 {
		t.Errorf("usher cutover: exit status %d: %s", code, run.Output(t))
	}
	old.Stop(t)
	load.WaitMore(t)
	load.WantNoFailures(t)
	return now
}

// wantDocumentedCounters wants Envoy to have every counter that the
// documentation asks for, and to have counted connections with a header and
// without one.
func wantDocumentedCounters(t *testing.T, e *lab.Envoy) {
	t.Helper()
	counters, err := e.Admin("/stats/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	documented := regexp.MustCompile(`\benvoy_(proxy_proto|http|tcp|listener)_[a-z_]+`).FindAllString(testprocess.ReadFile(t, "../docs/client-address.md"), -1)
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

// waitProblemCount waits until Usher has that many problems.
func waitProblemCount(t *testing.T, u *lab.Usher) {
	t.Helper()
	testprocess.Eventually(t, "usher has a problem", testprocess.ChangeDeadline, func() error {
		if u.ConfigProblems(t) == 0 {
			return errors.New("it has none")
		}
		return nil
	})
}

// wantApacheClient wants Apache to log a client for a call.
func wantApacheClient(t *testing.T, a *lab.Apache, c lab.Request, client string) {
	t.Helper()
	c.Path = lab.NewPath()
	c.MustDo(t).WantHello(t)
	if got := a.WaitClient(t, c.Path); got != client {
		t.Errorf("Apache's log has %s for the client, want %s", got, client)
	}
}
