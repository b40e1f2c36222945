//go:build e2e

package e2e

import (
	"cmp"
	"crypto/tls"
	"slices"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
)

// behaviour is a case of the conformance suite, and what clients see of it.
type behaviour struct {
	name string
	file string // of the case; name when empty
	// with changes the case before it is used; nil for none.
	with func(c *lab.GatewayCase)
	// The first request is made until both gateways answer it as it wants.
	requests []request
}

const (
	webHost = "web.ingress.consul"
	apiHost = "api.ingress.consul"
)

// TestSameBehaviourAsConsul sends the same requests through two Envoys, one on
// Usher and one on Consul's own xDS. Both have to give the same answers from the
// same instances, forward the same requests, and write the same access logs. One
// Consul and one Usher serve all cases, one after the other.
func TestSameBehaviourAsConsul(t *testing.T) {
	t.Parallel()
	s := startBehaviourStory(t)
	for _, b := range slices.Concat(routing, balancing, connections) {
		t.Run(b.name, func(t *testing.T) {
			c := readGatewayCase(t, cmp.Or(b.file, b.name))
			if b.with != nil {
				b.with(&c)
			}
			withAccessLogs(&c)
			s.startCase(t, c, b.requests[0])
			for _, r := range b.requests {
				s.wantSame(t, r)
			}
		})
	}
}

// routing are the cases in which the request decides what comes of it.
var routing = []behaviour{
	{name: "router-paths", requests: []request{
		{Host: webHost, Path: "/exact", Want: "200 api-1 /exact"},
		{Host: webHost, Path: "/exact?q=1", Want: "200 api-1 /exact?q=1"},
		{Host: webHost, Path: "/exact/", Want: "200 web-1 /exact/"},
		{Host: webHost, Path: "/prefix", Want: "200 api-1 /"},
		{Host: webHost, Path: "/prefix/x?q=1", Want: "200 api-1 /x?q=1"},
		{Host: webHost, Path: "/prefixes", Want: "200 api-1 /es"},
		{Host: webHost, Path: "/v12/x", Want: "200 api-1 /v12/x"},
		{Host: webHost, Path: "/v/x", Want: "200 web-1 /v/x"},
		{Host: "web.ingress.dc1.consul:8080", Path: "/exact", Want: "200 api-1 /exact"},
		{Host: apiHost, Path: "/exact", Want: "404"},
	}},
	{name: "router-case", requests: []request{
		{Host: webHost, Path: "/PreFix/x", Want: "200 api-1 /x"},
		{Host: webHost, Path: "/EXACT", Want: "200 api-1 /EXACT"},
		{Host: webHost, Path: "/exactly", Want: "200 web-1 /exactly"},
	}},
	{name: "router-headers", requests: routerHeaders()},
	{name: "router-destinations", requests: []request{
		{Host: webHost, Want: "200 web-1 /"},
		{Host: webHost, Path: "/timeout", Script: "delay 4s", Want: "504"},
		{Host: webHost, Path: "/endless", Script: "delay 100ms", Want: "200 api-1 /endless"},
		{Host: webHost, Path: "/count", Script: "fail 503 1", Want: "503 api-1 /count"},
		{Host: webHost, Path: "/codes", Script: "fail 503 1", Want: "200 api-1 /codes attempt 2"},
		{Host: webHost, Path: "/codes", Script: "fail 500 1", Want: "500 api-1 /codes"},
		{Host: webHost, Path: "/codes", Script: "fail 502 2", Want: "502 api-1 /codes attempt 2"},
		{Host: webHost, Path: "/on", Script: "fail 500 2", Want: "200 api-1 /on attempt 3"},
		{Host: webHost, Path: "/on", Script: "fail 500 3", Want: "500 api-1 /on attempt 3"},
		{
			Host: webHost, Path: "/headers", Header: map[string]string{"x-a": "client", "x-d": "client", "x-e": "client"},
			Want: "200 api-1 /headers",
			Has: []string{
				"service: x-a: client", "service: x-a: 1", "service: x-b: 2", "service: x-c: CLIENT:PORT", "service: x-d: 4",
				"answer: x-a: service", "answer: x-a: 1", "answer: x-c: 3", "answer: x-d: 4",
			},
		},
	}},
	{name: "headers", requests: []request{
		{
			Host: webHost, Path: "/", Header: map[string]string{"x-a": "client", "x-f": "client", "x-level": "client"},
			Want: "200 web-1 /",
			Has: []string{
				"service: x-a: client", "service: x-a: 1", "service: x-client: CLIENT:PORT", "service: x-level: gateway",
				"answer: x-b: service", "answer: x-b: 2", "answer: x-level: gateway",
			},
		},
	}},
	{name: "splitter", requests: []request{
		{
			Host: webHost, Times: 300, Header: map[string]string{"x-c": "client"},
			Shares: map[string]float64{"200 web-1 /": 0.3333, "200 api-1 /": 0.6666, "200 old-1 /": 0.0001},
			Has:    []string{"service: x-leg: web", "service: x-b: 2", "answer: x-leg: web", "answer: x-leg: service", "answer: x-b: 2"},
		},
	}},
	{name: "router-splitter", requests: []request{
		{Host: webHost, Path: "/v2/x", Want: "200 web-2 /x"},
		{Host: webHost, Path: "/v2", Script: "delay 3s", Want: "504"},
		{Host: webHost, Path: "/api/x", Want: "200 api-1 /api/x"},
		{Host: webHost, Times: 400, Shares: map[string]float64{"200 web-1 /": 0.9, "200 web-2 /": 0.1}},
	}},
	{name: "hosts", requests: []request{
		{Host: "www.example.com", Want: "200 web-1 /"},
		{Host: "WWW.example.com", Want: "200 web-1 /"},
		{Host: "www.example.com:8080", Want: "200 web-1 /"},
		{Host: "www.example.com:8081", Want: "404"},
		{Host: "one.web.example.com", Want: "200 web-1 /"},
		{Host: "two.one.web.example.com", Want: "200 web-1 /"},
		{Host: "web.example.com", Want: "404"},
		{Host: "web.example.com:9090", Want: "200 web-1 /"},
		{Host: "api.example.com", Want: "200 api-1 /"},
		{Host: webHost, Want: "404"},
	}},
	{name: "service-wildcard-and-named", requests: []request{
		{Host: webHost, Want: "200 web-1 /"},
		{Host: "api.example.com", Want: "200 api-1 /"},
		{Host: apiHost, Want: "404"},
		{Host: "db.ingress.consul", Want: "404"},
	}},
}

// routerHeaders are the request that meets all conditions of the case, and one
// more for each that it does not meet.
func routerHeaders() []request {
	header := func(over ...string) map[string]string {
		out := map[string]string{"x-exact": "one", "x-prefix": "one-1", "x-suffix": "1-one", "x-regex": "one", "x-present": "", "x-invert": "one"}
		for i := 0; i < len(over); i += 2 {
			out[over[i]] = over[i+1]
		}
		return out
	}
	const path = "/all?exact=one&regex=one&present="
	out := []request{
		{Host: webHost, Path: path, Header: header("x-present", "1"), Want: "200 api-1 " + path},
		{Host: webHost, Path: path, Header: header("x-present", "1"), Method: "PUT", Want: "200 api-1 " + path},
		{Host: webHost, Path: path, Header: header("x-present", "1"), Method: "POST", Want: "200 web-1 " + path},
		{Host: webHost, Method: "DELETE", Want: "200 api-1 /"},
	}
	for _, miss := range [][2]string{
		{"x-exact", "one-1"}, {"x-prefix", "1-one"}, {"x-suffix", "one-1"}, {"x-regex", "one-1"}, {"x-invert", "two"}, {"x-absent", "1"},
	} {
		out = append(out, request{Host: webHost, Path: path, Header: header("x-present", "1", miss[0], miss[1]), Want: "200 web-1 " + path})
	}
	for _, path := range []string{"/all?exact=two&regex=one&present=", "/all?exact=one&regex=one-1&present=", "/all?exact=one&regex=one"} {
		out = append(out, request{Host: webHost, Path: path, Header: header("x-present", "1"), Want: "200 web-1 " + path})
	}
	return out
}

// balancing are the cases in which the instances decide.
var balancing = []behaviour{
	{name: "resolver-subsets", requests: []request{
		{Host: webHost, Want: "200 web-1 /"},
		{Host: webHost, Times: 6, Want: "6 x 200 web-1 /"}, // the other of v1 does not pass
	}},
	{name: "resolver-redirect", requests: []request{
		{Host: webHost, Want: "200 new-1 /"},
		{Host: webHost, Times: 6, Want: "6 x 200 new-1 /"}, // the other is not of v2
	}},
	{name: "failover-targets", with: critical("web", 0), requests: []request{
		{Host: webHost, Times: 1, Want: "200 web-2 /"},
		{Host: webHost, Times: 6, Want: "6 x 200 web-2 /"},
	}},
	{name: "failover-service", with: critical("web", 0), requests: []request{
		{Host: webHost, Want: "200 standby-1 /"},
	}},
	{name: "limits-ejection", with: certainEjection, requests: []request{
		{Host: webHost, Times: 2, Want: "200 web-1 /, 200 web-2 /"},
		{Host: webHost, Times: 6, Script: "fail-at web-1 503", Want: "3 x 200 web-2 /, 3 x 503 web-1 /"},
		{Host: webHost, Times: 6, Want: "6 x 200 web-2 /"}, // the third failure ejected the other
	}},
	{name: "load-balancers-hash", requests: []request{
		{Host: "a.ingress.consul", Want: "200 a-1 /"},
		{Host: "a.ingress.consul", Header: map[string]string{"x-user": "alice"}, Want: "200 a-1 /"},
		{Host: "a.ingress.consul", Header: map[string]string{"cookie": "session=1; lasting=2"}, Want: "200 a-1 /"},
		{Host: "d.ingress.consul", Path: "/a", Want: "200 a-1 /a"},
		{Host: "d.ingress.consul", Path: "/", Want: "200 d-1 /"},
		{Host: "c.ingress.consul", Times: 100, Shares: map[string]float64{"200 a-1 /": 0.5, "200 b-1 /": 0.5}},
	}},
	{name: "load-balancers-hash, several instances", file: "load-balancers-hash", with: instances(map[string]int{"a": 4, "b": 4}), requests: []request{
		{Host: "d.ingress.consul", Want: "200 d-1 /"},
		{Host: "a.ingress.consul", Header: map[string]string{"x-user": "alice"}, Times: 5, Want: "5 x 200 a-4 /"},
		{Host: "a.ingress.consul", Header: map[string]string{"x-user": "carol"}, Times: 5, Want: "5 x 200 a-3 /"},
		{Host: "a.ingress.consul", Header: map[string]string{"cookie": "session=1; lasting=2; given=3"}, Times: 5, Want: "5 x 200 a-4 /"},
		{Host: "b.ingress.consul", Times: 5, Want: "5 x 200 b-3 /"}, // by the client's address
	}},
	{name: "limits", requests: []request{
		{Host: apiHost, Want: "200 api-1 /"},
		{Host: apiHost, Script: "hold", Times: 40, Hold: 10, Refused: 10, Want: "30 x 200 api-1 /, 10 x 503"},
	}},
}

// connections are the cases about listeners, and about what they log.
var connections = []behaviour{
	{name: "http2", requests: []request{
		{Host: "web.example.com", HTTP2: true, Want: "200 web-1 /", Has: []string{"answer: protocol HTTP/2.0", "service: protocol HTTP/2.0"}},
		{Host: "web.example.com", Want: "200 web-1 /", Has: []string{"answer: protocol HTTP/1.1", "service: protocol HTTP/2.0"}},
		{Host: "example.com", HTTP2: true, Want: "404"},
	}},
	{name: "grpc", requests: []request{
		{Host: "rpc.ingress.consul", Port: 9000, GRPC: true, Want: "OK rpc-1 /grpc.health.v1.Health/Check"},
		{Host: "other.ingress.consul", Port: 9000, GRPC: true, Want: "Unimplemented"},
	}},
	{name: "tls-listener", requests: []request{
		{Host: webHost, Want: "200 web-1 /"},
		{Host: apiHost, Port: 8443, TLS: tls.VersionTLS13, Want: "200 api-1 /", Has: []string{"answer: TLS 1.3", "service: x-forwarded-proto: https"}},
		{Host: apiHost, Port: 8443, TLS: tls.VersionTLS12, Want: "200 api-1 /", Has: []string{"answer: TLS 1.2"}},
		{Host: "rpc.ingress.consul", Port: 8444, TLS: tls.VersionTLS13, Want: "200 rpc-1 /"},
		{Host: "rpc.ingress.consul", Port: 8444, TLS: tls.VersionTLS13, GRPC: true, Want: "OK rpc-1 /grpc.health.v1.Health/Check"},
		{Host: "rpc.ingress.consul", Port: 8444, TLS: tls.VersionTLS11, Want: "remote error: tls: protocol version not supported"},
	}},
	{name: "tcp", requests: []request{
		{Host: "db", Port: 5432, Times: 6, Want: "3 x 200 db-1 /, 3 x 200 db-2 /"},
	}},
	{name: "mesh-tls", requests: []request{
		{Host: webHost, Want: "200 web-1 /", Has: []string{"service: TLS 1.2"}},
	}},
	{name: "request-headers-size-central", requests: []request{
		{Host: webHost, Padding: 79 << 10, Want: "200 web-1 /"},
		{Host: webHost, Padding: 80 << 10, Want: "431"},
	}},
	{name: "access-logs-json", requests: []request{
		{Host: webHost, Want: "200 web-1 /", Has: []string{
			`log: list: ["HTTP/1.1"]`, `log: nested: {"code":200}`, `log: who: "CLIENT:PORT"`,
		}},
		{Host: "nobody", Want: "404", Has: []string{`log: nested: {"code":404}`}},
		{Host: "db", Port: 5432, Want: "200 db-1 /", Has: []string{`log: nested: {"code":0}`}},
	}},
	{name: "access-logs-text", with: logToStdout, requests: []request{
		{Host: webHost, Want: "200 web-1 /", Has: []string{"log: text: TIME 200"}},
		{Host: "nobody", Want: "404", Has: []string{"log: text: TIME 404"}},
		{Host: "db", Port: 5432, Want: "200 db-1 /", Has: []string{"log: text: TIME 0"}},
	}},
}

// critical lets an instance fail its check.
func critical(service string, instance int) func(*lab.GatewayCase) {
	return func(c *lab.GatewayCase) { c.Services[service][instance]["Status"] = "critical" }
}

// instances gives services more instances.
func instances(numbers map[string]int) func(*lab.GatewayCase) {
	return func(c *lab.GatewayCase) {
		for service, n := range numbers {
			c.Services[service] = make([]map[string]any, n)
		}
	}
}

// certainEjection gives web a second instance, and leaves no chance to whether
// one that fails is ejected.
func certainEjection(c *lab.GatewayCase) {
	c.Services["web"] = make([]map[string]any, 2)
	for _, e := range c.Entries {
		if defaults, ok := e["Defaults"].(map[string]any); ok {
			check, _ := defaults["PassiveHealthCheck"].(map[string]any)
			check["EnforcingConsecutive5xx"] = 100
		}
	}
}

// logToStdout gives each Envoy the access log for itself: its standard output
// takes the place of one file for both.
func logToStdout(c *lab.GatewayCase) {
	logs, _ := c.Entries[0]["AccessLogs"].(map[string]any)
	logs["Path"] = "/dev/stdout"
}
