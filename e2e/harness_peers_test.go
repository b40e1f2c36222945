//go:build e2e

package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
)

// peersLab is a gateway with listeners of different settings, on two Envoys of
// different versions, and peers that may and may not say who the client is. All
// of them have an IPv4 and an IPv6 address.
type peersLab struct {
	*lab
	Consul    *consulAgent
	Usher     *usher
	Echo      *echoService
	listeners []testListener
	gateways  []peersGateway
	trusted   peer
	stranger  peer
}

// testListener is a listener of the gateway's on each of its addresses.
type testListener struct {
	protocol string // http, https or tcp
	policy   policy
	service  string // that the test itself starts; "" for one of the lab's
	port     int    // the lab's choice
}

// policy is what a listener's settings say.
type policy struct {
	mode     string
	versions string // one version; "" for both
	cidrs    bool   // it has trusted_cidrs
	more     string // further keys of proxy_protocol; "" for none
}

// peersGateway is an instance of the gateway.
type peersGateway struct {
	*envoy
	version   string
	addresses []netip.Addr
}

// peer is a host that connects to gateways.
type peer struct {
	*host
	addresses []netip.Addr
}

// address is the one of the other address' family.
func (p peer) address(other netip.Addr) netip.Addr {
	return p.addresses[slices.IndexFunc(p.addresses, func(a netip.Addr) bool { return a.Is4() == other.Is4() })]
}

// trustedCIDRs have the trusted peer in them, and neither the stranger nor the
// client.
const trustedCIDRs = `["198.18.0.8/30", "fd00:18::10/124"]`

func startPeersLab(t *testing.T, listeners []testListener) *peersLab {
	t.Helper()
	l := &peersLab{lab: newLab(t), listeners: listeners}
	for i := range l.listeners {
		l.listeners[i].port = 7000 + i
	}
	l.trusted = peer{l.Balancer, []netip.Addr{l.Balancer.IP, l.Balancer.addIPv6(t, "fd00:18::10")}}
	other := l.addHost(t, "stranger", "198.18.0.66")
	l.stranger = peer{other, []netip.Addr{other.IP, other.addIPv6(t, "fd00:18::66")}}
	l.Consul = startConsul(t, consulOptions{Version: consulNew, Host: l.Control})
	l.Echo = startEcho(t, l.Service, 8080)
	startTCPEcho(t, l.Service, tcpPort)
	l.writeEntries(t)
	registerService(t, serviceOptions{Name: "static-server", Port: 8080, Consul: l.Consul, Host: l.Service, Envoy: envoyNew})
	registerService(t, serviceOptions{
		Name: "static-tcp", Port: tcpPort, Consul: l.Consul, Host: l.Service, Envoy: envoyNew, SidecarPort: 21001,
	})
	l.Usher = startUsher(t, usherOptions{
		Host: l.Control, Consul: l.Consul, Config: l.config(),
		XDSAddr: l.Control.addr(18000), Args: []string{"--insecure-plaintext"},
	})
	l.startGateway(t, l.Gateway, envoyNew, "fd00:18::20")
	l.startGateway(t, l.addHost(t, "gateway2", gateway2IP), envoyOld, "fd00:18::21")
	l.waitServed(t)
	return l
}

func (l *peersLab) writeEntries(t *testing.T) {
	t.Helper()
	l.Consul.writeEntry(t, readFile(t, "testdata/lab/proxy-defaults.hcl"))
	l.Consul.writeEntry(t, readFile(t, "testdata/lab/service-defaults.hcl"))
	entry := &api.IngressGatewayConfigEntry{Kind: api.IngressGateway, Name: "ingress-gateway"}
	for _, m := range l.listeners {
		listener := api.IngressListener{Port: m.port, Protocol: "http", Services: []api.IngressService{{Name: "static-server"}}}
		switch m.protocol {
		case "https":
			listener.TLS = &api.GatewayTLSConfig{Enabled: true}
		case "tcp":
			listener.Protocol, listener.Services[0].Name = "tcp", cmp.Or(m.service, "static-tcp")
		}
		entry.Listeners = append(entry.Listeners, listener)
	}
	if _, _, err := l.Consul.Client.ConfigEntries().Set(entry, nil); err != nil {
		t.Fatal(err)
	}
}

// config is the operator's file, with an object of settings for each listener.
func (l *peersLab) config() string {
	var text strings.Builder
	text.WriteString("gateway \"ingress-gateway\" {\n  usher {\n    access_log { rejected_per_second = \"any\" }\n    listeners {\n")
	for _, m := range l.listeners {
		fmt.Fprintf(&text, "      \"%d\" { proxy_protocol { %s } }\n", m.port, m.policy)
	}
	text.WriteString("    }\n  }\n}\n")
	return text.String()
}

// String is the policy as the settings have it.
func (p policy) String() string {
	text := fmt.Sprintf("mode = %q", p.mode)
	if p.versions != "" {
		text += fmt.Sprintf(" versions = [%q]", p.versions)
	}
	if p.cidrs {
		text += " trusted_cidrs = " + trustedCIDRs
	}
	return strings.TrimSpace(text + " " + p.more)
}

func (l *peersLab) startGateway(t *testing.T, h *host, version, ipv6 string) {
	t.Helper()
	g := peersGateway{version: version, addresses: []netip.Addr{h.IP, h.addIPv6(t, ipv6)}}
	g.envoy = startGateway(t, gatewayOptions{
		Host: h, Consul: l.Consul, Envoy: version, GRPCAddr: l.Usher.GRPCAddr, ID: "gateway-" + version,
		Args: []string{"-bind-address", "four=" + h.addr(8443), "-bind-address", fmt.Sprintf("six=[%s]:8443", ipv6)},
	})
	l.gateways = append(l.gateways, g)
}

// waitServed waits until every listener that leads to a service of the lab
// answers somebody.
func (l *peersLab) waitServed(t *testing.T) {
	t.Helper()
	for _, g := range l.gateways {
		for _, m := range l.listeners {
			if m.service != "" {
				continue
			}
			for _, a := range g.addresses {
				what := fmt.Sprintf("%s with %v of %s on %s", m.protocol, m.policy, g.Name, a)
				eventually(t, what, startDeadline, func() error {
					if err := g.Alive(); err != nil {
						return err
					}
					for _, name := range []string{"nothing", "v1, IPv4", "v2, IPv4"} {
						p := l.newProbe(probe{gateway: g, listener: m, from: l.trusted, address: a, preface: prefaceOf(name)})
						if seen := p.send(t, l); seen.answer == "200" || seen.answer == "served" {
							return nil
						}
					}
					return errors.New("nobody is answered")
				})
			}
		}
	}
}
