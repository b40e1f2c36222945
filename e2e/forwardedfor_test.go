//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
)

// Of the HTTP proxies that listeners trust, the first two networks have the trusted
// downstream, and the others the clients in PROXY headers: the edges of a CDN.
const trustedProxies = `trusted_cidrs = ["198.18.0.8/30", "fd00:18::10/124", "192.0.2.0/24", "2001:db8::/32"]`

// The true client of a request that comes from a proxy, and the header of a CDN.
const (
	trueIP    = "203.0.113.9"
	trueIPv6  = "2001:470::9"
	cdnHeader = "Cf-Connecting-Ip"
)

// mostEntries is how many addresses Envoy reads in X-Forwarded-For. Of a longer list, fewerEntries are left.
const (
	mostEntries  = 20
	fewerEntries = 5
)

// forwardedListeners are listeners with each way to believe proxies.
var forwardedListeners = []lab.TestListener{
	{Protocol: "http", Settings: lab.ListenerSettings{Mode: "off", ClientAddress: trustedProxies}},
	{Protocol: "https", Settings: lab.ListenerSettings{Mode: "off", ClientAddress: trustedProxies}},
	{Protocol: "http", Settings: lab.ListenerSettings{Mode: "off", ClientAddress: trustedProxies + ` xff = "keep"`}},
	{Protocol: "http", Settings: lab.ListenerSettings{Mode: "off", ClientAddress: trustedProxies + ` xff = "overwrite"`}},
	{Protocol: "http", Settings: lab.ListenerSettings{Mode: "off", ClientAddress: trustedProxies + ` header = "cf-connecting-ip"`}},
	{Protocol: "http", Settings: lab.ListenerSettings{Mode: "off", ClientAddress: trustedProxies + ` header = "cf-connecting-ip" xff = "keep"`}},
	{Protocol: "http", Settings: lab.ListenerSettings{Mode: "off", ClientAddress: trustedProxies + ` header = "cf-connecting-ip" fail_closed = "yes"`}},
	{Protocol: "http", Settings: lab.ListenerSettings{Mode: "off", ClientAddress: `xff = "keep"`}},
	{Protocol: "http", Settings: lab.ListenerSettings{Mode: "strict", ClientAddress: trustedProxies}},
	{Protocol: "http", Settings: lab.ListenerSettings{Mode: "strict", TrustedCIDRs: true, ClientAddress: trustedProxies}},
	{Protocol: "http", Settings: lab.ListenerSettings{Mode: "permissive", TrustedCIDRs: true, ClientAddress: trustedProxies}},
	{Protocol: "http", Settings: lab.ListenerSettings{Mode: "permissive", TrustedCIDRs: true, ClientAddress: trustedProxies + ` header = "cf-connecting-ip"`}},
}

// forwardedFor are values of X-Forwarded-For, as proxies write them and as clients
// forge them, and the client if the sender is believed; "" if that is the sender.
var forwardedFor = []struct {
	sent   []string
	client string
}{
	{nil, ""},
	{[]string{""}, ""},
	{[]string{trueIP}, trueIP},
	{[]string{lab.ForgedIP + ", " + trueIP}, trueIP},
	{[]string{lab.ForgedIP + "," + trueIPv6}, trueIPv6},
	{[]string{lab.ForgedIP + ", " + trueIP + ", 192.0.2.99"}, trueIP},             // two proxies in a row
	{[]string{lab.ForgedIP + ", " + trueIP + ", 2001:db8::1, 192.0.2.1"}, trueIP}, // three
	{[]string{lab.ForgedIP + ", " + trueIP + ", 10.0.0.1"}, "10.0.0.1"},           // a private address is a client's, too
	{[]string{"192.0.2.98, 192.0.2.99"}, "192.0.2.98"},                            // a proxy is the client
	{[]string{lab.ForgedIP, trueIP}, trueIP},
	{[]string{trueIP, ""}, trueIP},
	{[]string{strings.Repeat(lab.ForgedIP+",", mostEntries-1) + trueIP}, trueIP},
	{[]string{lab.ForgedIP + "," + trueIP + strings.Repeat(", 192.0.2.99", mostEntries-2)}, trueIP},
	// Of a longer list only the last entries are left.
	{[]string{strings.Repeat(lab.ForgedIP+",", mostEntries) + trueIP}, trueIP},
	{[]string{strings.Repeat(lab.ForgedIP+",", 1000) + trueIP}, trueIP},
	{[]string{strings.Repeat(lab.ForgedIP+", ", 1000) + trueIP + strings.Repeat(", 192.0.2.99", 1000)}, "192.0.2.99"},
	{[]string{"\xff" + strings.Repeat(","+lab.ForgedIP, 30) + "," + trueIP}, trueIP},
	// Some proxies write ports, and brackets.
	{[]string{trueIP + ":4711"}, trueIP},
	{[]string{lab.ForgedIP + ", " + trueIP + ":4711"}, trueIP},
	{[]string{strings.Repeat(lab.ForgedIP+",", 30) + " " + trueIP + ":4711"}, trueIP},
	{[]string{lab.ForgedIP + ", [" + trueIPv6 + "]:4711"}, trueIPv6},
	{[]string{lab.ForgedIP + ", [" + trueIPv6 + "]"}, trueIPv6},
	// Behind what is no address, nothing is known: the client is the sender.
	{[]string{lab.ForgedIP + ", unknown"}, ""},
	{[]string{lab.ForgedIP + ", " + trueIP + ":x"}, ""},
	{[]string{lab.ForgedIP + ", " + trueIP + ":4711, 192.0.2.99"}, ""},
	{[]string{lab.ForgedIP + ", unknown, 192.0.2.99"}, ""},
	{[]string{lab.ForgedIP + ", 203.0.113.0/24"}, ""},
	{[]string{lab.ForgedIP + "; " + trueIP}, ""},
}

// namedClients are values of a CDN's header, and the client if the sender is
// believed; "" if the header names none.
var namedClients = []struct {
	sent   []string
	client string
}{
	{nil, ""},
	{[]string{""}, ""},
	{[]string{trueIP}, trueIP},
	{[]string{trueIPv6}, trueIPv6},
	{[]string{"unknown"}, ""},
	{[]string{trueIP + ", " + lab.ForgedIP}, ""},
	{[]string{trueIP + ":4711"}, ""},
}

// forwardedProbe is a request with the two headers, and what it has to show.
type forwardedProbe struct {
	lab.Probe
	byList, byName string // the client in either header
}

// TestForwardedFor sends X-Forwarded-For and the header of a CDN, true and forged,
// from proxies that are trusted and from everybody else, with and without PROXY
// headers. The log and the service get the client that a believed proxy has named,
// and of all others the address that they have.
func TestForwardedFor(t *testing.T) {
	t.Parallel()
	l := &forgeryLab{lab.StartTrustLab(t, slices.Clone(forwardedListeners))}
	for _, g := range l.Gateways {
		t.Run("envoy "+g.Version, func(t *testing.T) {
			t.Parallel()
			all := l.forwardedProbes(g)
			probes := make([]lab.Probe, len(all))
			for i := range all {
				probes[i] = all[i].Probe
			}
			seen, _ := l.Observe(t, probes, lab.Always)
			for i, p := range all {
				l.wantForwarded(t, p, seen[i])
			}
			l.checkFolded(t, g)
		})
	}
}

// forwardedProbes are all requests: each value of one header with some of the other.
func (l *forgeryLab) forwardedProbes(g lab.TrustGateway) (all []forwardedProbe) {
	for _, from := range []lab.Downstream{l.Trusted, l.Untrusted} {
		for _, p := range l.probes(g, from, "http", "https") {
			for _, address := range g.Addresses {
				for _, preface := range prefacesFor(p.Listener) {
					p.Address, p.Preface = address, preface
					for i, list := range forwardedFor {
						name := namedClients[i%len(namedClients)]
						p.Header = http.Header{"X-Forwarded-Proto": {"https"}, "X-Envoy-External-Address": {lab.ForgedIP}}
						if p.Header["X-Forwarded-For"] = list.sent; list.sent == nil {
							delete(p.Header, "X-Forwarded-For")
						}
						if p.Header[cdnHeader] = name.sent; name.sent == nil {
							delete(p.Header, cdnHeader)
						}
						all = append(all, forwardedProbe{l.NewProbe(p), list.client, name.client})
					}
				}
			}
		}
	}
	return all
}

// prefacesFor are the PROXY headers that a listener of the mode gets: of a trusted
// edge, and of a client.
func prefacesFor(m lab.TestListener) []lab.Preface {
	none, edge, edge6 := lab.PrefaceNamed("nothing"), lab.PrefaceNamed("v2, IPv4"), lab.PrefaceNamed("v1, IPv6")
	client := lab.Preface{
		Name: "v1 of a client", Bytes: "PROXY TCP4 203.0.113.50 198.51.100.80 40000 443\r\n", Client: netip.MustParseAddrPort("203.0.113.50:40000"),
	}
	switch m.Settings.Mode {
	case "off":
		return []lab.Preface{none}
	case "strict":
		return []lab.Preface{edge, edge6, client}
	}
	return []lab.Preface{none, edge, edge6, client}
}

// want is what a probe has to show, and whether its sender is a trusted proxy.
func (p forwardedProbe) want(l *forgeryLab) (want lab.Observation, isProxy bool) {
	s := p.Listener.Settings
	counts := !s.TrustedCIDRs || p.From.Host == l.Trusted.Host // its PROXY header
	if !counts && s.Mode == "strict" {
		return lab.Observation{Response: "closed", Log: "direct", Service: "-"}, false
	}
	sender := "direct"
	isProxy = p.From.Host == l.Trusted.Host
	if p.Preface.Bytes != "" && counts {
		sender = "client"
		isProxy = p.Preface.Client.Addr() == lab.HeaderClient.Addr() || p.Preface.Client.Addr() == lab.HeaderClient6.Addr()
	}
	isProxy = isProxy && counts && strings.Contains(s.ClientAddress, "trusted_cidrs")
	named := p.byList
	if strings.Contains(s.ClientAddress, "header") {
		named = p.byName
	}
	want = lab.Observation{Response: "200", Log: sender}
	if isProxy && named != "" {
		want.Log = p.Symbols([]string{named})
	}
	if isProxy && named == "" && strings.Contains(s.ClientAddress, "fail_closed") {
		want.Response, want.Service = "403", "-"
		return want, isProxy
	}
	sent := p.Header.Values("X-Forwarded-For")
	if len(sent) > 1 { // Envoy makes them one, and leaves empty ones out
		sent = slices.DeleteFunc(slices.Clone(sent), func(line string) bool { return line == "" })
	}
	if isProxy && !strings.Contains(s.ClientAddress, "header") {
		sent = readable(sent)
	}
	switch {
	case strings.Contains(s.ClientAddress, "keep"):
		want.Service = p.Symbols(sent)
	case !isProxy && strings.Contains(s.ClientAddress, "overwrite"), !counts:
		want.Service = sender
	case strings.Join(sent, "") == "":
		want.Service = sender
	default:
		want.Service = p.Symbols(sent) + "," + sender
	}
	return want, isProxy
}

// readable is what is left of X-Forwarded-For for Envoy to read: the last entries, and no port and brackets of the
// last one.
func readable(sent []string) []string {
	if len(sent) == 0 {
		return sent
	}
	entries := strings.Split(strings.Join(sent, ","), ",")
	if len(entries) > mostEntries {
		entries = entries[len(entries)-fewerEntries:]
	}
	last := &entries[len(entries)-1]
	if address, err := netip.ParseAddrPort(strings.TrimSpace(*last)); err == nil {
		*last = address.Addr().String()
	}
	*last = strings.Trim(*last, " []")
	return []string{strings.Join(entries, ",")}
}

func (l *forgeryLab) wantForwarded(t *testing.T, p forwardedProbe, seen lab.Observation) {
	t.Helper()
	want, isProxy := p.want(l)
	if seen != want {
		t.Errorf("%v, %.200q: got %.300q, want %.300q", p.Probe, fmt.Sprint(p.Header), seen, want)
	}
	request, asked := l.Echo.Lookup(p.Path)
	if !asked {
		return
	}
	s := p.Listener.Settings.ClientAddress
	proto, external, named := "http", want.Log, p.Header.Values(cdnHeader)
	if isProxy || p.Listener.Protocol == "https" {
		proto = "https"
	}
	if isProxy {
		external = "nothing"
	}
	if !isProxy && strings.Contains(s, "header") {
		named = nil
	}
	if got := request.Header.Get("X-Forwarded-Proto"); got != proto {
		t.Errorf("%v: the service gets X-Forwarded-Proto %q, want %q", p.Probe, got, proto)
	}
	if got := p.Symbols(request.Header.Values("X-Envoy-External-Address")); got != external {
		t.Errorf("%v: the service gets X-Envoy-External-Address %s, want %s", p.Probe, got, external)
	}
	if got := request.Header.Values(cdnHeader); !slices.Equal(got, named) {
		t.Errorf("%v: the service gets %s %q, want %q", p.Probe, cdnHeader, got, named)
	}
}

// checkFolded sends a value on two lines, which HTTP no longer allows: it is refused,
// or read as one line. What the line before it has is not taken for the client.
func (l *forgeryLab) checkFolded(t *testing.T, g lab.TrustGateway) {
	for _, from := range []lab.Downstream{l.Trusted, l.Untrusted} {
		p := l.NewProbe(lab.Probe{Gateway: g, Listener: l.Listeners[0], From: from, Address: g.Addresses[0], Preface: lab.PrefaceNamed("nothing")})
		ctx, cancel := context.WithTimeout(t.Context(), lab.RequestTimeout)
		conn, err := p.From.DialFrom(ctx, p.Source, p.Target())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nX-Forwarded-For: %s,\r\n %s\r\nConnection: close\r\n\r\n",
			p.Path, lab.ServiceHost, lab.ForgedIP, trueIP)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		conn.Close()
		cancel()
		want := trueIP
		if from.Host == l.Untrusted.Host {
			want = p.Source.Addr().String()
		}
		if res.StatusCode == http.StatusBadRequest {
			continue
		}
		if got := g.Log.WaitRequest(t, p.Path).IP(t, "downstream_remote_address"); got != want {
			t.Errorf("%v, a folded X-Forwarded-For: the answer is %d, and the log has %s, want %s", p, res.StatusCode, got, want)
		}
	}
}
