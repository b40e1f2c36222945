//go:build e2e

package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// probed is what the tests read of the output of `usher probe -o json`.
type probed struct {
	Results []struct {
		Conclusion struct {
			Finding, Mode, Trust string
			TLS, HTTP, Envoy     bool
			Server               string
			Versions, Exceptions []string
		}
		Meaning struct{ Headline, Setting string }
	}
}

// runProbe runs usher probe on a host.
func runProbe(t *testing.T, from *lab.Host, args ...string) testprocess.Result {
	t.Helper()
	return testprocess.Run(t, testprocess.Command{
		Name: "usher probe", Path: testprocess.Usher(t), Args: append([]string{"probe"}, args...), Host: from,
	}, "")
}

// probeJSON runs usher probe -o json, and returns what it prints and its exit status.
func probeJSON(t *testing.T, from *lab.Host, args ...string) (probed, int) {
	t.Helper()
	var p probed
	end := runProbe(t, from, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(end.Stdout), &p); err != nil || len(p.Results) != 1 {
		t.Errorf("usher probe %q: %v: %s%s", args, err, end.Stdout, end.Stderr)
	}
	return p, end.Code
}

// words are the conclusion of a probe in one line.
func (p *probed) words() string {
	if len(p.Results) != 1 {
		return "no result"
	}
	c := p.Results[0].Conclusion
	words := append([]string{c.Finding}, c.Versions...)
	for _, said := range []struct {
		word string
		is   bool
	}{{"TLS", c.TLS}, {"Envoy", c.Envoy}} {
		if said.is {
			words = append(words, said.word)
		}
	}
	if c.Server != "" {
		product, _, _ := strings.Cut(c.Server, "/")
		words = append(words, product)
	}
	if c.Trust != "" {
		words = append(words, c.Trust)
	}
	return strings.Join(append(words, c.Exceptions...), ", ")
}

// probeCase is a probe and its conclusion.
type probeCase struct {
	name string
	from *lab.Host
	args []string
	want string
}

// runProbes makes the probes, several at a time.
func runProbes(t *testing.T, cases []probeCase) {
	t.Helper()
	var running sync.WaitGroup
	slots := make(chan struct{}, 12) // they mostly wait
	for _, c := range cases {
		running.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			p, _ := probeJSON(t, c.from, c.args...)
			if got := p.words(); got != c.want {
				t.Errorf("%s: got %q, want %q; the probe prints:\n%s", c.name, got, c.want, runProbe(t, c.from, c.args...).Stdout)
			}
		})
	}
	running.Wait()
}

// probeListener is a listener, and what a probe concludes on a host that trusted_cidrs has or lacks.
type probeListener struct {
	protocol  string
	settings  lab.ListenerSettings
	want      string
	untrusted string // "" is want
}

// TestProbeTellsWhatAListenerIs probes http, https and tcp listeners of all modes on both Envoys, over IPv4 and IPv6.
func TestProbeTellsWhatAListenerIs(t *testing.T) {
	t.Parallel()
	const notForThisHost = "strict, not for this host"
	table := []probeListener{
		{"http", lab.ListenerSettings{Mode: "off"}, "off, Envoy", ""},
		{"http", lab.ListenerSettings{Mode: "permissive"}, "permissive, v1, v2, Envoy, trusted", ""},
		{"http", lab.ListenerSettings{Mode: "permissive", TrustedCIDRs: true}, "permissive, v1, v2, Envoy, trusted", "permissive, v1, v2, Envoy, ignored"},
		{"http", lab.ListenerSettings{Mode: "permissive", Versions: "v1"}, "permissive, v1, Envoy, trusted", ""},
		{"http", lab.ListenerSettings{Mode: "permissive", Versions: "v2"}, "permissive, v2, Envoy, trusted", ""},
		{"http", lab.ListenerSettings{Mode: "strict"}, "strict, v1, v2, Envoy, trusted", ""},
		{"http", lab.ListenerSettings{Mode: "strict", Versions: "v1"}, "strict, v1, Envoy, trusted", ""},
		{"http", lab.ListenerSettings{Mode: "strict", Versions: "v2"}, "strict, v2, Envoy, trusted", ""},
		{"http", lab.ListenerSettings{Mode: "strict", TrustedCIDRs: true}, "strict, v1, v2, Envoy, trusted", notForThisHost},
		{"http", lab.ListenerSettings{Mode: "strict", Versions: "v1", TrustedCIDRs: true}, "strict, v1, Envoy, trusted", notForThisHost},
		{"https", lab.ListenerSettings{Mode: "off"}, "off, TLS, Envoy", ""},
		{"https", lab.ListenerSettings{Mode: "permissive"}, "permissive, v1, v2, TLS, Envoy, trusted", ""},
		{"https", lab.ListenerSettings{Mode: "permissive", TrustedCIDRs: true}, "permissive, v1, v2, TLS, Envoy, trusted", "permissive, v1, v2, TLS, Envoy, ignored"},
		{"https", lab.ListenerSettings{Mode: "permissive", Versions: "v2"}, "permissive, v2, TLS, Envoy, trusted", ""},
		{"https", lab.ListenerSettings{Mode: "strict"}, "strict, v1, v2, TLS, Envoy, trusted", ""},
		{"https", lab.ListenerSettings{Mode: "strict", Versions: "v1"}, "strict, v1, TLS, Envoy, trusted", ""},
		{"https", lab.ListenerSettings{Mode: "strict", TrustedCIDRs: true}, "strict, v1, v2, TLS, Envoy, trusted", notForThisHost},
		{"tcp", lab.ListenerSettings{Mode: "off"}, "off", ""},
		{"tcp", lab.ListenerSettings{Mode: "permissive"}, "permissive, v1, v2", ""},
		{"tcp", lab.ListenerSettings{Mode: "permissive", TrustedCIDRs: true}, "permissive, v1, v2", ""},
		{"tcp", lab.ListenerSettings{Mode: "strict"}, "strict, v1, v2", ""},
		{"tcp", lab.ListenerSettings{Mode: "strict", Versions: "v2"}, "strict, v2", ""},
		{"tcp", lab.ListenerSettings{Mode: "strict", TrustedCIDRs: true}, "strict, v1, v2", "reads headers and closes"},
	}
	var listeners []lab.TestListener
	for _, c := range table {
		listeners = append(listeners, lab.TestListener{Protocol: c.protocol, Settings: c.settings})
	}
	withoutInstance := map[string]string{"off": "closes", "permissive": "reads headers and closes", "strict": "reads headers and closes"}
	for mode := range withoutInstance {
		listeners = append(listeners, lab.TestListener{Protocol: "tcp", Service: "absent", Settings: lab.ListenerSettings{Mode: mode}})
	}
	l := lab.StartTrustLab(t, listeners)
	var cases []probeCase
	for _, g := range l.Gateways {
		for i, c := range table {
			target := net.JoinHostPort(g.Addresses[i%len(g.Addresses)].String(), strconv.Itoa(l.Listeners[i].Port))
			cases = append(cases, c.cases(l, fmt.Sprintf("%s, %s with %v", g.Version, c.protocol, c.settings), target)...)
		}
		for _, m := range l.Listeners[len(table):] {
			g.WaitListener(t, m.Port)
			cases = append(cases, probeCase{
				fmt.Sprintf("%s, no instance, %v", g.Version, m.Settings), l.Trusted.Host,
				[]string{g.Host.Addr(m.Port), "--tcp"},
				withoutInstance[m.Settings.Mode],
			})
		}
	}
	runProbes(t, cases)
	for _, g := range l.Gateways {
		entry := g.Log.Wait(t, map[string]string{"path": lab.ClientPath, "downstream_direct_remote_address": ""})
		if got := entry.Text("user_agent"); !strings.HasPrefix(got, "usher-probe/") {
			t.Errorf("the access log has the user agent %q for a probe, want usher-probe/", got)
		}
	}
}

// cases are the probes of a listener, from one host or both.
func (c probeListener) cases(l *lab.TrustLab, name, target string) []probeCase {
	args := []string{target, "--tcp"}
	if c.protocol != "tcp" {
		args = []string{target, "--host", lab.ServiceHost, "--path", lab.ClientPath}
	}
	all := []probeCase{{name, l.Trusted.Host, args, c.want}}
	if c.settings.TrustedCIDRs {
		all = append(all, probeCase{name + ", untrusted", l.Untrusted.Host, args, cmp.Or(c.untrusted, c.want)})
	}
	if c.protocol == "http" && !c.settings.TrustedCIDRs { // Envoy has no route; the service answers 400
		want := strings.TrimSuffix(c.want, ", trusted")
		all = append(all,
			probeCase{name + ", unknown host", l.Trusted.Host, []string{target, "--host", "no.example"}, want},
			probeCase{name + ", 400 of the service", l.Trusted.Host, []string{target, "--host", lab.ServiceHost, "--path", lab.RefusedPath}, want})
	}
	return all
}

// TestProbeOfServerNames has Envoys that serve TLS under one name only, with PROXY protocol and without.
func TestProbeOfServerNames(t *testing.T) {
	t.Parallel()
	l := lab.NewNetwork(t)
	cert, key := lab.NewCertificateAuthority(t, "ca").Issue(t, testprocess.NewDir(t), "www.example.com")
	var cases []probeCase
	for host, version := range map[*lab.Host]string{l.Gateway: lab.EnvoyNew, l.Service: lab.EnvoyOld} {
		lab.StartEnvoyWith(t, host, version, serverNameBootstrap(cert, key))
		for port, want := range map[int][2]string{
			8000: {"off, TLS, Envoy", "closes"},
			8001: {"permissive, v1, v2, TLS, Envoy", "reads headers and closes, TLS"},
			8002: {"strict, v1, v2, TLS, Envoy", "reads headers and closes, TLS"},
		} {
			for i, name := range []string{"www.example.com", "other.example.com"} {
				cases = append(cases, probeCase{fmt.Sprintf("%s, port %d, %s", version, port, name), l.Client, []string{host.Addr(port), "--host", name}, want[i]})
			}
		}
	}
	runProbes(t, cases)
}

// serverNameBootstrap has listeners for www.example.com: at 8000 without PROXY protocol, at 8001 permissive, at 8002
// strict.
func serverNameBootstrap(cert, key string) string {
	listeners := ""
	for i, filter := range []string{"", "allow_requests_without_proxy_protocol: true", "allow_requests_without_proxy_protocol: false"} {
		proxy := ""
		if filter != "" {
			proxy = `
    - name: proxy
      typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol, ` + filter + ` }`
		}
		listeners += fmt.Sprintf(`
  - name: listener-%d
    address: { socket_address: { address: 0.0.0.0, port_value: %d } }
    listener_filters:%s
    - name: tls_inspector
      typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector }
    filter_chains:
    - filter_chain_match: { server_names: [www.example.com] }
      transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context: { tls_certificates: [{ certificate_chain: { filename: %s }, private_key: { filename: %s } }] }
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          http_filters: [{ name: router, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }]
          route_config: { virtual_hosts: [{ name: all, domains: ["*"], routes: [{ match: { prefix: "/" }, direct_response: { status: 200 } }] }] }`,
			i, 8000+i, proxy, cert, key)
	}
	return "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 19000 } } }\nstatic_resources:\n  listeners:" + listeners + "\n"
}

// TestProbeOfOtherServers probes nginx and HAProxy, with PROXY protocol and without.
func TestProbeOfOtherServers(t *testing.T) {
	t.Parallel()
	l := lab.NewNetwork(t)
	dir := testprocess.NewDir(t)
	cert, key := lab.NewCertificateAuthority(t, "ca").Issue(t, dir, "www.example.com")
	both := lab.WriteFile(t, dir, "both.pem", testprocess.ReadFile(t, cert)+testprocess.ReadFile(t, key))
	at := l.Gateway.Addr
	lab.StartNginxHTTP(t, l.Gateway, fmt.Sprintf(`
  ssl_certificate %s;
  ssl_certificate_key %s;
  server { listen %s; return 200; }
  server { listen %s proxy_protocol; return 200; }
  server { listen %s ssl; return 200; }
  server { listen %s ssl proxy_protocol; return 200; }
`, cert, key, at(8000), at(8001), at(8002), at(8003)))
	haproxy := testprocess.Start(t, testprocess.Command{
		Name: "haproxy", Path: testprocess.Debian(t, "haproxy", "haproxy"), Host: l.Gateway,
		Args: []string{"-d", "-f", lab.WriteFile(t, dir, "haproxy.cfg", fmt.Sprintf(`
defaults
  mode http
  timeout client 1m
  timeout http-request 1m
frontend all
  bind %s
  bind %s accept-proxy
  bind %s ssl crt %s
  bind %s accept-proxy ssl crt %s
  http-request return status 200
`, at(9000), at(9001), at(9002), both, at(9003), both))},
	})
	for _, port := range []int{9000, 9001, 9002, 9003} {
		testprocess.Eventually(t, "haproxy listens", testprocess.StartDeadline, func() error {
			if err := haproxy.Alive(); err != nil {
				return err
			}
			conn, err := l.Client.Dial(t.Context(), "tcp", at(port))
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	wants := map[int]string{
		8000: "off, nginx",
		8001: "strict, v1, v2, nginx, PROXY v2 in two segments",
		8002: "off, TLS, nginx",
		8003: "strict, v1, v2, TLS, nginx, PROXY v2 in two segments",
		9000: "off",
		9001: "strict, v1, v2, PROXY v2 in two segments",
		9002: "off, TLS",
		9003: "strict, v1, v2, TLS, PROXY v2 in two segments",
	}
	var cases []probeCase
	for port, want := range wants {
		cases = append(cases, probeCase{fmt.Sprintf("port %d", port), l.Client, []string{at(port)}, want})
	}
	runProbes(t, cases)
}

// TestProbeCorrectsTheLab has Consul's own gateway behind a balancer that sends PROXY v2: every request gets 400. The
// probe names the cause, and the settings that it prints, written into the config file with the gateway's name, correct it.
func TestProbeCorrectsTheLab(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := lab.Start(t, lab.ConsulNew, envoy, false)
		gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy})
		lab.WaitStatus(t, l.Request("/"), http.StatusOK)
		l.HAProxy.SetHeader(t, lab.SendV2)
		l.WantBadRequest(t)

		setting := wantProbe(t, l, "does not look for PROXY headers: its mode is off.", "This is the 400 that your clients see.", 2)
		behind := runProbe(t, l.Client, l.Balancer.Addr(8080), "--host", lab.ServiceHost)
		if want := l.Balancer.Addr(8080) + " answers 400 to every request"; behind.Code != 1 || !strings.HasPrefix(behind.Stdout, want) {
			t.Errorf("through the balancer, exit status %d, want 1, and:\n%s", behind.Code, behind.Stdout)
		}

		gateway.Stop(t)
		usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: "# nothing yet\n"})
		gateway = lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})
		l.WantBadRequest(t) // Usher does what Consul does until it has the setting
		applySetting(t, l, usher, setting, "permissive")
		l.WantClientAddress(t, gateway)

		setting = wantProbe(t, l, "accepts connections with a PROXY header and without one: its mode is permissive.", "Connections are served.", 2)
		applySetting(t, l, usher, setting, "strict")
		l.WantClientAddress(t, gateway)

		l.HAProxy.SetHeader(t, lab.SendNone)
		l.WantPlainRefused(t)
		setting = wantProbe(t, l, "accepts only connections with a PROXY header: its mode is strict.", "Every connection is closed without an answer.", 0)
		applySetting(t, l, usher, setting, "permissive")
		lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	})
}

// wantProbe probes the lab's gateway from the balancer, wants a headline, a sentence and an exit status, and returns
// the setting at the end of the output, with the gateway's name as an operator writes it.
func wantProbe(t *testing.T, l *lab.Lab, headline, sentence string, code int) string {
	t.Helper()
	end := runProbe(t, l.Balancer, l.Gateway.Addr(8080), "--host", lab.ServiceHost, "--expect", "strict")
	first, _, _ := strings.Cut(end.Stdout, "\n\n")
	if !strings.Contains(strings.ReplaceAll(first, "\n", " "), l.Gateway.Addr(8080)+" "+headline) {
		t.Errorf("the probe says %q, want %q", first, headline)
	}
	if end.Code != code || !strings.Contains(strings.Join(strings.Fields(end.Stdout), " "), sentence) {
		t.Errorf("exit status %d, want %d, and %q in:\n%s%s", end.Code, code, sentence, end.Stdout, end.Stderr)
	}
	at := strings.Index(end.Stdout, "\ngateway \"NAME\" {")
	if at < 0 {
		t.Fatalf("the probe prints no setting:\n%s", end.Stdout)
	}
	return strings.Replace(end.Stdout[at:], "NAME", "ingress-gateway", 1)
}

// applySetting writes a config file, and waits until the gateway has the mode.
func applySetting(t *testing.T, l *lab.Lab, usher *lab.Usher, setting, mode string) {
	t.Helper()
	if err := os.WriteFile(usher.ConfigFile, []byte(setting), 0o644); err != nil {
		t.Fatal(err)
	}
	l.WaitMode(t, l.Gateway, mode)
}
