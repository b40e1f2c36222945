//go:build e2e

package lab

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

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Probe is one connection to a gateway.
type Probe struct {
	Gateway  TrustGateway
	Listener TestListener
	From     Downstream
	Address  netip.Addr // of the gateway
	Preface  Preface
	Header   http.Header // of the request; by default a forged X-Forwarded-For and True-Client-IP

	Source netip.AddrPort // no other probe of the lab has its port
	Path   string
}

// Observation is what a probe shows, each part "-" for nothing.
type Observation struct {
	Response string // a status; for tcp "served"; or "closed" or "open", without a byte of an answer
	Log      string // the client's address in the access log
	Service  string // X-Forwarded-For; for tcp what the service gets before the client's payload
}

// ForgedIP is the address in a forged X-Forwarded-For or True-Client-IP.
const ForgedIP = "198.51.100.6"

// firstLinuxPort is the first port that Linux chooses for a connection.
const firstLinuxPort = 32768

// NewProbe completes a probe: it gets a source port that no other probe of the lab
// has, below those that Linux chooses, and a path that no other probe has.
func (l *TrustLab) NewProbe(p Probe) Probe {
	p.Source = netip.AddrPortFrom(p.From.address(p.Address), uint16(1024+l.probes.Add(1)%(firstLinuxPort-1024)))
	p.Path = NewPath()
	if p.Header == nil {
		p.Header = http.Header{"X-Forwarded-For": {ForgedIP}, "True-Client-Ip": {ForgedIP}}
	}
	return p
}

// Send makes the connection. The observation has no log yet.
func (p Probe) Send(t *testing.T, l *TrustLab) Observation {
	t.Helper()
	if p.Listener.Protocol == "tcp" {
		return p.sendTCP(t)
	}
	got, err := p.Request().Do(t.Context())
	seen := Observation{Response: fmt.Sprint(got.Status), Service: "-"}
	if err != nil {
		seen.Response = NoResponse(err)
	}
	if request, ok := l.Echo.Lookup(p.Path); ok {
		seen.Service = p.Symbols(request.Header.Values("X-Forwarded-For"))
	}
	return seen
}

// Request is the request of an HTTP probe.
func (p Probe) Request() Request {
	c := Request{From: p.From.Host, To: p.Target(), Source: p.Source, Path: p.Path, Header: p.Header, Proxy: p.Preface}
	if p.Listener.Protocol == "https" {
		c.TLS = &tls.Config{InsecureSkipVerify: true} // other tests verify the certificate
	}
	return c
}

// NoResponse is the answer of a connection that gave none.
func NoResponse(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "open"
	}
	return "closed"
}

func (p Probe) sendTCP(t *testing.T) Observation {
	t.Helper()
	c := TCPExchange{From: p.From.Host, To: p.Target(), Source: p.Source, Headers: []io.WriterTo{p.Preface}}
	data, _, err := c.Do(t.Context())
	if p.Preface.end && errors.Is(err, io.EOF) {
		if rest, greeted := strings.CutPrefix(data, TCPGreeting); greeted {
			data, err = rest, nil
		}
	}
	if err != nil {
		return Observation{Response: NoResponse(err), Service: "-"}
	}
	return Observation{Response: "served", Service: p.describe(data)}
}

// Target is the address and port that the probe connects to.
func (p Probe) Target() string {
	return netip.AddrPortFrom(p.Address, uint16(p.Listener.Port)).String()
}

// describe says what a tcp service got before the client's payload.
func (p Probe) describe(data string) string {
	switch data {
	case "":
		return "nothing"
	case p.Preface.Bytes:
		return "all"
	case p.Preface.SecondHeader:
		return "second"
	}
	return fmt.Sprintf("%q", data)
}

// Symbols replaces addresses by their role in the probe.
func (p Probe) Symbols(values []string) string {
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

func (p Probe) symbol(ip string) string {
	switch ip {
	case ForgedIP:
		return "forged"
	case p.Source.Addr().String():
		return "direct"
	case p.Preface.Client.Addr().String():
		return "client"
	}
	return ip
}

// Logged is the client's address in the lines that an access log has for the
// probe.
func (p Probe) Logged(t *testing.T, lines TrustLog) string {
	t.Helper()
	var symbols []string
	for _, entry := range lines.EntriesFor(p) {
		if symbol := p.symbol(entry.IP(t, "downstream_remote_address")); !slices.Contains(symbols, symbol) {
			symbols = append(symbols, symbol)
		}
	}
	if symbols == nil {
		return "-"
	}
	return strings.Join(symbols, " and ")
}

// String describes the connection, for messages.
func (p Probe) String() string {
	return fmt.Sprintf("Envoy %s, %s with %v, %s -> %s, %q",
		p.Gateway.Version, p.Listener.Protocol, p.Listener.Settings, p.Source, p.Target(), p.Preface.Name)
}

// TrustLog is an access log by the path of the request, or else by the downstream address.
type TrustLog map[string][]LogEntry

// EntriesFor are the lines of a probe.
func (l TrustLog) EntriesFor(p Probe) []LogEntry {
	return slices.Concat(l[p.Path], l[p.Source.String()])
}

// ReadTrustLog reads the access log so far.
func ReadTrustLog(t *testing.T, log *AccessLog) TrustLog {
	t.Helper()
	lines := TrustLog{}
	for _, entry := range log.Entries(t) {
		key := entry.Text("path")
		if key == "" {
			key = entry.Text("downstream_direct_remote_address")
		}
		if key == "" {
			key = entry.Text("downstream_remote_address")
		}
		lines[key] = append(lines[key], entry)
	}
	return lines
}

// Observe makes the connections of probes to one gateway, and waits until the
// access log has a line of each that logged is true for. It gives what they show,
// and the log.
func (l *TrustLab) Observe(t *testing.T, probes []Probe, logged func(i int) bool) ([]Observation, TrustLog) {
	t.Helper()
	seen := l.sendAll(t, probes)
	lines := ReadTrustLog(t, probes[0].Gateway.Log)
	missing := func(i int) bool { return logged(i) && len(lines.EntriesFor(probes[i])) == 0 }
	end := time.Now().Add(testprocess.ChangeDeadline) // a missing line is reported with its probe
	for i := 0; i < len(probes) && time.Now().Before(end); {
		if !missing(i) {
			i++
			continue
		}
		time.Sleep(testprocess.PollInterval)
		lines = ReadTrustLog(t, probes[0].Gateway.Log)
	}
	for i, p := range probes {
		seen[i].Log = p.Logged(t, lines)
	}
	return seen, lines
}

// Always is for probes that are all logged.
func Always(int) bool { return true }

// WantDownstreamLogged wants the downstream's own address in the probe's lines, in
// every field for the address that connected.
func (p Probe) WantDownstreamLogged(t *testing.T, lines TrustLog) {
	t.Helper()
	for _, entry := range lines.EntriesFor(p) {
		if direct := entry.Text("downstream_direct_remote_address"); direct != "" && direct != p.Source.String() {
			t.Errorf("%v: the log has %s for the peer, want %s", p, direct, p.Source)
		}
	}
}

// sendAll makes the probes' connections, several at a time.
func (l *TrustLab) sendAll(t *testing.T, probes []Probe) []Observation {
	t.Helper()
	const atOnce = 16
	seen := make([]Observation, len(probes))
	var next atomic.Int64
	var work sync.WaitGroup
	for range atOnce {
		work.Go(func() {
			for i := next.Add(1) - 1; int(i) < len(probes); i = next.Add(1) - 1 {
				seen[i] = probes[i].Send(t, l)
			}
		})
	}
	work.Wait()
	return seen
}

func (o Observation) String() string {
	return o.Response + "; " + o.Log + "; " + o.Service
}

// Matches reports whether something was seen as the table has it. A part of what
// the table has may be several words.
func (o Observation) Matches(table Observation) bool {
	return Allows(table.Response, o.Response) && Allows(table.Log, o.Log) && Allows(table.Service, o.Service)
}

// Allows reports whether what was seen is one of the values that the part lists.
func Allows(part, seen string) bool { return slices.Contains(strings.Split(part, " or "), seen) }
