//go:build e2e

package lab

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TrustLab is a gateway with listeners of different settings, on two Envoys of
// different versions, with a trusted and an untrusted downstream. All of them have an
// IPv4 and an IPv6 address.
type TrustLab struct {
	*Network
	Consul    *Consul
	Usher     *Usher
	Echo      *EchoService
	Listeners []TestListener
	Gateways  []TrustGateway
	Trusted   Downstream
	Untrusted Downstream
	probes    atomic.Uint32 // how many there were
}

// TestListener is a listener on each of the gateway's addresses.
type TestListener struct {
	Protocol string // http, https or tcp
	Settings ListenerSettings
	Service  string // that the test starts; "" for one of the lab's
	Port     int    // the lab's choice
}

// ListenerSettings is what a listener's settings say.
type ListenerSettings struct {
	Mode         string
	Versions     string // one version; "" for both
	TrustedCIDRs bool   // it has trusted_cidrs
	Extra        string // further keys of proxy_protocol; "" for none
	// ClientAddress has the keys of client_address; "" for none.
	ClientAddress string
}

// TrustGateway is an instance of the gateway.
type TrustGateway struct {
	*Envoy
	Version   string
	Addresses []netip.Addr
}

// Downstream is a host that connects to gateways.
type Downstream struct {
	*Host
	addresses []netip.Addr
}

// address returns the address of the same family as the other one.
func (p Downstream) address(other netip.Addr) netip.Addr {
	return p.addresses[slices.IndexFunc(p.addresses, func(a netip.Addr) bool { return a.Is4() == other.Is4() })]
}

// trustedCIDRs contain the trusted downstream, and neither the untrusted one nor the
// client.
const trustedCIDRs = `["198.18.0.8/30", "fd00:18::10/124"]`

// StartTrustLab starts the lab with the listeners, which get their ports here, and
// a gateway on each of the Envoys. The zero value stands for EnvoyNew and EnvoyOld.
func StartTrustLab(t *testing.T, listeners []TestListener, envoys ...string) *TrustLab {
	t.Helper()
	l := &TrustLab{Network: NewNetwork(t), Listeners: listeners}
	for i := range l.Listeners {
		l.Listeners[i].Port = 7000 + i
	}
	l.Trusted = Downstream{l.Balancer, []netip.Addr{l.Balancer.IP, l.Balancer.addIPv6(t, "fd00:18::10")}}
	other := l.AddHost(t, "untrusted", "198.18.0.66")
	l.Untrusted = Downstream{other, []netip.Addr{other.IP, other.addIPv6(t, "fd00:18::66")}}
	l.Consul = StartConsul(t, ConsulOptions{Version: ConsulNew, Host: l.Control})
	l.Echo = StartEcho(t, l.Service, 8080)
	StartTCPEcho(t, l.Service, TCPPort)
	l.writeEntries(t)
	RegisterService(t, ServiceOptions{Name: "static-server", Port: 8080, Consul: l.Consul, Host: l.Service, Envoy: EnvoyNew})
	RegisterService(t, ServiceOptions{
		Name: "static-tcp", Port: TCPPort, Consul: l.Consul, Host: l.Service, Envoy: EnvoyNew, SidecarPort: 21001,
	})
	l.Usher = StartUsher(t, UsherOptions{
		Host: l.Control, Consul: l.Consul, Config: l.Config(),
		XDSAddr: l.Control.Addr(18000), Args: []string{"--insecure-plaintext"},
	})
	if len(envoys) == 0 {
		envoys = []string{EnvoyNew, EnvoyOld}
	}
	l.startGateway(t, l.Gateway, envoys[0], "fd00:18::20")
	for i, envoy := range envoys[1:] {
		h := l.AddHost(t, fmt.Sprintf("gateway%d", i+2), fmt.Sprintf("198.18.0.%d", 21+i))
		l.startGateway(t, h, envoy, fmt.Sprintf("fd00:18::%d", 21+i))
	}
	l.waitServed(t)
	return l
}

func (l *TrustLab) writeEntries(t *testing.T) {
	t.Helper()
	l.Consul.WriteEntry(t, testprocess.ReadFile(t, "testdata/lab/proxy-defaults.hcl"))
	l.Consul.WriteEntry(t, testprocess.ReadFile(t, "testdata/lab/service-defaults.hcl"))
	entry := &api.IngressGatewayConfigEntry{Kind: api.IngressGateway, Name: "ingress-gateway"}
	for _, m := range l.Listeners {
		listener := api.IngressListener{Port: m.Port, Protocol: "http", Services: []api.IngressService{{Name: "static-server"}}}
		switch m.Protocol {
		case "https":
			listener.TLS = &api.GatewayTLSConfig{Enabled: true}
		case "tcp":
			listener.Protocol, listener.Services[0].Name = "tcp", cmp.Or(m.Service, "static-tcp")
		}
		entry.Listeners = append(entry.Listeners, listener)
	}
	if _, _, err := l.Consul.Client.ConfigEntries().Set(entry, nil); err != nil {
		t.Fatal(err)
	}
}

// Config is the config file, with an object of settings for each listener.
func (l *TrustLab) Config() string {
	var text strings.Builder
	text.WriteString("gateway \"ingress-gateway\" {\n  usher {\n    access_log { rejected_per_second = \"any\" }\n    listeners {\n")
	for _, m := range l.Listeners {
		fmt.Fprintf(&text, "      \"%d\" { %s }\n", m.Port, m.Settings)
	}
	text.WriteString("    }\n  }\n}\n")
	return text.String()
}

// String formats the settings as HCL.
func (p ListenerSettings) String() string {
	text := "proxy_protocol { " + p.proxyProtocol() + " }"
	if p.ClientAddress != "" {
		text += " client_address { " + p.ClientAddress + " }"
	}
	return text
}

func (p ListenerSettings) proxyProtocol() string {
	text := fmt.Sprintf("mode = %q", p.Mode)
	if p.Versions != "" {
		text += fmt.Sprintf(" versions = [%q]", p.Versions)
	}
	if p.TrustedCIDRs {
		text += " trusted_cidrs = " + trustedCIDRs
	}
	return strings.TrimSpace(text + " " + p.Extra)
}

func (l *TrustLab) startGateway(t *testing.T, h *Host, version, ipv6 string) {
	t.Helper()
	g := TrustGateway{Version: version, Addresses: []netip.Addr{h.IP, h.addIPv6(t, ipv6)}}
	g.Envoy = StartGateway(t, GatewayOptions{
		Host: h, Consul: l.Consul, Envoy: version, GRPCAddr: l.Usher.GRPCAddr, ID: "gateway-" + version,
		Args: []string{"-bind-address", "four=" + h.Addr(8443), "-bind-address", fmt.Sprintf("six=[%s]:8443", ipv6)},
	})
	l.Gateways = append(l.Gateways, g)
}

// waitServed waits until every listener that leads to a service of the lab
// answers some connection.
func (l *TrustLab) waitServed(t *testing.T) {
	t.Helper()
	for _, g := range l.Gateways {
		for _, m := range l.Listeners {
			if m.Service != "" {
				continue
			}
			for _, a := range g.Addresses {
				what := fmt.Sprintf("%s with %v of %s on %s", m.Protocol, m.Settings, g.Name, a)
				testprocess.Eventually(t, what, testprocess.StartDeadline, func() error {
					if err := g.Alive(); err != nil {
						return err
					}
					for _, name := range []string{"nothing", "v1, IPv4", "v2, IPv4"} {
						p := l.NewProbe(Probe{Gateway: g, Listener: m, From: l.Trusted, Address: a, Preface: PrefaceNamed(name)})
						if seen := p.Send(t, l); slices.Contains([]string{"200", "403", "served"}, seen.Response) {
							return nil
						}
					}
					return errors.New("no connection is answered")
				})
			}
		}
	}
}
