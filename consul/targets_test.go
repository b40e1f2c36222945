package consul

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/usherproxy/usher/internal/retry"
)

func TestAddressesOfConsulAreAList(t *testing.T) {
	for _, test := range []struct {
		http, grpc string
		env        vars
		want       []string
		ports      []string
	}{
		{want: []string{"http://localhost:8500"}, ports: []string{""}},
		{http: "a:8500, https://b:8501,unix:///run/c.sock", want: []string{"http://a:8500", "https://b:8501", "unix:///run/c.sock"}, ports: []string{"", "", ""}},
		{env: vars{"CONSUL_HTTP_ADDR": "a:1,b:2", "CONSUL_HTTP_SSL": "true"}, want: []string{"https://a:1", "https://b:2"}, ports: []string{"", ""}},
		{http: "a:1,b:2", grpc: "g:8502", want: []string{"http://a:1", "http://b:2"}, ports: []string{"dns:///g:8502", "dns:///g:8502"}},
		{http: "a:1,b:2", env: vars{"CONSUL_GRPC_ADDR": "a:8502,b:8502"}, want: []string{"http://a:1", "http://b:2"}, ports: []string{"dns:///a:8502", "dns:///b:8502"}},
	} {
		c := newTestClient(t, Config{HTTPAddr: test.http, GRPCAddr: test.grpc, Getenv: test.env.get})
		var got, ports []string
		for _, target := range c.targets.all {
			got, ports = append(got, target.String()), append(ports, target.grpc.name)
		}
		if !slices.Equal(got, test.want) || !slices.Equal(ports, test.ports) || c.Address() != test.want[0] {
			t.Errorf("%q, %q, %v: %q with gRPC ports %q, want %q and %q", test.http, test.grpc, test.env, got, ports, test.want, test.ports)
		}
	}
}

// TestTheNextAddressIsUsedForEverything ends the agent that is in use. Usher's queries, its watchdog and its ACL checks go
// to the other one, whose indexes are lower, and stay there when the first one answers again.
func TestTheNextAddressIsUsedForEverything(t *testing.T) {
	first, second := newFakeConsul(t), newFakeConsul(t)
	const roots = `{"TrustDomain": "x.consul", "Roots": [{"RootCert": "pem"}]}`
	for range 5 {
		first.set("/v1/connect/ca/roots", reply{body: roots})
	}
	first.set(servicesPath, servicesAnswer("web"))
	second.set("/v1/connect/ca/roots", reply{body: roots})
	second.set(servicesPath, servicesAnswer("web", "api"))
	log := &logRecorder{}
	metrics := NewMetrics(nil)
	client := newTestClient(t, Config{HTTPAddr: first.url + "," + second.url, Logger: slog.New(log), Metrics: metrics})
	w := NewWatcher(client, WatcherOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := subscribeTo(ctx, t, w, servicesQuery)
	defer cancel()
	rows := func(n int) func() bool {
		return func() bool {
			v, ok := resultOf(s, servicesQuery).value.(*gatewayServices)
			return ok && len(v.services) == n
		}
	}
	until(t, rows(1))
	until(t, func() bool { return w.watchdog.failure() == nil })

	gone := func(r reply) {
		for _, path := range []string{"/v1/connect/ca/roots", servicesPath, "/v1/config/proxy-defaults"} {
			first.set(path, r)
		}
	}
	gone(reply{status: http.StatusInternalServerError, body: "No cluster leader"})
	until(t, func() bool { return client.Address() == second.url })
	until(t, rows(2))
	until(t, func() bool { return resultOf(s, servicesQuery).err == nil })
	if err := client.authorize(t.Context(), "token", theGateway); err == nil || !second.wasAsked("/v1/internal/acl/authorize") || first.wasAsked("/v1/internal/acl/authorize") {
		t.Errorf("an ACL check (%v) did not go to the address in use", err)
	}
	if at := client.grpcAddress(agent{}).host; at != "127.0.0.1:8502" {
		t.Errorf("the gRPC port is at %s", at)
	}
	until(t, func() bool {
		return strings.Contains(w.Warning(), "Consul does not answer at "+first.url+", and Usher uses "+second.url)
	})
	if in, out := testutil.ToFloat64(metrics.inUse.WithLabelValues(second.url)), testutil.ToFloat64(metrics.inUse.WithLabelValues(first.url)); in != 1 || out != 0 {
		t.Errorf("usher_consul_address_in_use is %v for the address in use, and %v for the other", in, out)
	}
	lines := log.take()
	changes := slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return !strings.Contains(line, "usher uses another one") })
	if len(changes) != 1 || slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, "snapshot seems to have been restored") }) {
		t.Errorf("the log has %q, want one line about the change of the address, and none about a restore", lines)
	}

	gone(reply{body: roots})
	w.watchdog.note([]checkup{{client.targets.all[0], nil}}, nil)
	if w.Warning() != "" || client.Address() != second.url {
		t.Errorf("after the first address answers again, the warning is %q, and %s is in use", w.Warning(), client.Address())
	}
	s.close()
	cancel()
}

// flakyAgents are agents by host. One that is down does not answer.
type flakyAgents struct {
	mu     sync.Mutex
	down   map[string]bool
	asked  map[string]int // by host
	toggle func(host string, asked int)
}

// RoundTrip implements http.RoundTripper.
func (f *flakyAgents) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked[r.URL.Host]++
	if f.toggle != nil {
		f.toggle(r.URL.Host, f.asked[r.URL.Host])
	}
	if f.down[r.URL.Host] {
		return nil, errors.New("connection refused")
	}
	header := http.Header{"X-Consul-Index": {"7"}, "X-Consul-Knownleader": {"true"}}
	return &http.Response{StatusCode: http.StatusOK, Header: header, Body: http.NoBody, Request: r}, nil
}

func (f *flakyAgents) set(down ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = map[string]bool{}
	for _, host := range down {
		f.down[host] = true
	}
}

// runFlakyAgents runs a watchdog with three agents, a, b and c.
func runFlakyAgents(t *testing.T, f *flakyAgents) *watchdog {
	t.Helper()
	f.asked = map[string]int{}
	client := newTestClient(t, Config{HTTPAddr: "a:1,b:1,c:1"})
	client.watchdogHTTP.Transport = f
	d := newWatchdog(client, newWatchManager(client, time.Minute))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); d.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return d
}

func TestAddressesAreTriedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flakyAgents{}
		d := runFlakyAgents(t, f)
		for _, step := range []struct {
			down []string
			want string
		}{
			{nil, "http://a:1"},
			{[]string{"a:1"}, "http://b:1"},
			{nil, "http://b:1"},
			{[]string{"b:1"}, "http://c:1"},
			{[]string{"c:1"}, "http://a:1"},
			{[]string{"a:1", "b:1"}, "http://c:1"},
		} {
			f.set(step.down...)
			time.Sleep(2 * stayTime)
			synctest.Wait()
			if got := d.client.Address(); got != step.want || d.failure() != nil {
				t.Errorf("with %q down, usher uses %s (%v), want %s", step.down, got, d.failure(), step.want)
			}
		}
		f.set("a:1", "b:1", "c:1")
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := d.failure(); err == nil || strings.Count(err.Error(), "connection refused") != 3 || d.client.Address() != "http://c:1" {
			t.Errorf("with all down, the reason is %v at %s", err, d.client.Address())
		}
		f.set("a:1", "b:1")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if err := d.failure(); err != nil || d.client.Address() != "http://c:1" {
			t.Errorf("when the one in use is back: %v at %s", err, d.client.Address())
		}
	})
}

// TestAgentsThatFailByTurnsAreNotChangedAllTheTime has every second answer of each agent fail, for ten minutes.
func TestAgentsThatFailByTurnsAreNotChangedAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &flakyAgents{down: map[string]bool{}}
		f.toggle = func(host string, asked int) { f.down[host] = asked%2 == 0 }
		d := runFlakyAgents(t, f)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if changes := testutil.ToFloat64(d.client.metrics.addressChanges); changes < 1 || changes > 10*60/stayTime.Seconds() {
			t.Errorf("%v changes in ten minutes, want some, but at most one in %v", changes, stayTime)
		}
	})
}

// A command without a watcher uses the first address that answers, too.
func TestACommandFindsTheAddressThatAnswers(t *testing.T) {
	client := newTestClient(t, Config{HTTPAddr: "a:1,b:1,c:1"})
	f := &flakyAgents{asked: map[string]int{}}
	client.watchdogHTTP.Transport = f
	f.set("a:1")
	client.FindAnswering(t.Context())
	if client.Address() != "http://b:1" || client.Generation() != 1 {
		t.Errorf("it uses %s", client.Address())
	}
}

// A query that Consul limits is repeated when Consul says, and not all queries at the same moment.
func TestRetryAfterIsRespected(t *testing.T) {
	answer := func(header string) error {
		return statusError(&http.Response{StatusCode: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {header}}, Body: http.NoBody}, "")
	}
	for header, want := range map[string]time.Duration{"7": 7 * time.Second, "86400": maxRetryAfter, "0": 0, "-5": 0, "Wed, 21 Oct 2026 07:28:00 GMT": 0, "": 0} {
		if got := pauseAfter(answer(header), 1); got < want || got > want+want/4+retry.FirstPause {
			t.Errorf("Retry-After %q: the pause is %v, want about %v", header, got, want)
		}
	}
	var pauses []time.Duration
	for range 20 {
		pauses = append(pauses, pauseAfter(answer("7"), 1))
	}
	if slices.Min(pauses) == slices.Max(pauses) {
		t.Errorf("each pause is %v", pauses[0])
	}
}

// A name with several addresses: if the first one refuses the connection, the next one is tried.
func TestANameWithSeveralAddresses(t *testing.T) {
	c := newFakeConsul(t)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(c.url, "http://"))
	dns := serveDNS(t, [4]byte{127, 0, 0, 77}, [4]byte{127, 0, 0, 1})
	dialer := newDialer()
	dialer.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", dns)
	}}
	conn, err := dialer.DialContext(t.Context(), "tcp4", net.JoinHostPort("consul.example.", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.RemoteAddr().String(); got != "127.0.0.1:"+port {
		t.Errorf("it is connected to %s", got)
	}
}

// serveDNS answers all questions with these addresses, in their order, until the test ends.
func serveDNS(t *testing.T, ips ...[4]byte) (address string) {
	t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		socket.Close()
		<-done
	})
	go func() {
		defer close(done)
		for buf := make([]byte, 512); ; {
			n, from, err := socket.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.Additionals = true, nil
			for _, ip := range ips {
				if m.Questions[0].Type == dnsmessage.TypeA {
					header := dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60}
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: ip}})
				}
			}
			answer, _ := m.Pack() // written above
			_, _ = socket.WriteTo(answer, from)
		}
	}()
	return socket.LocalAddr().String()
}
