package configdir

import (
	"net"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
)

// protocols are those of listeners and services; "" stands for the first.
var protocols = []string{"tcp", "http", "http2", "grpc"}

// wildcard stands for all services.
const wildcard = "*"

// checkIngress brings an ingress-gateway entry into Consul's normal form and
// applies the rules that Consul applies when the entry is written
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/ingress-gateway).
func checkIngress(d *decoder, e *entry[ingressGateway]) {
	i := ingressCheck{d: d, entry: e}
	i.tls(&e.spec.TLS, "TLS")
	i.limits(e.spec.Defaults, "Defaults")
	ports := map[int]place{}
	for n := range e.spec.Listeners {
		l := &e.spec.Listeners[n]
		at := e.place("Listeners", n, "Port")
		if earlier, twice := ports[l.Port]; twice {
			i.problem(steps("Listeners", n, "Port"), "port %d is already given at %s; give every listener its own", l.Port, earlier)
		}
		ports[l.Port] = at
		i.listener(l, n)
	}
}

type ingressCheck struct {
	d     *decoder
	entry *entry[ingressGateway]
}

// steps joins what leads to a field; see node.locate.
func steps(s ...any) []any { return s }

func (i *ingressCheck) problem(at []any, format string, args ...any) {
	i.entry.problem(i.d, at, format, args...)
}

func (i *ingressCheck) listener(l *gateway.Listener, n int) {
	at := steps("Listeners", n)
	if l.Port < 1 || l.Port > 65535 {
		i.problem(append(at, "Port"), "%d is not a port; use one from 1 to 65535", l.Port)
	}
	l.Protocol = protocolOf(l.Protocol)
	if !slices.Contains(protocols, l.Protocol) {
		i.problem(append(at, "Protocol"), "%q is not allowed; use one of %s", l.Protocol, strings.Join(protocols, ", "))
		return
	}
	if l.TLS != nil {
		i.tls(l.TLS, "Listeners", n, "TLS")
	}
	i.certificates(l, at)
	switch {
	case len(l.Services) == 0:
		i.problem(append(at, "Services"), "this listener has no service; add one")
	case l.Protocol == "tcp" && len(l.Services) > 1:
		i.problem(append(at, "Services", 1, "Name"), "a tcp listener takes one service; give each service a listener of its own")
	}
	names, hosts := map[string]place{}, map[string]place{}
	for k := range l.Services {
		s := &l.Services[k]
		at := steps("Listeners", n, "Services", k)
		i.once(names, s.Name, append(at, "Name"), "service")
		for h, host := range s.Hosts {
			i.once(hosts, host, append(at, "Hosts", h), "host")
			i.host(host, append(at, "Hosts", h))
		}
		i.service(l, s, at)
	}
}

// protocolOf gives Consul's normal form of a protocol.
func protocolOf(s string) string {
	if s == "" {
		return protocols[0]
	}
	return strings.ToLower(s)
}

// once refuses a second use of a value within a listener.
func (i *ingressCheck) once(seen map[string]place, value string, at []any, what string) {
	if earlier, twice := seen[value]; twice {
		i.problem(at, "%s %q is already given at %s; a listener takes it once", what, value, earlier)
		return
	}
	seen[value] = i.entry.place(at...)
}

func (i *ingressCheck) service(l *gateway.Listener, s *gateway.ListenerService, at []any) {
	i.entry.onlyDefault(i.d, at, s.Namespace, s.Partition)
	s.Namespace, s.Partition = "", ""
	i.limits(&s.Limits, at...)
	tcp := l.Protocol == "tcp"
	switch {
	case s.Name == "":
		i.problem(append(at, "Name"), "this service has no name; give it one")
	case s.Name == wildcard && tcp:
		i.problem(append(at, "Name"), "a tcp listener takes one service and not \"*\"; name it, or use protocol http")
	case s.Name == wildcard && len(s.Hosts) > 0:
		i.problem(append(at, "Hosts"), "\"*\" takes no hosts; name the service that has them")
	case tcp && len(s.Hosts) > 0:
		i.problem(append(at, "Hosts"), "a tcp listener takes no hosts; remove them, or use protocol http")
	}
	if tcp && modifies(s.RequestHeaders) {
		i.problem(append(at, "RequestHeaders"), "a tcp listener knows no headers; remove them, or use protocol http")
	}
	if tcp && modifies(s.ResponseHeaders) {
		i.problem(append(at, "ResponseHeaders"), "a tcp listener knows no headers; remove them, or use protocol http")
	}
	i.serviceCertificate(l, s, at)
}

func modifies(m *gateway.HeaderModifiers) bool {
	return m != nil && len(m.Add)+len(m.Set)+len(m.Remove) > 0
}

// host applies Consul's rules for hosts: a DNS name, with or without a port,
// "*" for the leftmost label, and "*" alone where the gateway has no TLS.
func (i *ingressCheck) host(host string, at []any) {
	if host == "*" {
		if i.entry.spec.TLS.Enabled {
			i.problem(at, "\"*\" is not allowed on a gateway with TLS; name the hosts")
		}
		return
	}
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "*."), ".")
	if strings.Contains(name, "*") {
		i.problem(at, "%q is not allowed; \"*\" stands only for the leftmost label, as in \"*.example.com\"", host)
		return
	}
	if !isDomain(name) {
		i.problem(at, "%q is not a host name; use one such as \"www.example.com\"", host)
	}
}

func isDomain(name string) bool {
	if len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, notInLabel) {
			return false
		}
	}
	return true
}

func notInLabel(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune(`/\:;,"'()[]{}<>@?#&=%`, r)
}

// limits checks percentages, which Envoy would refuse.
func (i *ingressCheck) limits(l *gateway.Limits, at ...any) {
	if l == nil || l.PassiveHealthCheck == nil {
		return
	}
	check := l.PassiveHealthCheck
	for _, p := range []struct {
		name  string
		value *uint32
	}{{"EnforcingConsecutive5xx", check.EnforcingConsecutive5xx}, {"MaxEjectionPercent", check.MaxEjectionPercent}} {
		if p.value != nil && *p.value > 100 {
			i.problem(append(slices.Clone(at), "PassiveHealthCheck", p.name), "%d is not a percentage; use 0 to 100", *p.value)
		}
	}
}
