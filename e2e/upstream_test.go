//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// apachePort is where the Apache of a tcp service listens.
const apachePort = 8081

// TestUpstreamHeader has a tcp service that wants to know its clients. The
// gateway removes the balancer's header and writes its own, inside the mTLS
// connection to the sidecar: the application behind the sidecar gets it first,
// whatever the balancer or the client wrote.
func TestUpstreamHeader(t *testing.T) {
	t.Parallel()
	var listeners []lab.TestListener
	for _, service := range []string{"", "apache"} {
		for _, version := range []string{"v1", "v2"} {
			more := fmt.Sprintf("upstream = %q", version)
			listeners = append(listeners,
				lab.TestListener{Protocol: "tcp", Service: service, Settings: lab.ListenerSettings{Mode: "strict", Extra: more}},
				lab.TestListener{Protocol: "tcp", Service: service, Settings: lab.ListenerSettings{Mode: "permissive", TrustedCIDRs: true, Extra: more}})
		}
	}
	l := lab.StartTrustLab(t, listeners)
	apache := lab.StartApache(t, l.Service, apachePort, lab.RemoteIPProxyProtocol)
	lab.RegisterService(t, lab.ServiceOptions{
		Name: "apache", Port: apachePort, Consul: l.Consul, Host: l.Service, Envoy: lab.EnvoyNew, SidecarPort: 21002,
	})
	for _, g := range l.Gateways {
		t.Run("envoy "+g.Version, func(t *testing.T) {
			for _, m := range l.Listeners {
				for _, from := range []lab.Downstream{l.Trusted, l.Untrusted} {
					trySettings(t, l, apache, lab.Probe{Gateway: g, Listener: m, From: from})
				}
			}
		})
	}
}

// trySettings has a downstream connect with and without its own header, over
// IPv4 and IPv6. One that is not believed is closed if it names a client: Envoy
// would send the service.
func trySettings(t *testing.T, l *lab.TrustLab, apache *lab.Apache, p lab.Probe) {
	t.Helper()
	for _, p.Address = range p.Gateway.Addresses {
		for _, name := range []string{"nothing", "v1, IPv4", "v2, IPv4", "v2, IPv6", "v2, LOCAL", "v2, TLVs of AWS", "v2, then v1"} {
			p.Preface = lab.PrefaceNamed(name)
			if strict := p.Listener.Settings.Mode == "strict"; strict && name == "nothing" {
				continue // closed: the matrix has it
			}
			p := l.NewProbe(p)
			switch client, served := clientAtApache(l, p); {
			case !served:
				wantProbeClosed(t, p, l)
			case p.Listener.Service == "apache":
				wantApacheLogs(t, p, apache, client)
			default:
				wantUpstreamHeader(t, p, client)
			}
		}
	}
}

// clientAtApache is the client of a probe: the one in its header, if the header names
// one, or else the downstream. It is not served if the downstream is not trusted.
func clientAtApache(l *lab.TrustLab, p lab.Probe) (client netip.AddrPort, served bool) {
	if !p.Preface.Client.IsValid() {
		return p.Source, true
	}
	return p.Preface.Client, !p.Listener.Settings.TrustedCIDRs || p.From.Host == l.Trusted.Host
}

func wantProbeClosed(t *testing.T, p lab.Probe, l *lab.TrustLab) {
	t.Helper()
	if seen := p.Send(t, l); seen.Response != "closed" {
		t.Errorf("%v: (%v), want it closed", p, seen)
	}
}

// wantApacheLogs makes a request, and wants the client in the log of the Apache
// that reads PROXY headers.
func wantApacheLogs(t *testing.T, p lab.Probe, apache *lab.Apache, client netip.AddrPort) {
	t.Helper()
	if p.Preface.SecondHeader != "" {
		return // to Apache a second header is a bad request
	}
	testprocess.Eventually(t, fmt.Sprintf("%v: Apache answers", p), testprocess.ChangeDeadline, func() error {
		got, err := p.Request().Do(t.Context())
		if err == nil && got.Body != "hello world\n" {
			err = fmt.Errorf("%d %q", got.Status, got.Body)
		}
		return err
	})
	if got := apache.WaitClient(t, p.Path); got != client.Addr().String() {
		t.Errorf("%v: Apache's log has %s for the client, want %s", p, got, client.Addr())
	}
}

// wantUpstreamHeader wants the service to get a header of the listener's
// version, with the client's end of the connection, and behind it only what the
// client itself has written.
func wantUpstreamHeader(t *testing.T, p lab.Probe, client netip.AddrPort) {
	t.Helper()
	c := lab.TCPExchange{From: p.From.Host, To: p.Target(), Source: p.Source, Headers: []io.WriterTo{p.Preface}}
	data, _, err := c.Do(t.Context())
	if err != nil {
		t.Errorf("%v: %v", p, err)
		return
	}
	reader := bufio.NewReader(strings.NewReader(data))
	header, err := proxyproto.Read(reader)
	if err != nil {
		t.Errorf("%v: the service gets %q first: %v", p, data, err)
		return
	}
	rest, _ := io.ReadAll(reader) // a strings.Reader does not fail
	version := fmt.Sprintf("upstream = \"v%d\"", header.Version)
	if version != p.Listener.Settings.Extra || header.SourceAddr.String() != client.String() || string(rest) != p.Preface.SecondHeader {
		t.Errorf("%v: the service gets %+v and then %q, want %s with %s and then %q",
			p, header, rest, p.Listener.Settings.Extra, client, p.Preface.SecondHeader)
	}
}

// TestUpstreamTLVs has a load balancer whose header has several TLVs, of which the
// service gets those that are chosen. All connections come from the same client's
// address and port, and each has its own TLVs.
func TestUpstreamTLVs(t *testing.T) {
	t.Parallel()
	const chosen = `upstream = "v2" upstream_tlvs = ["aws_vpce_id", "0xE4"]`
	l := lab.StartTrustLab(t, []lab.TestListener{
		{Protocol: "tcp", Settings: lab.ListenerSettings{Mode: "strict", TrustedCIDRs: true, Extra: chosen}},
		{Protocol: "tcp", Settings: lab.ListenerSettings{Mode: "permissive", Extra: chosen}},
		{Protocol: "tcp", Settings: lab.ListenerSettings{Mode: "strict", Extra: `upstream = "v2"`}},
	})
	aws, own, host := lab.TLV("\xea", "\x01vpce-08d2bf15fac5001c9"), lab.TLV("\xe4", "\x00\xff\r\n"), lab.TLV("\x02", "www.example.com")
	sent := []struct{ all, chosen string }{{host + aws + own, aws + own}, {host, ""}, {own, own}, {"", ""}}
	for i := range 20 {
		tlv := lab.TLV("\xe4", fmt.Sprint("connection ", i))
		sent = append(sent, struct{ all, chosen string }{tlv, tlv})
	}
	for _, g := range l.Gateways {
		for _, m := range l.Listeners {
			for _, s := range sent {
				if m.Settings.Extra != chosen {
					s.chosen = ""
				}
				p := lab.Probe{Gateway: g, Listener: m, From: l.Trusted, Address: g.Addresses[0]}
				p.Preface = lab.Preface{Name: "v2 with TLVs", Bytes: lab.HeaderWithTLVs(s.all), Client: lab.HeaderClient}
				p = l.NewProbe(p)
				data, _, err := lab.TCPExchange{From: p.From.Host, To: p.Target(), Source: p.Source, Headers: []io.WriterTo{p.Preface}}.Do(t.Context())
				if err != nil {
					t.Errorf("%v: %v", p, err)
				} else if header := lab.HeaderWithTLVs(s.chosen); data != header {
					t.Errorf("%v, %q: the service gets %q, want %q", p, s.all, data, header)
				}
			}
		}
	}
}
