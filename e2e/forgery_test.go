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
)

// forgeryLab has http, TLS and tcp listeners in the modes that believe PROXY
// headers, each once for anybody and once for trusted peers.
type forgeryLab struct{ *peersLab }

// TestNeverBelieved has everybody lie about the client who is able to: in
// requests, and in PROXY headers from the wrong peer, at the wrong place or too
// late. Nothing of it comes to the access log or to the service. The matrix has
// the same in single headers; this is what takes more than that.
func TestNeverBelieved(t *testing.T) {
	t.Parallel()
	l := startForgeryLab(t)
	for _, g := range l.gateways {
		t.Run("envoy "+g.version, func(t *testing.T) {
			t.Parallel()
			for _, story := range []struct {
				name string
				tell func(*forgeryLab, *testing.T, peersGateway)
			}{
				{"headers of the request", (*forgeryLab).tellRequestHeaders},
				{"a stranger's PROXY header", (*forgeryLab).tellStranger},
				{"a second PROXY header", (*forgeryLab).tellSecond},
				{"a PROXY header in the middle of a TLS handshake", (*forgeryLab).tellHandshake},
				{"a PROXY header in the TLS connection", (*forgeryLab).tellInsideTLS},
				{"silence until the timeout, then a plain request", (*forgeryLab).tellSilence},
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
	var listeners []testListener
	for _, protocol := range matrixProtocols {
		for _, mode := range []string{"permissive", "strict"} {
			for _, cidrs := range []bool{false, true} {
				listeners = append(listeners, testListener{protocol: protocol, policy: policy{mode: mode, cidrs: cidrs}})
			}
		}
	}
	return &forgeryLab{startPeersLab(t, listeners)}
}

// probes are a probe from a peer at each listener of the protocols.
func (l *forgeryLab) probes(g peersGateway, from peer, protocols ...string) []probe {
	var probes []probe
	for _, m := range l.listeners {
		if slices.Contains(protocols, m.protocol) {
			probes = append(probes, probe{gateway: g, listener: m, from: from, address: g.addresses[0]})
		}
	}
	return probes
}

// forgedHeaders are what clients write into requests to be taken for others.
var forgedHeaders = []http.Header{
	{"X-Forwarded-For": {forgedIP}},
	{"X-Forwarded-For": {forgedIP + ", 127.0.0.1"}},
	{"X-Forwarded-For": {forgedIP, forgedIP}},
	{"X-Forwarded-For": {"unknown, " + forgedIP}},
	{"X-Forwarded-For": {strings.Repeat(forgedIP+",", 100) + forgedIP}},
	{"X-Forwarded-For": {forgedIP + ":443"}},
	{"X-Forwarded-For": {forgedIP}, "X-Envoy-External-Address": {forgedIP}, "X-Envoy-Internal": {"true"}},
	{"X-Real-Ip": {forgedIP}, "Forwarded": {"for=" + forgedIP}, "True-Client-Ip": {forgedIP}},
	{"Connection": {"X-Forwarded-For"}, "X-Forwarded-For": {forgedIP}},
}

// tellRequestHeaders lies in requests. The last address of X-Forwarded-For, the
// whole of X-Envoy-External-Address, and the log have the true one.
func (l *forgeryLab) tellRequestHeaders(t *testing.T, g peersGateway) {
	var probes []probe
	for _, from := range []peer{l.trusted, l.stranger} {
		for _, p := range l.probes(g, from, "http", "https") {
			for _, name := range []string{"nothing", "v2, IPv4"} {
				for _, p.header = range forgedHeaders {
					p.preface = prefaceOf(name)
					probes = append(probes, l.newProbe(p))
				}
			}
		}
	}
	seen, _ := l.observe(t, probes, always)
	for i, p := range probes {
		l.wantTrue(t, p, seen[i])
	}
}

// wantTrue wants a request that is not closed to be logged and passed on with
// the client that it truly has.
func (l *forgeryLab) wantTrue(t *testing.T, p probe, seen observation) {
	t.Helper()
	answer, client := p.truth(l)
	if seen.answer != answer || seen.log != client {
		t.Errorf("%v, %v: the answer is %s and the log has %s, want %s and %s", p, p.header, seen.answer, seen.log, answer, client)
	}
	request, asked := l.Echo.lookup(p.path)
	if asked != (answer == "200") {
		t.Errorf("%v, %v: the answer is %s, and the service was asked: %v", p, p.header, answer, asked)
	}
	if !asked {
		return
	}
	if last := seen.service[strings.LastIndex(seen.service, ",")+1:]; last != client {
		t.Errorf("%v, %v: the service's X-Forwarded-For ends with %s, want %s", p, p.header, last, client)
	}
	if external := request.Header.Values("X-Envoy-External-Address"); external != nil && p.symbols(external) != client {
		t.Errorf("%v, %v: the service got X-Envoy-External-Address %q, want %s", p, p.header, external, client)
	}
}

// truth is the answer to a probe with the header "nothing" or "v2, IPv4", and
// the client that it has.
func (p probe) truth(l *forgeryLab) (answer, client string) {
	believed := p.preface.text != "" && (!p.listener.policy.cidrs || p.from.host == l.trusted.host)
	answer, client = "200", "peer"
	switch {
	case believed:
		client = "client"
	case p.listener.policy.mode == "strict":
		return "closed", "peer"
	}
	if p.header.Get("Connection") != "" {
		answer = "400" // it would have the gateway drop its own header
	}
	return answer, client
}

// tellStranger has a peer outside of trusted_cidrs write a header.
func (l *forgeryLab) tellStranger(t *testing.T, g peersGateway) {
	var probes []probe
	for _, p := range l.probes(g, l.stranger, matrixProtocols...) {
		for _, name := range []string{"v1, IPv4", "v1, IPv6", "v2, IPv4", "v2, IPv6", "v2, TLVs of AWS"} {
			if p.preface = prefaceOf(name); p.listener.policy.cidrs {
				probes = append(probes, l.newProbe(p))
			}
		}
	}
	seen, _ := l.observe(t, probes, always)
	for i, p := range probes {
		if strict := p.listener.policy.mode == "strict"; strict != (seen[i].answer == "closed") {
			t.Errorf("%v: the answer is %s", p, seen[i].answer)
		}
		if seen[i].log != "peer" || strings.Contains(seen[i].service, "client") {
			t.Errorf("%v: (%v), want nothing of the client in the header", p, seen[i])
		}
	}
}

// tellSecond has a client behind a trusted balancer write one more header. On
// http it is a bad request; to a tcp service it is data. With TLS it comes in the
// middle of a handshake, which is a story of its own.
func (l *forgeryLab) tellSecond(t *testing.T, g peersGateway) {
	want := map[string]observation{"http": {"400", "client", "-"}, "tcp": {"served", "client", "second"}}
	forged := v2Text(v2Proxy, v2TCP6, v2Addresses(headerClient6, headerTarget6))
	var probes []probe
	for _, p := range l.probes(g, l.trusted, "http", "tcp") {
		for _, first := range []string{"v1, IPv4", "v2, IPv4"} {
			p.preface = prefaceOf(first)
			p.preface.text += forged
			p.preface.second = forged
			probes = append(probes, l.newProbe(p))
		}
	}
	seen, _ := l.observe(t, probes, always)
	for i, p := range probes {
		if want := want[p.listener.protocol]; seen[i] != want {
			t.Errorf("%v, then v2: (%v), want (%v)", p, seen[i], want)
		}
	}
}

// tellHandshake writes a header into the ClientHello, and into what the client
// sends next.
func (l *forgeryLab) tellHandshake(t *testing.T, g peersGateway) {
	for _, p := range l.probes(g, l.trusted, "https") {
		for at := range 2 {
			p.preface = prefaceOf("v1, IPv6")
			p := l.newProbe(p)
			answer := p.handshake(t, func(conn net.Conn) net.Conn {
				return &interruptedConn{Conn: conn, at: at, text: prefaceOf("v2, IPv4").text}
			})
			if answer != "closed" {
				t.Errorf("%v, with a header in its message %d: the answer is %s", p, at, answer)
			}
			l.wantNothing(t, p)
		}
	}
}

// handshake opens the probe's connection, and requests something in TLS on what
// wrap makes of it.
func (p probe) handshake(t *testing.T, wrap func(net.Conn) net.Conn) (answer string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	conn, err := p.from.dialFrom(ctx, p.source, p.target())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := p.preface.WriteTo(conn); err != nil {
		t.Fatal(err)
	}
	secure := tls.Client(wrap(conn), &tls.Config{InsecureSkipVerify: true, ServerName: labHost})
	if err := secure.HandshakeContext(ctx); err != nil {
		return noAnswer(err)
	}
	got, err := (&clientConn{Conn: secure, reader: bufio.NewReader(secure)}).exchange(p.call(), "close")
	if err != nil {
		return noAnswer(err)
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

// tellInsideTLS writes a header where the request is expected.
func (l *forgeryLab) tellInsideTLS(t *testing.T, g peersGateway) {
	for _, p := range l.probes(g, l.trusted, "https") {
		p.preface = prefaceOf("v1, IPv6")
		p := l.newProbe(p)
		c := p.call()
		secure, err := c.connect(t.Context())
		if err != nil {
			t.Fatalf("%v: %v", p, err)
		}
		defer secure.Close()
		if _, err := io.WriteString(secure, prefaceOf("v2, IPv4").text); err != nil {
			t.Fatalf("%v: %v", p, err)
		}
		if got, err := secure.exchange(c, "close"); err != nil || got.Status != http.StatusBadRequest {
			t.Errorf("%v, then a header in TLS: %d (%v), want 400", p, got.Status, err)
		}
		l.wantNothing(t, p)
	}
}

// wantNothing wants the service not to have been asked, and no line in the log
// that has the client of the forged header.
func (l *forgeryLab) wantNothing(t *testing.T, p probe) {
	t.Helper()
	if _, asked := l.Echo.lookup(p.path); asked {
		t.Errorf("%v: the service was asked", p)
	}
	if logged := p.logged(t, readPeersLog(t, p.gateway.Log)); strings.Contains(logged, headerClient.Addr().String()) {
		t.Errorf("%v: the log has %s", p, logged)
	}
}

// silence is longer than Envoy's listener_filters_timeout, which is 15 s.
const silence = 20 * time.Second

// tellSilence has clients of all listeners say nothing until the listener gives
// up on a header, and then make a plain request. It is too late for one, in every
// mode.
func (l *forgeryLab) tellSilence(t *testing.T, g peersGateway) {
	var work sync.WaitGroup
	defer work.Wait()
	for _, p := range l.probes(g, l.trusted, matrixProtocols...) {
		p := l.newProbe(p)
		work.Go(func() {
			if err := p.breakSilence(t.Context()); err != nil {
				t.Errorf("%v: %v", p, err)
			}
			l.wantNothing(t, p)
		})
	}
}

// breakSilence is nil if the gateway closes the silent connection.
func (p probe) breakSilence(ctx context.Context) error {
	conn, err := p.from.dialFrom(ctx, p.source, p.target())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(silence)); err != nil {
		return err
	}
	if n, err := conn.Read(make([]byte, 1)); n > 0 || noAnswer(err) != "closed" {
		plain := &clientConn{Conn: conn, reader: bufio.NewReader(conn)}
		answer, _ := plain.exchange(p.call(), "close")
		return fmt.Errorf("the gateway has not closed the silent connection, which got %d bytes, and answers a plain request %d", n, answer.Status)
	}
	return nil
}
