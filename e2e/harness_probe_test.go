//go:build e2e

package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// probe is one connection to a gateway.
type probe struct {
	gateway  peersGateway
	listener testListener
	from     peer
	address  netip.Addr // of the gateway
	preface  preface
	header   http.Header // of the request; by default a forged X-Forwarded-For

	source netip.AddrPort // no other probe of the lab has its port
	path   string
}

// observation is what a probe shows, each part "-" for nothing.
type observation struct {
	answer  string // a status; for tcp "served"; or "closed" or "open", without a byte of an answer
	log     string // the client's address in the access log
	service string // X-Forwarded-For; for tcp what the service gets before the client's own word
}

// forgedIP is what a request says of itself.
const forgedIP = "198.51.100.6"

// probePorts are the ports of probes' sources, below those that Linux chooses.
var probePorts atomic.Uint32

func (l *peersLab) newProbe(p probe) probe {
	p.source = netip.AddrPortFrom(p.from.address(p.address), uint16(1024+probePorts.Add(1)%30000))
	p.path = newPath()
	if p.header == nil {
		p.header = http.Header{"X-Forwarded-For": {forgedIP}}
	}
	return p
}

// send makes the connection. The observation has no log yet.
func (p probe) send(t *testing.T, l *peersLab) observation {
	t.Helper()
	if p.listener.protocol == "tcp" {
		return p.sendWord(t)
	}
	got, err := p.call().do(t.Context())
	seen := observation{answer: fmt.Sprint(got.Status), service: "-"}
	if err != nil {
		seen.answer = noAnswer(err)
	}
	if request, ok := l.Echo.lookup(p.path); ok {
		seen.service = p.symbols(request.Header.Values("X-Forwarded-For"))
	}
	return seen
}

func (p probe) call() call {
	c := call{From: p.from.host, To: p.target(), Source: p.source, Path: p.path, Header: p.header, Proxy: p.preface}
	if p.listener.protocol == "https" {
		c.TLS = &tls.Config{InsecureSkipVerify: true} // whose certificate it is, other tests ask
	}
	return c
}

// noAnswer is the answer of a connection that gave none.
func noAnswer(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "open"
	}
	return "closed"
}

func (p probe) sendWord(t *testing.T) observation {
	t.Helper()
	c := tcpCall{From: p.from.host, To: p.target(), Source: p.source, Headers: []io.WriterTo{p.preface}}
	data, _, err := c.do(t.Context())
	if p.preface.end && errors.Is(err, io.EOF) {
		if rest, greeted := strings.CutPrefix(data, tcpGreeting); greeted {
			data, err = rest, nil
		}
	}
	if err != nil {
		return observation{answer: noAnswer(err), service: "-"}
	}
	return observation{answer: "served", service: p.describe(data)}
}

func (p probe) target() string {
	return netip.AddrPortFrom(p.address, uint16(p.listener.port)).String()
}

// describe says what a tcp service got before the client's word.
func (p probe) describe(data string) string {
	switch data {
	case "":
		return "nothing"
	case p.preface.text:
		return "all"
	case p.preface.second:
		return "second"
	}
	return fmt.Sprintf("%q", data)
}

// symbols gives addresses by what they are to the probe.
func (p probe) symbols(values []string) string {
	var symbols []string
	for _, value := range values {
		for ip := range strings.SplitSeq(value, ",") {
			symbols = append(symbols, p.symbol(strings.TrimSpace(ip)))
		}
	}
	if symbols == nil {
		return "nothing"
	}
	return strings.Join(symbols, ",")
}

func (p probe) symbol(ip string) string {
	switch ip {
	case forgedIP:
		return "forged"
	case p.source.Addr().String():
		return "peer"
	case p.preface.client.Addr().String():
		return "client"
	}
	return ip
}

// logged is the client's address in the lines that an access log has for the
// probe.
func (p probe) logged(t *testing.T, lines peersLog) string {
	t.Helper()
	var symbols []string
	for _, entry := range lines.of(p) {
		if symbol := p.symbol(entry.ip(t, "downstream_remote_address")); !slices.Contains(symbols, symbol) {
			symbols = append(symbols, symbol)
		}
	}
	if symbols == nil {
		return "-"
	}
	return strings.Join(symbols, " and ")
}

// String says which connection it is, for messages.
func (p probe) String() string {
	return fmt.Sprintf("Envoy %s, %s with %v, %s -> %s, %q",
		p.gateway.version, p.listener.protocol, p.listener.policy, p.source, p.target(), p.preface.name)
}

// peersLog is an access log by the path of the request, or else by the peer.
type peersLog map[string][]logEntry

// of are the lines of a probe.
func (l peersLog) of(p probe) []logEntry {
	return slices.Concat(l[p.path], l[p.source.String()])
}

func readPeersLog(t *testing.T, log *accessLog) peersLog {
	t.Helper()
	lines := peersLog{}
	for _, entry := range log.entries(t) {
		key := entry.text("path")
		if key == "" {
			key = entry.text("downstream_direct_remote_address")
		}
		if key == "" {
			key = entry.text("downstream_remote_address")
		}
		lines[key] = append(lines[key], entry)
	}
	return lines
}

// observe makes the connections of probes to one gateway, and waits until the
// access log has a line of each that logged is true for. It gives what they show,
// and the log.
func (l *peersLab) observe(t *testing.T, probes []probe, logged func(i int) bool) ([]observation, peersLog) {
	t.Helper()
	seen := l.sendAll(t, probes)
	lines := readPeersLog(t, probes[0].gateway.Log)
	missing := func(i int) bool { return logged(i) && len(lines.of(probes[i])) == 0 }
	end := time.Now().Add(changeDeadline) // a line that never comes is missed with its probe
	for i := 0; i < len(probes) && time.Now().Before(end); {
		if !missing(i) {
			i++
			continue
		}
		time.Sleep(pollInterval)
		lines = readPeersLog(t, probes[0].gateway.Log)
	}
	for i, p := range probes {
		seen[i].log = p.logged(t, lines)
	}
	return seen, lines
}

// always is for probes that are all logged.
func always(int) bool { return true }

// wantPeerLogged wants the peer's own address in the probe's lines, wherever
// they say who connected.
func (p probe) wantPeerLogged(t *testing.T, lines peersLog) {
	t.Helper()
	for _, entry := range lines.of(p) {
		if direct := entry.text("downstream_direct_remote_address"); direct != "" && direct != p.source.String() {
			t.Errorf("%v: the log has %s for the peer, want %s", p, direct, p.source)
		}
	}
}

// sendAll makes the probes' connections, several at a time.
func (l *peersLab) sendAll(t *testing.T, probes []probe) []observation {
	t.Helper()
	const atOnce = 16
	seen := make([]observation, len(probes))
	var next atomic.Int64
	var work sync.WaitGroup
	for range atOnce {
		work.Go(func() {
			for i := next.Add(1) - 1; int(i) < len(probes); i = next.Add(1) - 1 {
				seen[i] = probes[i].send(t, l)
			}
		})
	}
	work.Wait()
	return seen
}
