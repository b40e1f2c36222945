package gateway

import (
	"net/netip"
	"testing"

	"github.com/usherproxy/usher/internal/settings"
)

// behind is an instance behind a Service, in a snapshot that knows these
// balancers and has listeners on 80 and 81.
func behind(service string, balancers map[KubernetesService]*Balancer) (*Snapshot, *Instance) {
	in := &Instance{}
	if service != "" {
		in.Kubernetes = KubernetesService{Namespace: "ns", Name: service}
	}
	return &Snapshot{Balancers: balancers, Entry: &Entry{Listeners: []Listener{{Port: 80}, {Port: 81}}}}, in
}

func TestAutoIsWhatTheBalancerWasTold(t *testing.T) {
	known := map[KubernetesService]*Balancer{
		{"ns", "edge"}: {Ports: map[int]PortState{80: {Mode: settings.Strict}}, OtherPorts: PortState{Mode: settings.Off}},
		{"ns", "half"}: {Ports: map[int]PortState{80: {}}, OtherPorts: PortState{Mode: settings.Permissive}},
	}
	for name, c := range map[string]struct {
		service   string
		balancers map[KubernetesService]*Balancer
		port      int
		want      settings.Mode // "": not known
	}{
		"outside Kubernetes":             {"edge", nil, 80, settings.Off},
		"an instance that is not in it":  {"", known, 80, settings.Off},
		"its listener":                   {"edge", known, 80, settings.Strict},
		"another listener":               {"edge", known, 81, settings.Off},
		"a listener that is not known":   {"half", known, 80, ""},
		"beside one that is not known":   {"half", known, 81, settings.Permissive},
		"a Service that is not read yet": {"other", known, 80, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, in := behind(c.service, c.balancers)
			p, known := s.ListenerSettings(in, c.port)
			if p.ProxyProtocol.Mode != c.want || known != (c.want != "") {
				t.Errorf("mode %q, known %v; want %q", p.ProxyProtocol.Mode, known, c.want)
			}
			s.FileGateway.Settings.ProxyProtocol.Mode = settings.Permissive
			if p, known := s.ListenerSettings(in, c.port); p.ProxyProtocol.Mode != settings.Permissive || !known {
				t.Errorf("the settings say permissive: mode %q, known %v", p.ProxyProtocol.Mode, known)
			}
		})
	}
}

func TestUnexpectedHeadersAreBelievedOnlyFromTrustedAddresses(t *testing.T) {
	s, in := behind("edge", map[KubernetesService]*Balancer{{"ns", "edge"}: {OtherPorts: PortState{Mode: settings.Permissive, OnlyTrusted: true}}})
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for name, c := range map[string]struct {
		settings.ProxyProtocol
		want        settings.Mode
		onlyTrusted bool
	}{
		"no trusted_cidrs":            {settings.ProxyProtocol{}, settings.Off, true},
		"all addresses":               {settings.ProxyProtocol{TrustedCIDRs: settings.AnyNetwork}, settings.Off, true},
		"trusted_cidrs":               {settings.ProxyProtocol{TrustedCIDRs: trusted}, settings.Permissive, true},
		"trusted_cidrs, but not auto": {settings.ProxyProtocol{Mode: settings.Strict, TrustedCIDRs: trusted}, settings.Strict, false},
	} {
		s.FileGateway.Settings.ProxyProtocol = c.ProxyProtocol
		if l, known := s.ListenerSettings(in, 80); l.ProxyProtocol.Mode != c.want || !known {
			t.Errorf("%s: mode %q, known %v; want %q", name, l.ProxyProtocol.Mode, known, c.want)
		}
		if got := s.OnlyTrusted(in, 80); got != c.onlyTrusted {
			t.Errorf("%s: OnlyTrusted is %v", name, got)
		}
	}
}

func TestABalancerIsFollowedWhereAListenerIsAuto(t *testing.T) {
	s, in := behind("edge", nil)
	if !s.HasAutoListener(in) {
		t.Error("no layer sets the mode: it has no auto listener")
	}
	s.FileGateway.Settings.ProxyProtocol.Mode = settings.Off
	if s.HasAutoListener(in) {
		t.Error("all are off: followed")
	}
	s.FileGateway.Settings.Listeners = map[int]settings.Listener{81: {ProxyProtocol: settings.ProxyProtocol{Mode: settings.Auto}}}
	if !s.HasAutoListener(in) {
		t.Error("one is auto: not followed")
	}
	s.Entry = nil
	if s.HasAutoListener(in) {
		t.Error("no listener: followed")
	}
}
