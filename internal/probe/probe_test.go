package probe

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// options are those of a test. The timeout is for what stays silent, and the pause for machines that are busy with
// other tests.
func options(target string) Options {
	return Options{Target: target, Version: "v1.2.3", Timeout: 5 * time.Second, pause: time.Second}
}

// run probes, and returns the only result.
func run(t *testing.T, o Options) Result {
	t.Helper()
	report, err := o.Run(t.Context())
	if err != nil || len(report.Results) != 1 {
		t.Errorf("%v, %+v, want one result", err, report)
		return Result{}
	}
	return report.Results[0]
}

// words are a conclusion in one line.
func words(c Conclusion) string {
	all := []string{string(c.Finding)}
	for _, said := range []struct {
		word string
		is   bool
	}{{"envoy", c.Envoy}, {"tls", c.TLS}, {"speaks first", c.SpeaksFirst}, {"closes headers", c.ClosesHeaders}} {
		if said.is {
			all = append(all, said.word)
		}
	}
	if c.Server != "" {
		all = append(all, c.Server)
	}
	all = append(all, c.Versions...)
	if c.Trust != "" {
		all = append(all, string(c.Trust))
	}
	return strings.Join(append(all, c.Exceptions...), ", ")
}

// TestConclusions probes a fake listener of each type, many at a time: they mostly wait.
func TestConclusions(t *testing.T) {
	t.Parallel()
	status := func(code int, service bool) fakeListener {
		return fakeListener{serve: answer{server: "envoy", service: service, status: code}.serve}
	}
	with := func(f fakeListener, mode Finding) fakeListener { f.mode = mode; return f }
	nginx := answer{server: "nginx/1.26.3", status: 200}.serve
	shows := answer{server: "envoy", service: true, status: 200, shows: true}.serve
	cases := []struct {
		name string
		fake fakeListener
		with func(o *Options)
		want string
	}{
		{"Envoy, off", fakeListener{mode: Off, serve: envoy}, nil, "off, envoy"},
		{"Envoy, permissive", fakeListener{mode: Permissive, serve: envoy}, nil, "permissive, envoy, v1, v2"},
		{"Envoy, strict", fakeListener{mode: Strict, serve: envoy}, nil, "strict, envoy, v1, v2"},
		{"Envoy, permissive, v1", fakeListener{mode: Permissive, versions: "v1", serve: envoy}, nil, "permissive, envoy, v1"},
		{"Envoy, permissive, v2", fakeListener{mode: Permissive, versions: "v2", serve: envoy}, nil, "permissive, envoy, v2"},
		{"Envoy, strict, v1", fakeListener{mode: Strict, versions: "v1", serve: envoy}, nil, "strict, envoy, v1"},
		{"Envoy, strict, v2", fakeListener{mode: Strict, versions: "v2", serve: envoy}, nil, "strict, envoy, v2"},
		{"Envoy, strict, untrusted", fakeListener{mode: Strict, untrusted: true, serve: envoy}, nil, "strict, not for this host"},
		{"Envoy, permissive, trusted, the service shows it", fakeListener{mode: Permissive, serve: shows}, nil, "permissive, envoy, v1, v2, trusted"},
		{"Envoy, permissive, untrusted, the service shows it", fakeListener{mode: Permissive, untrusted: true, serve: shows}, nil, "permissive, envoy, v1, v2, ignored"},
		{"another source, the service shows it", fakeListener{mode: Strict, serve: shows}, func(o *Options) { o.Source = netip.MustParseAddr("203.0.113.9") }, "strict, envoy, v1, v2, trusted"},

		{"the service answers 400, off", with(status(400, true), Off), nil, "off, envoy"},
		{"the service answers 400, permissive", with(status(400, true), Permissive), nil, "permissive, envoy, v1, v2"},
		{"the service answers 400, strict", with(status(400, true), Strict), nil, "strict, envoy, v1, v2"},
		{"Envoy has no route, off", with(status(404, false), Off), nil, "off, envoy"},
		{"Envoy has no route, permissive", with(status(404, false), Permissive), nil, "permissive, envoy, v1, v2"},
		{"Envoy has no instance, strict", with(status(503, false), Strict), nil, "strict, envoy, v1, v2"},

		{"a balancer adds headers, off", fakeListener{mode: Off, serve: envoyBehindSender}, nil, "400 to all, envoy"},

		{"TLS, off", fakeListener{mode: Off, serve: envoy, serverTLS: serverTLS(t, "")}, nil, "off, envoy, tls"},
		{"TLS, permissive", fakeListener{mode: Permissive, serve: envoy, serverTLS: serverTLS(t, "")}, nil, "permissive, envoy, tls, v1, v2"},
		{"TLS, strict", fakeListener{mode: Strict, serve: envoy, serverTLS: serverTLS(t, "")}, nil, "strict, envoy, tls, v1, v2"},
		{"TLS, strict, v1", fakeListener{mode: Strict, versions: "v1", serve: envoy, serverTLS: serverTLS(t, "")}, nil, "strict, envoy, tls, v1"},
		{"TLS only, strict", fakeListener{mode: Strict, serve: envoy, serverTLS: serverTLS(t, "")}, func(o *Options) { o.TLS = true }, "strict, envoy, tls, v1, v2"},
		{"TLS, strict, untrusted", fakeListener{mode: Strict, untrusted: true, serve: envoy, serverTLS: serverTLS(t, "")}, nil, "strict, not for this host"},
		{"TLS, the server name, permissive", fakeListener{mode: Permissive, serve: envoy, serverTLS: serverTLS(t, "www.example.com")}, func(o *Options) { o.Host = "www.example.com" }, "permissive, envoy, tls, v1, v2"},
		{"TLS, the server name with a port", fakeListener{mode: Off, serve: envoy, serverTLS: serverTLS(t, "www.example.com")}, func(o *Options) { o.Host = "www.example.com:8443" }, "off, envoy, tls"},
		{"TLS, another server name, permissive", fakeListener{mode: Permissive, serve: envoy, serverTLS: serverTLS(t, "www.example.com")}, nil, "reads headers and closes, tls"},
		{"TLS, another server name, off", fakeListener{mode: Off, serve: envoy, serverTLS: serverTLS(t, "www.example.com")}, nil, "closes"},
		{"TLS of a server that answers 400 to HTTP", fakeListener{mode: Off, serve: answer{server: "nginx", status: 400}.serve}, nil, "no difference, nginx"},
		{"no TLS, and TLS only", fakeListener{mode: Off, serve: envoy}, func(o *Options) { o.TLS = true }, "no TLS, envoy, tls"},

		{"nginx", fakeListener{mode: Off, serve: nginx}, nil, "off, nginx/1.26.3"},
		{"nginx with proxy_protocol", fakeListener{mode: Strict, onePart: true, serve: nginx}, nil, "strict, nginx/1.26.3, v1, v2, PROXY v2 in two segments"},
		{"a server that closes what is not HTTP", fakeListener{mode: Off, serve: onlyHTTP}, nil, "off, closes headers, nginx/1.26.3"},
		{"a server that hangs on what is not HTTP", fakeListener{mode: Off, serve: hangs}, nil, "other, nginx/1.26.3"},
		{"a tcp service that hangs on headers", fakeListener{mode: Off, serve: hangs}, asTCP, "silent"},
		{"nginx with TLS", httpsOnly(fakeListener{mode: Off, serve: nginx, serverTLS: serverTLS(t, "")}), nil, "off, tls, nginx/1.26.3"},
		{"nginx with TLS and proxy_protocol", httpsOnly(fakeListener{mode: Strict, serve: nginx, serverTLS: serverTLS(t, "")}), nil, "strict, tls, nginx/1.26.3, v1, v2"},
		{"a server that refuses TLVs", fakeListener{mode: Strict, refuse: "usher-probe\x04", serve: nginx}, nil, "strict, nginx/1.26.3, v1, v2, PROXY v2 with TLVs"},

		{"tcp that speaks first, off", fakeListener{mode: Off, serve: greeter}, asTCP, "off, speaks first"},
		{"tcp that speaks first, strict", fakeListener{mode: Strict, serve: greeter}, asTCP, "strict, v1, v2"},
		{"tcp that answers, off", fakeListener{mode: Off, serve: answerer}, asTCP, "off"},
		{"tcp that answers, permissive", fakeListener{mode: Permissive, serve: answerer}, asTCP, "permissive, v1, v2"},
		{"tcp that answers, permissive, untrusted", fakeListener{mode: Permissive, untrusted: true, serve: answerer}, asTCP, "permissive, v1, v2"},
		{"tcp that answers, strict", fakeListener{mode: Strict, serve: answerer}, asTCP, "strict, v1, v2"},
		{"tcp that answers, an HTTP request, permissive", fakeListener{mode: Permissive, serve: answerer}, nil, "permissive, v1, v2"},
		{"tcp that echoes, an HTTP request, off", fakeListener{mode: Off, serve: greeter}, nil, "off"},
		{"tcp that waits, off", fakeListener{mode: Off, serve: waiter}, asTCP, "silent"},
		{"tcp that waits, permissive", fakeListener{mode: Permissive, serve: waiter}, asTCP, "permissive, v1, v2"},
		{"tcp that waits, strict", fakeListener{mode: Strict, serve: waiter}, asTCP, "strict, v1, v2"},
		{"tcp that closes", fakeListener{mode: Off, serve: closer}, asTCP, "closes"},
		{"tcp without an instance, off", fakeListener{mode: Off, serve: ends}, asTCP, "closes"},
		{"tcp without an instance, permissive", fakeListener{mode: Permissive, serve: ends}, asTCP, "reads headers and closes"},
		{"tcp without an instance, strict", fakeListener{mode: Strict, serve: ends}, asTCP, "reads headers and closes"},
		{"tcp, strict, untrusted", fakeListener{mode: Strict, untrusted: true, serve: answerer}, asTCP, "reads headers and closes"},
		{"tcp with TLS, strict", fakeListener{mode: Strict, serve: waiter, serverTLS: serverTLS(t, "")}, asTCP, "strict, tls, v1, v2"},
		{"HTTP, a line of text, off", fakeListener{mode: Off, serve: nginx}, asTCP, "off, nginx/1.26.3"},
		{"HTTP, a line of text, permissive", fakeListener{mode: Permissive, serve: nginx}, asTCP, "permissive, nginx/1.26.3, v1, v2"},
	}
	results := make([]Result, len(cases))
	slots := make(chan struct{}, 24)
	var running sync.WaitGroup
	for i, tc := range cases {
		o := options(tc.fake.start(t))
		if tc.with != nil {
			tc.with(&o)
		}
		running.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] = run(t, o)
		})
	}
	running.Wait()
	for i, tc := range cases {
		if got := words(results[i].Conclusion); got != tc.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tc.name, got, tc.want)
			for _, a := range results[i].Answers {
				t.Logf("%-40s %s", a.sent(), a.cameBack(time.Second))
			}
		}
	}
}

// TestConclude has answers that no listener gives on purpose.
func TestConclude(t *testing.T) {
	t.Parallel()
	ok := Answer{Reaction: HTTP, Status: 200}
	closed, silent := Answer{Reaction: Closed}, Answer{Reaction: Silence}
	secure := Answer{Reaction: HTTP, Status: 200, OverTLS: true, Handshake: true}
	for _, tc := range []struct {
		name              string
		plain, v1, v2, of Answer // of is broken
		want              Finding
	}{
		{"a connection in between is refused", ok, ok, Answer{Reaction: Refused}, closed, Other},
		{"one header hangs", ok, closed, silent, closed, Other},
		{"without a header, nothing comes", silent, ok, ok, closed, Other},
		{"everything is answered", ok, ok, ok, ok, NoDecision},
		{"a broken header is answered over TLS", secure, secure, secure, secure, Permissive},
	} {
		var answers []Answer
		for i, a := range []Answer{tc.plain, tc.v1, tc.v2, tc.of} {
			a.Sent = []string{plain, v1, v2, broken}[i]
			answers = append(answers, a)
		}
		if got := conclude(answers).Finding; got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

func asTCP(o *Options) { o.TCP = true }

func TestNothingListens(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	r := run(t, options(l.Addr().String()))
	if r.Conclusion.Finding != NothingListens || len(r.Answers) != 1 {
		t.Errorf("%+v, want that nothing listens, after one connection", r)
	}
}

// TestEachAddressOfANameIsProbed has a name with an address where a listener is, twice, and one where none is.
func TestEachAddressOfANameIsProbed(t *testing.T) {
	t.Parallel()
	_, port, err := net.SplitHostPort((&fakeListener{mode: Strict, serve: envoy}).start(t))
	if err != nil {
		t.Fatal(err)
	}
	o := options("gateway.example:" + port)
	var asked string
	o.Lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
		asked = host
		return []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.1"), netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")}, nil
	}
	report, err := o.Run(t.Context())
	if err != nil || asked != "gateway.example" {
		t.Fatalf("%v, asked for %q", err, asked)
	}
	if len(report.Results) != 2 || report.Results[0].Conclusion.Finding != Strict || report.Results[1].Conclusion.Finding != NothingListens {
		t.Errorf("got %+v, want 127.0.0.1 strict, and nothing at 127.0.0.2", report.Results)
	}
	if got := report.Modes(); !slices.Equal(got, []string{"strict"}) {
		t.Errorf("the modes are %q, want strict alone: where nothing listens is no mode", got)
	}
	if got, want := report.Summary(), "gateway.example:"+port+" has 2 addresses, and they differ: 127.0.0.1 is strict, 127.0.0.2 is nothing listens."; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}

	o.Lookup = func(context.Context, string) ([]netip.Addr, error) {
		ip, all := netip.MustParseAddr("192.0.2.1"), []netip.Addr{}
		for range maxAddresses + 1 {
			all, ip = append(all, ip), ip.Next()
		}
		return all, nil
	}
	if all, err := o.addresses(t.Context()); err != nil || len(all) != maxAddresses {
		t.Errorf("%v, %d addresses are probed, want %d", err, len(all), maxAddresses)
	}

	o.Lookup = func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }
	if _, err := o.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "the name has no address") {
		t.Errorf("%v, want that the name has no address", err)
	}
}

// TestAProbeIsNoLoad counts the connections of the longest probe.
func TestAProbeIsNoLoad(t *testing.T) {
	t.Parallel()
	o := options((&fakeListener{mode: Off, serve: closer}).start(t))
	o.TCP = true
	began := time.Now()
	r := run(t, o)
	if len(r.Answers) > 20 {
		t.Errorf("%d connections, want 20 at most", len(r.Answers))
	}
	if took := time.Since(began); took > 5*o.Timeout {
		t.Errorf("it took %v, want five timeouts at most", took)
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		options          Options
		want, serverName string
	}{
		{Options{Target: "gateway:8080"}, "GET / HTTP/1.1\r\nHost: gateway:8080\r\nUser-Agent: usher-probe/v1\r\nAccept: */*\r\n\r\n", "gateway"},
		{
			Options{Target: "gateway:8080", Host: "www.example.com", Path: "/a?b", Method: "HEAD"},
			"HEAD /a?b HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: usher-probe/v1\r\nAccept: */*\r\n\r\n", "www.example.com",
		},
		{Options{Target: "[fe80::1%eth0]:8080"}, "GET / HTTP/1.1\r\nHost: [fe80::1]:8080\r\nUser-Agent: usher-probe/v1\r\nAccept: */*\r\n\r\n", ""},
		{Options{Target: "192.0.2.1:8080", TCP: true}, "usher-probe/v1 looks for PROXY protocol; please ignore this line\r\n", ""},
	} {
		tc.options.Version, tc.options.Timeout = "v1", time.Second
		if err := tc.options.Check(); err != nil {
			t.Errorf("%+v: %v", tc.options, err)
		}
		if got := string(tc.options.payload()); got != tc.want {
			t.Errorf("%+v: got %q, want %q", tc.options, got, tc.want)
		}
		if got := tc.options.serverName(); got != tc.serverName {
			t.Errorf("%+v: the server name is %q, want %q", tc.options, got, tc.serverName)
		}
	}
}

// TestHeaders reads the headers with which connections begin.
func TestHeaders(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ target, source, want string }{
		{"198.51.100.20:8080", "", "192.0.2.117:40117 198.51.100.20:8080"},
		{"[2001:db8::20]:8080", "", "[2001:db8::117]:40117 [2001:db8::20]:8080"},
		{"198.51.100.20:8080", "203.0.113.9", "203.0.113.9:40117 198.51.100.20:8080"},
		{"198.51.100.20:8080", "2001:db8::9", "[2001:db8::9]:40117 [2001:db8:1::117]:8080"},
		{"[2001:db8::20]:8080", "203.0.113.9", "203.0.113.9:40117 198.51.100.117:8080"},
	} {
		o := options(tc.target)
		if tc.source != "" {
			o.Source = netip.MustParseAddr(tc.source)
		}
		all, err := o.beginningsFor(netip.MustParseAddrPort(tc.target))
		if err != nil || all[0].name != plain || len(all[0].all()) > 0 {
			t.Fatalf("%v, %+v, want that the first one has no header", err, all[0])
		}
		for _, b := range all[1:] {
			header, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b.all())))
			switch {
			case b.name == broken:
				if err == nil {
					t.Errorf("%s: %s can be read", tc.target, b.name)
				}
				continue
			case err != nil:
				t.Errorf("%s: %s: %v", tc.target, b.name, err)
				continue
			case b.name == local:
				if !header.Command.IsLocal() {
					t.Errorf("%s: %s is none", tc.target, b.name)
				}
				continue
			}
			if got := header.SourceAddr.String() + " " + header.DestinationAddr.String(); got != tc.want {
				t.Errorf("%s from %q, %s: got %s, want %s", tc.target, tc.source, b.name, got, tc.want)
			}
		}
	}
}

func TestOnlyTLSIsSpoken(t *testing.T) {
	t.Parallel()
	o := options((&fakeListener{mode: Off, serve: envoy, serverTLS: serverTLS(t, "")}).start(t))
	o.TLS = true
	if r := run(t, o); slices.ContainsFunc(r.Answers, func(a Answer) bool { return !a.OverTLS }) {
		t.Errorf("%+v, want TLS only", r.Answers)
	}
}

// TestAlert has a server that answers with a TLS alert (RFC 8446, section 6).
func TestAlert(t *testing.T) {
	t.Parallel()
	o := options((&fakeListener{mode: Off, serve: func(conn net.Conn, r *bufio.Reader, _ string) {
		_, _ = r.ReadByte()
		fmt.Fprint(conn, "\x15\x03\x01\x00\x02\x02\x46")
		waiter(conn, r, "")
	}}).start(t))
	r := run(t, o)
	for _, a := range r.Answers {
		want := map[bool]string{false: "a TLS alert", true: "a TLS alert: protocol version not supported"}[a.OverTLS]
		if got, _, _ := strings.Cut(a.cameBack(o.Timeout), ", after"); got != want && got != "a TLS alert" {
			t.Errorf("%s: %s, want %s", a.sent(), got, want)
		}
	}
	if r.Conclusion.Finding != ClosesAll || len(r.Answers) != 16 {
		t.Errorf("%s after %d connections, want that it closes all, after 16", r.Conclusion.Finding, len(r.Answers))
	}
}
