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
)

// apachePort is where the Apache of a tcp service listens.
const apachePort = 8081

// TestUpstreamHeader is the story of a tcp service that wants to know its
// clients. The gateway takes the balancer's header off and writes one of its
// own, inside the mTLS connection to the sidecar: the application behind the
// sidecar gets it first, whatever the balancer or the client wrote.
func TestUpstreamHeader(t *testing.T) {
	t.Parallel()
	var listeners []testListener
	for _, service := range []string{"", "apache"} {
		for _, version := range []string{"v1", "v2"} {
			more := fmt.Sprintf("upstream = %q", version)
			listeners = append(listeners,
				testListener{protocol: "tcp", service: service, policy: policy{mode: "strict", more: more}},
				testListener{protocol: "tcp", service: service, policy: policy{mode: "permissive", cidrs: true, more: more}})
		}
	}
	l := startPeersLab(t, listeners)
	apache := startApache(t, l.Service, apachePort, proxyProtocol)
	registerService(t, serviceOptions{
		Name: "apache", Port: apachePort, Consul: l.Consul, Host: l.Service, Envoy: envoyNew, SidecarPort: 21002,
	})
	for _, g := range l.gateways {
		t.Run("envoy "+g.version, func(t *testing.T) {
			for _, m := range l.listeners {
				for _, from := range []peer{l.trusted, l.stranger} {
					l.tellUpstream(t, apache, probe{gateway: g, listener: m, from: from})
				}
			}
		})
	}
}

// tellUpstream has a peer connect with and without a header of its own, over
// IPv4 and IPv6. One that is not believed is closed if it names a client: Envoy
// would tell the service.
func (l *peersLab) tellUpstream(t *testing.T, apache *apache, p probe) {
	t.Helper()
	for _, p.address = range p.gateway.addresses {
		for _, name := range []string{"nothing", "v1, IPv4", "v2, IPv4", "v2, IPv6", "v2, LOCAL", "v2, TLVs of AWS", "v2, then v1"} {
			p.preface = prefaceOf(name)
			if strict := p.listener.policy.mode == "strict"; strict && name == "nothing" {
				continue // closed: the matrix has it
			}
			p := l.newProbe(p)
			switch client, served := l.clientOf(p); {
			case !served:
				p.wantClosed(t, l)
			case p.listener.service == "apache":
				p.wantApacheLogs(t, apache, client)
			default:
				p.wantUpstreamHeader(t, client)
			}
		}
	}
}

// clientOf is the client of a probe: the one in its header, if the header names
// one, or else the peer. It is not served if the peer is not believed.
func (l *peersLab) clientOf(p probe) (client netip.AddrPort, served bool) {
	if !p.preface.client.IsValid() {
		return p.source, true
	}
	return p.preface.client, !p.listener.policy.cidrs || p.from.host == l.trusted.host
}

func (p probe) wantClosed(t *testing.T, l *peersLab) {
	t.Helper()
	if seen := p.send(t, l); seen.answer != "closed" {
		t.Errorf("%v: (%v), want it closed", p, seen)
	}
}

// wantApacheLogs makes a request, and wants the client in the log of the Apache
// that reads PROXY headers.
func (p probe) wantApacheLogs(t *testing.T, apache *apache, client netip.AddrPort) {
	t.Helper()
	if p.preface.second != "" {
		return // to Apache a second header is a bad request
	}
	eventually(t, fmt.Sprintf("%v: Apache answers", p), changeDeadline, func() error {
		got, err := p.call().do(t.Context())
		if err == nil && got.Body != "hello world\n" {
			err = fmt.Errorf("%d %q", got.Status, got.Body)
		}
		return err
	})
	if got := apache.client(t, p.path); got != client.Addr().String() {
		t.Errorf("%v: Apache's log has %s for the client, want %s", p, got, client.Addr())
	}
}

// wantUpstreamHeader wants the service to get a header of the listener's
// version, with the client's end of the connection, and behind it only what the
// client itself has written.
func (p probe) wantUpstreamHeader(t *testing.T, client netip.AddrPort) {
	t.Helper()
	c := tcpCall{From: p.from.host, To: p.target(), Source: p.source, Headers: []io.WriterTo{p.preface}}
	data, _, err := c.do(t.Context())
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
	if version != p.listener.policy.more || header.SourceAddr.String() != client.String() || string(rest) != p.preface.second {
		t.Errorf("%v: the service gets %+v and then %q, want %s with %s and then %q",
			p, header, rest, p.listener.policy.more, client, p.preface.second)
	}
}
