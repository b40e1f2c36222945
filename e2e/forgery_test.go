//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
)

// forgeryLab has http, TLS and tcp listeners in the modes that believe PROXY
// headers, each once for every address and once for trusted ones.
type forgeryLab struct{ *lab.TrustLab }

// TestForgedAddressesAreNeverUsed sends forged client addresses in every way: in
// requests, and in PROXY headers from the wrong address, at the wrong place or
// too late. None of them reaches the access log or the service. The matrix has
// the same for single headers; this test has what takes more.
func TestForgedAddressesAreNeverUsed(t *testing.T) {
	t.Parallel()
	l := startForgeryLab(t)
	for _, g := range l.Gateways {
		t.Run("envoy "+g.Version, func(t *testing.T) {
			t.Parallel()
			for _, story := range []struct {
				name string
				tell func(*forgeryLab, *testing.T, lab.TrustGateway)
			}{
				{"headers of the request", (*forgeryLab).checkRequestHeaders},
				{"a PROXY header from an untrusted address", (*forgeryLab).checkUntrusted},
				{"a second PROXY header", (*forgeryLab).checkSecondHeader},
				{"a PROXY header in the middle of a TLS handshake", (*forgeryLab).checkHandshake},
				{"a PROXY header in the TLS connection", (*forgeryLab).checkInsideTLS},
				{"silence until the timeout, then a plain request", (*forgeryLab).checkSilence},
			} {
				t.Run(story.name, func(t *testing.T) {
					t.Parallel()
					story.tell(l, t, g)
				})
			}
		})
	}
}

func startForgeryLab(t *testing.T) *forgeryLab {
	t.Helper()
	var listeners []lab.TestListener
	for _, protocol := range matrixProtocols {
		for _, mode := range []string{"permissive", "strict"} {
			for _, cidrs := range []bool{false, true} {
				listeners = append(listeners, lab.TestListener{Protocol: protocol, Settings: lab.ListenerSettings{Mode: mode, TrustedCIDRs: cidrs}})
			}
		}
	}
	return &forgeryLab{lab.StartTrustLab(t, listeners)}
}

// probes are a probe from a downstream at each listener of the protocols.
func (l *forgeryLab) probes(g lab.TrustGateway, from lab.Downstream, protocols ...string) []lab.Probe {
	var probes []lab.Probe
	for _, m := range l.Listeners {
		if slices.Contains(protocols, m.Protocol) {
			probes = append(probes, lab.Probe{Gateway: g, Listener: m, From: from, Address: g.Addresses[0]})
		}
	}
	return probes
}

// forgedHeaders are what clients write into requests to be taken for others.
var forgedHeaders = []http.Header{
	{"X-Forwarded-For": {lab.ForgedIP}},
	{"X-Forwarded-For": {lab.ForgedIP + ", 127.0.0.1"}},
	{"X-Forwarded-For": {lab.ForgedIP, lab.ForgedIP}},
	{"X-Forwarded-For": {"unknown, " + lab.ForgedIP}},
	{"X-Forwarded-For": {strings.Repeat(lab.ForgedIP+",", 100) + lab.ForgedIP}},
	{"X-Forwarded-For": {lab.ForgedIP + ":443"}},
	{"X-Forwarded-For": {lab.ForgedIP}, "X-Envoy-External-Address": {lab.ForgedIP}, "X-Envoy-Internal": {"true"}},
	{"X-Real-Ip": {lab.ForgedIP}, "Forwarded": {"for=" + lab.ForgedIP}, "True-Client-Ip": {lab.ForgedIP}},
	{"Connection": {"X-Forwarded-For"}, "X-Forwarded-For": {lab.ForgedIP}},
}

// checkRequestHeaders lies in requests. The last address of X-Forwarded-For, the
// whole of X-Envoy-External-Address, and the log have the true one.
func (l *forgeryLab) checkRequestHeaders(t *testing.T, g lab.TrustGateway) {
	var probes []lab.Probe
	for _, from := range []lab.Downstream{l.Trusted, l.Untrusted} {
		for _, p := range l.probes(g, from, "http", "https") {
			for _, name := range []string{"nothing", "v2, IPv4"} {
				for _, p.Header = range forgedHeaders {
					p.Preface = lab.PrefaceNamed(name)
					probes = append(probes, l.NewProbe(p))
				}
			}
		}
	}
	seen, _ := l.Observe(t, probes, lab.Always)
	for i, p := range probes {
		l.wantTrue(t, p, seen[i])
	}
}

// wantTrue wants a request that is not closed to be logged and passed on with
// the client that it truly has.
func (l *forgeryLab) wantTrue(t *testing.T, p lab.Probe, seen lab.Observation) {
	t.Helper()
	answer, client := trueClient(p, l)
	if seen.Response != answer || seen.Log != client {
		t.Errorf("%v, %v: the answer is %s and the log has %s, want %s and %s", p, p.Header, seen.Response, seen.Log, answer, client)
	}
	request, asked := l.Echo.Lookup(p.Path)
	if asked != (answer == "200") {
		t.Errorf("%v, %v: the answer is %s, and the service was asked: %v", p, p.Header, answer, asked)
	}
	if !asked {
		return
	}
	if last := seen.Service[strings.LastIndex(seen.Service, ",")+1:]; last != client {
		t.Errorf("%v, %v: the service's X-Forwarded-For ends with %s, want %s", p, p.Header, last, client)
	}
	if external := request.Header.Values("X-Envoy-External-Address"); external != nil && p.Symbols(external) != client {
		t.Errorf("%v, %v: the service got X-Envoy-External-Address %q, want %s", p, p.Header, external, client)
	}
}

// trueClient is the answer to a probe with the header "nothing" or "v2, IPv4", and
// the client that it has.
func trueClient(p lab.Probe, l *forgeryLab) (answer, client string) {
	believed := p.Preface.Bytes != "" && (!p.Listener.Settings.TrustedCIDRs || p.From.Host == l.Trusted.Host)
	answer, client = "200", "direct"
	switch {
	case believed:
		client = "client"
	case p.Listener.Settings.Mode == "strict":
		return "closed", "direct"
	}
	if p.Header.Get("Connection") != "" {
		answer = "400" // it would have the gateway drop its own header
	}
	return answer, client
}

// checkUntrusted has an address outside of trusted_cidrs write a header.
func (l *forgeryLab) checkUntrusted(t *testing.T, g lab.TrustGateway) {
	var probes []lab.Probe
	for _, p := range l.probes(g, l.Untrusted, matrixProtocols...) {
		for _, name := range []string{"v1, IPv4", "v1, IPv6", "v2, IPv4", "v2, IPv6", "v2, TLVs of AWS"} {
			if p.Preface = lab.PrefaceNamed(name); p.Listener.Settings.TrustedCIDRs {
				probes = append(probes, l.NewProbe(p))
			}
		}
	}
	seen, _ := l.Observe(t, probes, lab.Always)
	for i, p := range probes {
		if strict := p.Listener.Settings.Mode == "strict"; strict != (seen[i].Response == "closed") {
			t.Errorf("%v: the answer is %s", p, seen[i].Response)
		}
		if seen[i].Log != "direct" || strings.Contains(seen[i].Service, "client") {
			t.Errorf("%v: (%v), want nothing of the client in the header", p, seen[i])
		}
	}
}

// checkSecondHeader has a client behind a trusted balancer write one more header. On
// http it is a bad request; to a tcp service it is data. With TLS it comes in the
// middle of a handshake, which is a story of its own.
func (l *forgeryLab) checkSecondHeader(t *testing.T, g lab.TrustGateway) {
	want := map[string]lab.Observation{"http": {Response: "400", Log: "client", Service: "-"}, "tcp": {Response: "served", Log: "client", Service: "second"}}
	forged := lab.V2Header(lab.V2Proxy, lab.V2TCP6, lab.V2Addresses(lab.HeaderClient6, lab.HeaderTarget6))
	var probes []lab.Probe
	for _, p := range l.probes(g, l.Trusted, "http", "tcp") {
		for _, first := range []string{"v1, IPv4", "v2, IPv4"} {
			p.Preface = lab.PrefaceNamed(first)
			p.Preface.Bytes += forged
			p.Preface.SecondHeader = forged
			probes = append(probes, l.NewProbe(p))
		}
	}
	seen, _ := l.Observe(t, probes, lab.Always)
	for i, p := range probes {
		if want := want[p.Listener.Protocol]; seen[i] != want {
			t.Errorf("%v, then v2: (%v), want (%v)", p, seen[i], want)
		}
	}
}

// checkHandshake writes a header into the ClientHello, and into what the client
// sends next.
func (l *forgeryLab) checkHandshake(t *testing.T, g lab.TrustGateway) {
	for _, p := range l.probes(g, l.Trusted, "https") {
		for at := range 2 {
			p.Preface = lab.PrefaceNamed("v1, IPv6")
			p := l.NewProbe(p)
			answer := probeHandshake(t, p, func(conn net.Conn) net.Conn {
				return &interruptedConn{Conn: conn, at: at, text: lab.PrefaceNamed("v2, IPv4").Bytes}
			})
			if answer != "closed" {
				t.Errorf("%v, with a header in its message %d: the answer is %s", p, at, answer)
			}
			l.wantNothing(t, p)
		}
	}
}

// probeHandshake opens the probe's connection, and requests something in TLS on what
// wrap makes of it.
func probeHandshake(t *testing.T, p lab.Probe, wrap func(net.Conn) net.Conn) (answer string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.RequestTimeout)
	defer cancel()
	conn, err := p.From.DialFrom(ctx, p.Source, p.Target())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := p.Preface.WriteTo(conn); err != nil {
		t.Fatal(err)
	}
	secure := tls.Client(wrap(conn), &tls.Config{InsecureSkipVerify: true, ServerName: lab.ServiceHost})
	if err := secure.HandshakeContext(ctx); err != nil {
		return lab.NoResponse(err)
	}
	got, err := (&lab.ClientConn{Conn: secure, Reader: bufio.NewReader(secure)}).RoundTrip(p.Request(), "close")
	if err != nil {
		return lab.NoResponse(err)
	}
	return fmt.Sprint(got.Status)
}

// interruptedConn has a text in the middle of one of its writes.
type interruptedConn struct {
	net.Conn
	text string
	at   int // how many writes come before that one
}

func (c *interruptedConn) Write(b []byte) (int, error) {
	whole := b
	if c.at == 0 {
		whole = slices.Concat(b[:len(b)/2], []byte(c.text), b[len(b)/2:])
	}
	c.at--
	if _, err := c.Conn.Write(whole); err != nil {
		return 0, err
	}
	return len(b), nil
}

// checkInsideTLS writes a header where the request is expected.
func (l *forgeryLab) checkInsideTLS(t *testing.T, g lab.TrustGateway) {
	for _, p := range l.probes(g, l.Trusted, "https") {
		p.Preface = lab.PrefaceNamed("v1, IPv6")
		p := l.NewProbe(p)
		c := p.Request()
		secure, err := c.Connect(t.Context())
		if err != nil {
			t.Fatalf("%v: %v", p, err)
		}
		defer secure.Close()
		if _, err := io.WriteString(secure, lab.PrefaceNamed("v2, IPv4").Bytes); err != nil {
			t.Fatalf("%v: %v", p, err)
		}
		if got, err := secure.RoundTrip(c, "close"); err != nil || got.Status != http.StatusBadRequest {
			t.Errorf("%v, then a header in TLS: %d (%v), want 400", p, got.Status, err)
		}
		l.wantNothing(t, p)
	}
}

// wantNothing wants the service not to have been asked, and no line in the log
// that has the client of the forged header.
func (l *forgeryLab) wantNothing(t *testing.T, p lab.Probe) {
	t.Helper()
	if _, asked := l.Echo.Lookup(p.Path); asked {
		t.Errorf("%v: the service was asked", p)
	}
	if logged := p.Logged(t, lab.ReadTrustLog(t, p.Gateway.Log)); strings.Contains(logged, lab.HeaderClient.Addr().String()) {
		t.Errorf("%v: the log has %s", p, logged)
	}
}

// silence is longer than Envoy's listener_filters_timeout, which is 15 s.
const silence = 20 * time.Second

// checkSilence has clients of all listeners say nothing until the listener gives
// up on a header, and then make a plain request. It is too late for one, in every
// mode.
func (l *forgeryLab) checkSilence(t *testing.T, g lab.TrustGateway) {
	var work sync.WaitGroup
	defer work.Wait()
	for _, p := range l.probes(g, l.Trusted, matrixProtocols...) {
		p := l.NewProbe(p)
		work.Go(func() {
			if err := breakSilence(t.Context(), p); err != nil {
				t.Errorf("%v: %v", p, err)
			}
			l.wantNothing(t, p)
		})
	}
}

// breakSilence is nil if the gateway closes the silent connection.
func breakSilence(ctx context.Context, p lab.Probe) error {
	conn, err := p.From.DialFrom(ctx, p.Source, p.Target())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(silence)); err != nil {
		return err
	}
	if n, err := conn.Read(make([]byte, 1)); n > 0 || lab.NoResponse(err) != "closed" {
		plain := &lab.ClientConn{Conn: conn, Reader: bufio.NewReader(conn)}
		answer, _ := plain.RoundTrip(p.Request(), "close")
		return fmt.Errorf("the gateway has not closed the silent connection, which got %d bytes, and answers a plain request %d", n, answer.Status)
	}
	return nil
}
