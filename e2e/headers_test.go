//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// headerRow is a difference that PROXY protocol makes in the headers that a
// service sees: a row of the table in docs/client-address.md.
type headerRow struct{ header, sent, own, usher string }

// headerLab has Consul's own gateway beside Usher's, for the same requests.
type headerLab struct {
	*lab.Lab
	gateway *lab.Envoy         // Usher's
	rows    map[headerRow]bool // of the documentation; true once seen
}

// headerPath is a pair of ways to the service: through Consul's own gateway
// without a PROXY header, and through Usher's.
type headerPath struct {
	name       string
	own, usher lab.Request
	client     string // the client's address, as Usher's gateway has it
}

// TestHeaders compares all headers that services and clients see with PROXY
// protocol on with those behind Consul's own gateway without it. Each difference
// is a row of the table in docs/client-address.md, and each row is a difference.
func TestHeaders(t *testing.T) {
	t.Parallel()
	for _, version := range []struct{ consul, envoy string }{
		{lab.ConsulNew, lab.EnvoyNew}, {lab.ConsulNew, lab.EnvoyOld}, {lab.ConsulOld, lab.EnvoyNew},
	} {
		t.Run("consul "+version.consul+", envoy "+version.envoy, func(t *testing.T) {
			t.Parallel()
			l, paths := startHeaderLab(t, version.consul, version.envoy)
			for _, path := range paths[:2] {
				l.compare(t, path)
			}
			l.SetMode(t, "permissive")
			lab.WaitStatus(t, paths[2].usher, http.StatusOK)
			l.compare(t, paths[2])
			l.wantRowsSeen(t)
			l.wantDocumentedCommand(t)

			l.rows = nil // nothing may differ any more
			l.SetMode(t, "off")
			l.WaitMode(t, l.Gateway, "off")
			l.compare(t, paths[2])

			l.SetMode(t, "strict")
			lab.WaitStatus(t, l.Request("/"), http.StatusOK)
			l.wantDocumentedProto(t)
			l.wantProtoOfTLS(t)
		})
	}
}

// startHeaderLab gives three pairs of ways: a client behind balancers, a client
// with a private address, and a client without a PROXY header at all.
func startHeaderLab(t *testing.T, consul, envoy string) (*headerLab, []headerPath) {
	t.Helper()
	l := &headerLab{Lab: lab.Start(t, consul, envoy, false), rows: documentedRows(t)}
	l.SetMode(t, "strict")
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
	l.gateway = lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})
	other := l.AddHost(t, "gateway2", lab.Gateway2IP)
	lab.StartGateway(t, lab.GatewayOptions{Host: other, Consul: l.Consul, Envoy: envoy, ID: "ingress-gateway-2"})
	plainBalancer := l.AddHost(t, "balancer2", "198.18.0.11")
	lab.StartHAProxy(t, lab.HAProxyOptions{Host: plainBalancer, Targets: []*lab.Host{other}, Ports: []int{8080}, Header: lab.SendNone})
	l.HAProxy.SetHeader(t, lab.SendV2)

	own := lab.Request{From: l.Client, To: plainBalancer.Addr(8080)}
	lab.WaitStatus(t, own, http.StatusOK)
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	direct := lab.Request{From: l.Balancer, To: l.Gateway.Addr(8080)}
	private := direct
	private.Proxy = lab.ProxyHeaderFor("10.1.2.3")
	return l, []headerPath{
		{name: "a client behind balancers", own: own, usher: l.Request("/"), client: lab.ClientIP},
		{name: "a client with a private address", own: own, usher: private, client: "10.1.2.3"},
		{name: "a client without a header in permissive mode", own: own, usher: direct, client: lab.BalancerIP},
	}
}

// sentHeaders are what clients send: each on its own, and some together.
var sentHeaders = func() []http.Header {
	sent := []http.Header{nil}
	for _, name := range []string{
		"x-forwarded-host", "x-forwarded-port", "x-forwarded-scheme", "x-forwarded-client-cert", "x-real-ip", "true-client-ip",
		"x-client-trace-id", "x-b3-traceid", "via", "user-agent", "te", "x-consul-token",
		"x-envoy-attempt-count", "x-envoy-decorator-operation", "x-envoy-downstream-service-cluster",
		"x-envoy-downstream-service-node", "x-envoy-external-address", "x-envoy-force-trace", "x-envoy-ip-tags",
		"x-envoy-is-timeout-retry", "x-envoy-original-dst-host", "x-envoy-original-host", "x-envoy-original-path",
		"x-envoy-original-url", "x-envoy-peer-metadata", "x-envoy-retriable-header-names", "x-envoy-upstream-alt-stat-name",
		"x-envoy-upstream-canary", "x-envoy-upstream-service-time", "x-envoy-ratelimited", "x-envoy-of-tomorrow",
	} {
		sent = append(sent, http.Header{http.CanonicalHeaderKey(name): {"192.0.2.1"}})
	}
	for _, pair := range [][2]string{
		{"x-forwarded-for", "192.0.2.1"},
		{"x-forwarded-for", "10.0.0.1"},
		{"x-forwarded-for", "192.0.2.1, 10.0.0.1"},
		{"x-forwarded-for", "nonsense"},
		{"x-forwarded-proto", "https"},
		{"x-forwarded-proto", "http"},
		{"x-forwarded-proto", "nonsense"},
		{"forwarded", "for=192.0.2.1;proto=https"},
		{"x-request-id", "nonsense"},
		{"x-request-id", "0a0b0c0d-0a0b-4c0d-8a0b-0a0b0c0d0e0f"},
		{"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		{"x-envoy-internal", "true"},
		{"x-envoy-expected-rq-timeout-ms", "7000"},
		{"x-envoy-max-retries", "2"},
		{"x-envoy-retry-on", "5xx"},
		{"x-envoy-retry-grpc-on", "unavailable"},
		{"x-envoy-retriable-status-codes", "503"},
		{"x-envoy-hedge-on-per-try-timeout", "true"},
		{"x-envoy-upstream-rq-timeout-ms", "7000"},
		{"x-envoy-upstream-rq-per-try-timeout-ms", "7000"},
		{"x-envoy-upstream-rq-timeout-alt-response", "1"},
		{"x-envoy-upstream-stream-duration-ms", "7000"},
	} {
		sent = append(sent, http.Header{http.CanonicalHeaderKey(pair[0]): {pair[1]}})
	}
	together := http.Header{}
	for _, header := range sent {
		maps.Copy(together, header)
	}
	// A private address makes a request one of the mesh's own, in Envoy's eyes.
	inside := together.Clone()
	inside.Set("X-Forwarded-For", "10.0.0.1")
	return append(sent, together, inside)
}()

// replies are headers of the service's answers that Envoy has an eye on.
var replies = http.Header{
	"X-Request-Id": {"the-service"}, "X-Forwarded-For": {"192.0.2.1"}, "X-Envoy-Decorator-Operation": {"op"},
	"X-Envoy-Upstream-Canary": {"true"}, "X-Envoy-Upstream-Service-Time": {"7"}, "X-Envoy-Attempt-Count": {"7"},
	"X-Envoy-Of-Tomorrow": {"7"}, "Server": {"apache"}, "Via": {"1.1 cache"}, "Location": {"http://static-server/elsewhere"},
}

// compare makes every request both ways, to a service that answers without
// headers of its own and with some.
func (l *headerLab) compare(t *testing.T, path headerPath) {
	t.Helper()
	for _, reply := range []http.Header{nil, replies} {
		l.Echo.SetReply(reply)
		for _, sent := range sentHeaders {
			ownRequest, ownAnswer := l.exchange(t, path.own, sent)
			usherRequest, usherAnswer := l.exchange(t, path.usher, sent)
			for _, name := range differing(ownRequest, usherRequest) {
				l.observe(t, path, headerRow{
					header: "`" + strings.ToLower(name) + "`",
					sent:   describeSent(sent.Values(name)),
					own:    describeSeen(ownRequest.Values(name), sent, name, path.client),
					usher:  describeSeen(usherRequest.Values(name), sent, name, path.client),
				})
			}
			for _, name := range differing(ownAnswer, usherAnswer) {
				t.Errorf("%s that sends %v: the answer's %s is %q behind Consul's own gateway and %q behind Usher's",
					path.name, sent, name, ownAnswer.Values(name), usherAnswer.Values(name))
			}
		}
	}
}

// wantRowsSeen wants every row of the documentation to be a difference.
func (l *headerLab) wantRowsSeen(t *testing.T) {
	t.Helper()
	for row, seen := range l.rows {
		if !seen {
			t.Errorf("docs/client-address.md has a row that does not hold: %+v", row)
		}
	}
}

// wantDocumentedCommand makes a request as the documentation has it, to see
// that a gateway is permissive.
func (l *headerLab) wantDocumentedCommand(t *testing.T) {
	t.Helper()
	line := regexp.MustCompile(`(?m)^ +(curl .*)$`).FindStringSubmatch(testprocess.ReadFile(t, "../docs/client-address.md"))
	if line == nil {
		t.Fatal("docs/client-address.md has no curl line")
	}
	command := strings.NewReplacer("web.ingress.consul", lab.ServiceHost, "<the gateway>:8080", l.Gateway.Addr(8080), "curl ", "curl -sS ").Replace(line[1])
	if got := l.Balancer.Shell(t, command); got.Stdout != "hello world\n" {
		t.Errorf("%s: exit %d %q %s, want \"hello world\"", command, got.Code, got.Stdout, got.Stderr)
	}
}

// wantDocumentedProto sets what the documentation has against redirects that do
// not end, one after the other, and wants the service to see what it says: the
// balancer's port is 8080, and the client speaks of https.
func (l *headerLab) wantDocumentedProto(t *testing.T) {
	t.Helper()
	settings := regexp.MustCompile(`(?m)^usher \{ client_address .*$`).FindAllString(testprocess.ReadFile(t, "../docs/client-address.md"), -1)
	if len(settings) != 3 {
		t.Fatalf("docs/client-address.md has %q, want three settings", settings)
	}
	const strict = `usher { proxy_protocol { mode = "strict" } `
	for i := range settings {
		settings[i] = strings.Replace(settings[i], "usher { ", strict, 1)
	}
	byPort := strings.ReplaceAll(settings[0], "443", "8080")
	for _, step := range []struct{ settings, sent, want string }{
		{byPort, "http", "https"}, {settings[0], "https", "http"}, {settings[1], "https", "https"}, {settings[1], "", "http"}, {settings[2], "https", "http"}, {strict + "}", "https", "http"},
	} {
		writeProxyDefaults(t, l.Lab, step.settings)
		testprocess.Eventually(t, fmt.Sprintf("with %q, one that sends %q is forwarded as %s", step.settings, step.sent, step.want), testprocess.ChangeDeadline, func() error {
			request := l.Request(lab.NewPath())
			if step.sent != "" {
				request.Header = http.Header{"X-Forwarded-Proto": {step.sent}}
			}
			request.MustDo(t).WantHello(t)
			if got := l.Echo.Received(t, request.Path).Header.Get("X-Forwarded-Proto"); got != step.want {
				return fmt.Errorf("the service sees %q", got)
			}
			return nil
		})
	}
}

// wantProtoOfTLS gives the listener TLS, beneath the PROXY header, and waits
// until the service sees x-forwarded-proto: https whatever the client says.
func (l *headerLab) wantProtoOfTLS(t *testing.T) {
	t.Helper()
	l.Consul.WriteEntry(t, testprocess.ReadFile(t, "testdata/lab/ingress-gateway.hcl")+"TLS { Enabled = true }\n")
	testprocess.Eventually(t, "the service sees x-forwarded-proto: https on TLS", testprocess.ChangeDeadline, func() error {
		path := lab.NewPath()
		got := l.Balancer.Shell(t, fmt.Sprintf("curl -sSk --haproxy-protocol -H 'Host: %s' -H 'X-Forwarded-Proto: http' https://%s%s",
			lab.ServiceHost, l.Gateway.Addr(8080), path))
		if got.Stdout != "hello world\n" {
			return fmt.Errorf("exit %d %s%s", got.Code, got.Stdout, got.Stderr)
		}
		if got := l.Echo.Received(t, path).Header.Get("X-Forwarded-Proto"); got != "https" {
			return fmt.Errorf("it sees %q", got)
		}
		return nil
	})
}

// observe marks a difference's row of the documentation.
func (l *headerLab) observe(t *testing.T, path headerPath, row headerRow) {
	t.Helper()
	if _, documented := l.rows[row]; !documented {
		t.Errorf("%s: docs/client-address.md does not have %+v", path.name, row)
		return
	}
	l.rows[row] = true
}

// exchange makes a request and returns the headers that the service got and those
// that the client got, without what is another one each time.
func (l *headerLab) exchange(t *testing.T, c lab.Request, sent http.Header) (request, answered http.Header) {
	t.Helper()
	c.Path, c.Header = lab.NewPath(), sent
	got := c.MustDo(t)
	got.WantHello(t)
	seen := l.Echo.Received(t, c.Path)
	request = seen.Header
	request.Set("Method and host", seen.Method+" "+seen.Host)
	for _, id := range request["X-Request-Id"] {
		if sent.Get("X-Request-Id") == "" && uuid.MatchString(id) {
			request.Set("X-Request-Id", "an id of the gateway's")
		}
	}
	if timeTaken.MatchString(got.Header.Get("X-Envoy-Upstream-Service-Time")) {
		got.Header.Set("X-Envoy-Upstream-Service-Time", "some milliseconds")
	}
	if got.Header.Get("Date") != "" {
		got.Header.Set("Date", "now")
	}
	return request, got.Header
}

var (
	uuid      = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	timeTaken = regexp.MustCompile(`^\d+$`)
)

// differing are the names of the headers that are not the same, in order.
func differing(a, b http.Header) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if !slices.Equal(a[name], b[name]) {
			names = append(names, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b)) {
		if _, both := a[name]; !both {
			names = append(names, name)
		}
	}
	return names
}

func describeSent(sent []string) string {
	if len(sent) == 0 {
		return "nothing"
	}
	return "anything"
}

// describeSeen says, in the words of the documentation, what a service sees of
// a header.
func describeSeen(seen []string, request http.Header, name, client string) string {
	value, was := strings.Join(seen, "|"), strings.Join(request.Values(name), "|")
	forwarded := request.Get("X-Forwarded-For")
	switch {
	case len(seen) == 0:
		return "nothing"
	case value == client:
		return "the client's address"
	case was != "" && value == was:
		return "as sent"
	case was != "" && value == was+","+client:
		return "as sent, then the client's address"
	case forwarded != "" && value == strings.TrimSpace(forwarded[strings.LastIndex(forwarded, ",")+1:]):
		return "the last address of `x-forwarded-for`"
	}
	return "`" + value + "`"
}

var tableRow = regexp.MustCompile("(?m)^\\| (`x-[^|]*`) \\| ([^|]*) \\| ([^|]*) \\| ([^|]*) \\|")

// documentedRows are the rows of the table in docs/client-address.md.
func documentedRows(t *testing.T) map[headerRow]bool {
	t.Helper()
	rows := map[headerRow]bool{}
	for _, cells := range tableRow.FindAllStringSubmatch(testprocess.ReadFile(t, "../docs/client-address.md"), -1) {
		rows[headerRow{cells[1], cells[2], cells[3], cells[4]}] = false
	}
	if len(rows) == 0 {
		t.Fatal("docs/client-address.md has no table of headers")
	}
	return rows
}
