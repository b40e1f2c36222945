//go:build e2e

package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// httpsPort is the port of the listener with TLS in the stories of access logs.
const httpsPort = 8081

// logLab is the lab with an http, an https and a tcp listener, behind a balancer
// that sends PROXY headers, and with every kind of sink.
type logLab struct {
	*lab.Lab
	Usher     *lab.Usher
	Envoy     *lab.Envoy
	Collector *lab.Collector
	Dir       string // of the log files
	trust     *tls.Config
}

// logSettings has every sink; two of them have no collector.
func (l *logLab) settings(more string) string {
	return fmt.Sprintf(`
usher {
  proxy_protocol {
    mode          = "permissive"
    tlvs          = [{ type = "aws_vpce_id", name = "vpce" }]
  }
  access_log {
    sinks = [
      { type = "stdout" },
      { type = "file", path = "%[1]s/ecs", format = "ecs" },
      { type = "file", path = "%[1]s/combined", format = "combined" },
      { type = "otlp", address = "%[2]s", format = "ecs" },
      { type = "grpc", address = "%[2]s", request_headers = ["x-tenant"] },
      { type = "otlp", address = "%[3]s" },
      { type = "grpc", address = "no-such-collector.invalid:4317" },
    ]
    %[4]s
  }
  listeners {
    "%[5]d" { proxy_protocol { mode = "strict" trusted_cidrs = ["%[6]s"] } }
  }
}
`, l.Dir, l.Control.Addr(4317), l.Control.Addr(4318), more, httpsPort, lab.BalancerIP)
}

func startLogLab(t *testing.T, envoy string) *logLab {
	t.Helper()
	l := &logLab{Lab: lab.Start(t, lab.ConsulNew, envoy, false), Dir: testprocess.NewDir(t)}
	lab.StartTCPEcho(t, l.Service, lab.TCPPort)
	lab.RegisterService(t, lab.ServiceOptions{
		Name: "static-tcp", Port: lab.TCPPort, Consul: l.Consul, Host: l.Service, Envoy: envoy, SidecarPort: 21001,
	})
	entry := &api.IngressGatewayConfigEntry{
		Kind: api.IngressGateway, Name: "ingress-gateway",
		Listeners: []api.IngressListener{
			{Port: 8080, Protocol: "http", Services: []api.IngressService{{Name: "static-server"}}},
			{Port: httpsPort, Protocol: "http", TLS: &api.GatewayTLSConfig{Enabled: true}, Services: []api.IngressService{{Name: "static-server"}}},
			{Port: lab.TCPPort, Protocol: "tcp", Services: []api.IngressService{{Name: "static-tcp"}}},
		},
	}
	if _, _, err := l.Consul.Client.ConfigEntries().Set(entry, nil); err != nil {
		t.Fatal(err)
	}
	l.Collector = lab.StartCollector(t, l.Control, l.Control.Addr(4317))
	l.Usher = lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: l.settings("")})
	l.Envoy = lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: l.Usher.GRPCAddr})
	for _, port := range []int{8080, httpsPort, lab.TCPPort} {
		l.Envoy.WaitListener(t, port)
	}
	l.trust = &tls.Config{InsecureSkipVerify: true}
	for _, port := range []int{8080, httpsPort} {
		lab.WaitStatus(t, l.request(t, port, ""), http.StatusOK)
	}
	return l
}

// change writes other settings.
func (l *logLab) change(t *testing.T, more string) {
	t.Helper()
	l.Usher.WriteConfig(t, l.settings(more))
}

// request is one of the client's, from the balancer's host, by an endpoint.
func (l *logLab) request(t *testing.T, port int, query string) lab.Request {
	t.Helper()
	h := lab.ProxyHeaderFor(lab.ClientIP)
	if err := h.SetTLVs([]proxyproto.TLV{{Type: 0xEA, Value: append([]byte{1}, "vpce-0123"...)}}); err != nil {
		t.Fatal(err)
	}
	c := lab.Request{
		From: l.Balancer, To: l.Gateway.Addr(port), Path: lab.NewPath() + query, Proxy: h,
		Header: http.Header{"X-Tenant": {"blue"}, "User-Agent": {`quoted "agent"`}, "Referer": {"https://example.com/?token=secret"}},
	}
	if port == httpsPort {
		c.TLS = l.trust
	}
	return c
}

func (l *logLab) file(name string) *lab.AccessLog {
	return lab.OpenAccessLog(name, filepath.Join(l.Dir, name))
}

// TestAccessLogSinks sends requests to every type of listener and wants their
// log entries in every type of sink. Two of the collectors do not run.
func TestAccessLogSinks(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := startLogLab(t, envoy)
		for _, port := range []int{8080, httpsPort} {
			l.wantRequestEverywhere(t, port)
		}
		l.wantConnectionEverywhere(t)
		l.wantCombined(t)
		l.wantECS(t)
		l.wantRotation(t)
		l.wantNoHealthChecks(t)
		l.wantReasons(t)
		l.wantRedacted(t)
		l.wantServerName(t)
		l.wantNamedProblem(t)
	})
}

// wantRequestEverywhere makes a request, and wants it in every sink.
func (l *logLab) wantRequestEverywhere(t *testing.T, port int) {
	t.Helper()
	c := l.request(t, port, "")
	c.MustDo(t).WantHello(t)
	entry := l.Envoy.Log.WaitRequest(t, c.Path)
	for field, want := range map[string]string{"downstream_remote_address": lab.ClientIP, "downstream_direct_remote_address": lab.BalancerIP} {
		if got := entry.IP(t, field); got != want {
			t.Errorf("standard output has %s %s, want %s", field, got, want)
		}
	}
	if got := entry.Text("vpce"); got != "vpce-0123" {
		t.Errorf("standard output has the endpoint %q", got)
	}
	ecs := map[string]string{"url.original": c.Path, "source.ip": lab.ClientIP, "source.nat.ip": lab.BalancerIP, "labels.vpce": "vpce-0123"}
	l.file("ecs").WaitFlat(t, ecs)
	l.Collector.WaitRecord(t, ecs)
	got := l.Collector.WaitRequest(t, c.Path, lab.ClientIP)
	if tenant := got.GetRequest().GetRequestHeaders()["x-tenant"]; tenant != "blue" {
		t.Errorf("the collector has the header %q, want blue", tenant)
	}
	if state := got.GetCommonProperties().GetFilterStateObjects()["usher.tlv.vpce"]; state == nil {
		t.Errorf("the collector has no endpoint: %v", got.GetCommonProperties())
	}
}

// wantConnectionEverywhere does the same with a connection to the tcp listener.
func (l *logLab) wantConnectionEverywhere(t *testing.T) {
	t.Helper()
	const client = "203.0.113.77"
	c := lab.TCPExchange{From: l.Balancer, To: l.Gateway.Addr(lab.TCPPort), Headers: []io.WriterTo{lab.ProxyHeaderFor(client)}}
	c.WaitData(t, "")
	l.Envoy.Log.Wait(t, map[string]string{"downstream_remote_address": client + ":40000"})
	ecs := map[string]string{"source.ip": client, "source.nat.ip": lab.BalancerIP, "event.category": "network"}
	l.file("ecs").WaitFlat(t, ecs)
	l.Collector.WaitRecord(t, ecs)
	l.Collector.WaitConnection(t, netip.MustParseAddrPort(client+":40000"))
}

// wantCombined has goaccess parse what is in Apache's format.
func (l *logLab) wantCombined(t *testing.T) {
	t.Helper()
	path := filepath.Join(l.Dir, "combined")
	c := l.request(t, 8080, "")
	c.MustDo(t).WantHello(t)
	line := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(lab.ClientIP) + ` - - \[[^]]+\] "GET ` + c.Path + ` HTTP/1\.1" 200 \d+ "https://example\.com/\?token=secret" "quoted "$`)
	testprocess.Eventually(t, "the combined log has the request", testprocess.ChangeDeadline, func() error {
		if text := testprocess.ReadFile(t, path); !line.MatchString(text) {
			return fmt.Errorf("not in\n%s", text)
		}
		return nil
	})
	var requests strings.Builder
	for text := range strings.Lines(testprocess.ReadFile(t, path)) {
		if strings.Contains(text, ` "GET `) {
			requests.WriteString(text)
		}
	}
	parsed := testprocess.Run(t, testprocess.Command{
		Path: testprocess.Debian(t, "goaccess", "goaccess"), Host: l.Gateway,
		Args: []string{lab.WriteFile(t, testprocess.NewDir(t), "combined.log", requests.String()), "--no-global-config", "--log-format=COMBINED", "-o", "csv"},
	}, "")
	total := fmt.Sprintf(`"%d","total_requests"`, strings.Count(requests.String(), "\n"))
	for _, want := range []string{total, `"0","failed_requests"`} {
		if !strings.Contains(parsed.Stdout, want) {
			t.Errorf("goaccess does not say %s: %s%s", want, parsed.Stdout[:min(900, len(parsed.Stdout))], parsed.Stderr)
		}
	}
}

// wantECS wants every field of every entry in the schema's list, with its type.
func (l *logLab) wantECS(t *testing.T) {
	t.Helper()
	types := map[string]string{}
	for line := range strings.Lines(testprocess.ReadFile(t, "testdata/ecs/fields.txt")) {
		if name, typ, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			types[name] = typ
		}
	}
	entries := l.file("ecs").Entries(t)
	if len(entries) < 3 {
		t.Fatalf("there are %d entries in %s", len(entries), "ecs")
	}
	for _, entry := range entries {
		for field, value := range entry.Flatten() {
			if value == nil {
				continue // Elasticsearch takes it for a field that is not there
			}
			typ, known := types[field]
			if strings.HasPrefix(field, "labels.") {
				typ, known = typeOf(value), true // an object of configured fields
			}
			if !known || typ != typeOf(value) {
				t.Errorf("%s is %v, a %s; the schema has %q", field, value, typeOf(value), typ)
			}
		}
	}
}

func typeOf(value any) string {
	switch value.(type) {
	case float64:
		return "number"
	case bool:
		return "boolean"
	case string:
		return "string"
	}
	return fmt.Sprintf("%T", value)
}

// wantRotation renames a log file away, as logrotate does, and has Envoy open it
// anew.
func (l *logLab) wantRotation(t *testing.T) {
	t.Helper()
	path := filepath.Join(l.Dir, "ecs")
	before, after := l.request(t, 8080, ""), l.request(t, 8080, "")
	before.MustDo(t).WantHello(t)
	l.file("ecs").WaitFlat(t, map[string]string{"url.original": before.Path})
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	l.Envoy.Post(t, "/reopen_logs")
	after.MustDo(t).WantHello(t)
	testprocess.Eventually(t, "the file is there again", testprocess.ChangeDeadline, func() error {
		_, err := os.Stat(path)
		return err
	})
	l.file("ecs").WaitFlat(t, map[string]string{"url.original": after.Path})
	if strings.Contains(testprocess.ReadFile(t, path), before.Path) || strings.Contains(testprocess.ReadFile(t, path+".1"), after.Path) {
		t.Error("an entry is in the wrong file")
	}
}

// wantNoHealthChecks connects to the tcp listener as a balancer does to see
// whether anybody is there. Nothing else is hidden by that.
func (l *logLab) wantNoHealthChecks(t *testing.T) {
	t.Helper()
	local := []byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00")
	silent := l.rawTCP(t, lab.TCPPort, local)
	fromClient := l.rawTCP(t, lab.TCPPort, []byte(bytesOf(t, lab.ProxyHeaderFor("203.0.113.78"))))
	talks := l.rawTCP(t, lab.TCPPort, append(local, "hello"...))
	l.Envoy.Log.Wait(t, map[string]string{"downstream_direct_remote_address": fromClient})
	l.Envoy.Log.Wait(t, map[string]string{"downstream_direct_remote_address": talks})
	for _, entry := range l.Envoy.Log.Entries(t) {
		if entry.Text("downstream_direct_remote_address") == silent {
			t.Errorf("the health check is logged: %v", entry)
		}
	}
}

// rawTCP sends bytes from the balancer's host and closes; it gives its own
// address.
func (l *logLab) rawTCP(t *testing.T, port int, data []byte) string {
	t.Helper()
	conn, err := l.Balancer.Dial(t.Context(), "tcp", l.Gateway.Addr(port))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil { // the service greets
		t.Fatal(err)
	}
	conn.Close()
	return conn.LocalAddr().String()
}

// wantReasons wants a line with the reason of each connection that is rejected.
func (l *logLab) wantReasons(t *testing.T) {
	t.Helper()
	untrusted, noHeader, noTLS := l.request(t, httpsPort, ""), l.request(t, httpsPort, ""), l.request(t, httpsPort, "")
	untrusted.From = l.Client
	noHeader.Proxy = nil
	noTLS.TLS = nil
	for reason, c := range map[string]lab.Request{
		"the peer is not in trusted_cidrs":                        untrusted,
		"there was no PROXY header, or none that is allowed here": noHeader,
		"the TLS handshake failed: ":                              noTLS,
	} {
		if got := c.StatusCode(t); got != 0 {
			t.Errorf("%s: answered %d", reason, got)
		}
		testprocess.Eventually(t, "a line with "+reason, testprocess.ChangeDeadline, func() error {
			for _, entry := range l.Envoy.Log.Entries(t) {
				if strings.HasPrefix(entry.Text("rejected"), reason) && entry.IP(t, "downstream_direct_remote_address") == c.From.IP.String() {
					return nil
				}
			}
			return fmt.Errorf("there is none")
		})
		if _, hint, _ := strings.Cut(reason, ": "); hint == "" && !strings.HasSuffix(reason, ": ") {
			l.file("ecs").WaitFlat(t, map[string]string{"event.reason": reason, "event.outcome": "failure"})
		}
	}
}

// wantRedacted wants nothing of what is redacted in any sink, and services that
// get it all.
func (l *logLab) wantRedacted(t *testing.T) {
	t.Helper()
	l.change(t, `
    redact_query   = "yes"
    redact_headers = ["authorization"]
    redact_cookies = ["sid"]
    client_address = "truncated"
    format         = { json = {
      path = "%REQ(:PATH)%", cookie = "%REQ(COOKIE)%", auth = "%REQ(AUTHORIZATION)%", from = "%DOWNSTREAM_REMOTE_ADDRESS%", xff = "%REQ(X-FORWARDED-FOR)%"
    } }`)
	c := l.request(t, 8080, "?token=secret")
	plain, _, _ := strings.Cut(c.Path, "?")
	c.Header.Set("Authorization", "Bearer secret")
	c.Header.Set("Cookie", "a=1; sid=secret")
	want := map[string]string{"path": plain, "cookie": "[redacted]", "auth": "[redacted]", "from": "203.0.113.0/24", "xff": "[redacted]"}
	testprocess.Eventually(t, "an entry is redacted", testprocess.ChangeDeadline, func() error {
		c.MustDo(t).WantHello(t)
		for _, entry := range l.Envoy.Log.Entries(t) {
			if entry.Matches(want) {
				return nil
			}
		}
		return fmt.Errorf("there is no %v", want)
	})
	if seen := l.Echo.Received(t, plain); seen.Header.Get("Authorization") != "Bearer secret" {
		t.Errorf("the service got %v", seen)
	}
	entry := l.file("ecs").WaitFlat(t, map[string]string{"url.original": plain, "source.ip": "203.0.113.0/24"})
	if strings.Contains(fmt.Sprint(entry), "secret") {
		t.Errorf("an entry shows what is redacted: %v", entry)
	}
	l.Usher.WaitOutput(t, "cannot be redacted")
}

// wantNamedProblem wants a command operator that Envoy does not know named, and no
// listener refused.
func (l *logLab) wantNamedProblem(t *testing.T) {
	t.Helper()
	l.change(t, `format = { text = "%NO_SUCH_OPERATOR% %REQ(:PATH)%" }`)
	l.Usher.WaitOutput(t, "there is no operator NO_SUCH_OPERATOR")
	c := l.request(t, 8080, "")
	c.MustDo(t).WantHello(t)
	l.file("ecs").WaitFlat(t, map[string]string{"url.original": c.Path})
	for line := range strings.Lines(l.Usher.Metrics(t)) {
		if strings.HasPrefix(line, "usher_xds_nacks_total") && !strings.HasSuffix(strings.TrimSpace(line), " 0") {
			t.Errorf("an Envoy has refused something: %s", line)
		}
	}
}
