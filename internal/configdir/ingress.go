package configdir

import (
	"cmp"
	"net"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
)

// wildcard is the name of all services.
const wildcard = "*"

// checkIngress brings an ingress-gateway entry into Consul's normal form and applies the rules that Consul applies
// when the entry is written (https://developer.hashicorp.com/consul/docs/reference/config-entry/ingress-gateway).
func checkIngress(e *entry[ingressGateway]) {
	c := ingressCheck{e}
	c.tls(&e.spec.TLS, steps("TLS"))
	c.limits(e.spec.Defaults, steps("Defaults"))
	ports := map[int]string{}
	for n := range e.spec.Listeners {
		l, at := &e.spec.Listeners[n], steps("Listeners", n)
		if earlier, twice := ports[l.Port]; twice {
			e.add(join(at, "Port"), "port %d is already given at %s; give every listener another port", l.Port, earlier)
		}
		ports[l.Port] = e.at(join(at, "Port")...)
		c.listener(l, at)
	}
}

type ingressCheck struct{ *entry[ingressGateway] }

// join returns the steps at, followed by others.
func join(at []any, others ...any) []any { return slices.Concat(at, others) }

func (c ingressCheck) listener(l *gateway.Listener, at []any) {
	if l.Port < 1 || l.Port > 65535 {
		c.add(join(at, "Port"), "%d is not a port; use one from 1 to 65535", l.Port)
	}
	if !c.checkProtocol(join(at, "Protocol"), l.Protocol) {
		return
	}
	l.Protocol = gateway.NormalProtocol(l.Protocol)
	if l.TLS != nil {
		c.tls(l.TLS, join(at, "TLS"))
	}
	c.certificate(l, at)
	switch {
	case len(l.Services) == 0:
		c.add(join(at, "Services"), "this listener has no service; add one")
	case l.Protocol == gateway.ProtocolTCP && len(l.Services) > 1:
		c.add(join(at, "Services", 1, "Name"), "a tcp listener takes one service; add one listener for each service")
	}
	names, hosts := map[string]string{}, map[string]string{}
	for k := range l.Services {
		s, at := &l.Services[k], join(at, "Services", k)
		c.once(names, s.Name, join(at, "Name"), "service")
		for h, host := range s.Hosts {
			c.once(hosts, host, join(at, "Hosts", h), "host")
			c.host(host, join(at, "Hosts", h))
		}
		c.service(l, s, at)
	}
}

// once refuses a second use of a value within a listener.
func (c ingressCheck) once(positions map[string]string, value string, at []any, what string) {
	if earlier, twice := positions[value]; twice {
		c.add(at, "%s %q is already given at %s; a listener can have it only once", what, value, earlier)
		return
	}
	positions[value] = c.at(at...)
}

func (c ingressCheck) service(l *gateway.Listener, s *gateway.ListenerService, at []any) {
	c.onlyDefault(at, s.Namespace, s.Partition)
	s.Namespace, s.Partition = "", ""
	c.limits(&s.Limits, at)
	tcp := l.Protocol == gateway.ProtocolTCP
	switch {
	case s.Name == "":
		c.add(join(at, "Name"), "this service has no name; give it one")
	case s.Name == wildcard && tcp:
		c.add(join(at, "Name"), "a tcp listener takes one service and not \"*\"; name it, or use protocol http")
	case s.Name == wildcard && len(s.Hosts) > 0:
		c.add(join(at, "Hosts"), "\"*\" takes no hosts; name the service that has them")
	case tcp && len(s.Hosts) > 0:
		c.add(join(at, "Hosts"), "a tcp listener takes no hosts; remove them, or use protocol http")
	}
	headers := func(name string, m *gateway.HeaderModifiers) {
		if tcp && m != nil && len(m.Add)+len(m.Set)+len(m.Remove) > 0 {
			c.add(join(at, name), "a tcp listener has no headers; remove them, or use protocol http")
		}
	}
	headers("RequestHeaders", s.RequestHeaders)
	headers("ResponseHeaders", s.ResponseHeaders)
	if s.TLS != nil && s.TLS.SDS != nil && s.TLS.SDS.CertResource != "" {
		c.serviceCertificate(l, s, join(at, "TLS", "SDS"))
	}
}

// host applies Consul's rules for hosts: a DNS name, with or without a port, "*" for the leftmost label, and "*"
// alone where the gateway has no TLS.
func (c ingressCheck) host(host string, at []any) {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "*."), ".")
	switch {
	case host == "*" && c.spec.TLS.Enabled:
		c.add(at, "\"*\" is not allowed on a gateway with TLS; name the hosts")
	case host == "*":
	case strings.Contains(name, "*"):
		c.add(at, "%q is not allowed; \"*\" stands only for the leftmost label, as in \"*.example.com\"", host)
	case !isDomain(name):
		c.add(at, "%q is not a host name; use one such as \"www.example.com\"", host)
	}
}

func isDomain(name string) bool {
	if len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		notAllowed := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/\:;,"'()[]{}<>@?#&=%`, r) }
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, notAllowed) {
			return false
		}
	}
	return true
}

// limits checks percentages, of which Envoy would reject those over 100.
func (c ingressCheck) limits(l *gateway.Limits, at []any) {
	if l == nil || l.PassiveHealthCheck == nil {
		return
	}
	percentage := func(name string, value *uint32) {
		if value != nil && *value > 100 {
			c.add(join(at, "PassiveHealthCheck", name), "%d is not a percentage; use 0 to 100", *value)
		}
	}
	percentage("EnforcingConsecutive5xx", l.PassiveHealthCheck.EnforcingConsecutive5xx)
	percentage("EnforcingConsecutiveGatewayFailure", l.PassiveHealthCheck.EnforcingConsecutiveGatewayFailure)
	percentage("MaxEjectionPercent", l.PassiveHealthCheck.MaxEjectionPercent)
}

// tlsVersions are Consul's names of the TLS versions, from the oldest to the newest.
var tlsVersions = []string{"TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"}

// tlsAuto leaves the version to Envoy.
const tlsAuto = "TLS_AUTO"

// tls checks the parameters of a TLS block.
func (c ingressCheck) tls(t *gateway.TLS, at []any) {
	for _, v := range []struct{ name, value string }{{"TLSMinVersion", t.TLSMinVersion}, {"TLSMaxVersion", t.TLSMaxVersion}} {
		if v.value != "" && v.value != tlsAuto && !slices.Contains(tlsVersions, v.value) {
			c.add(join(at, v.name), "%q is not allowed; use one of %s, %s", v.value, tlsAuto, strings.Join(tlsVersions, ", "))
			return
		}
	}
	lowest, highest := slices.Index(tlsVersions, t.TLSMinVersion), slices.Index(tlsVersions, t.TLSMaxVersion)
	if highest >= 0 && highest < lowest {
		c.add(join(at, "TLSMaxVersion"), "%s is below the minimum %s; raise it", t.TLSMaxVersion, t.TLSMinVersion)
	}
	if len(t.CipherSuites) > 0 && t.TLSMinVersion == "TLSv1_3" {
		c.add(join(at, "CipherSuites"), "the suites of TLS 1.3 cannot be chosen; remove them, or lower the minimum version")
	}
}

// certificate refuses a listener that would need a certificate of the mesh, which file mode does not have, and an
// incomplete reference to an SDS server.
func (c ingressCheck) certificate(l *gateway.Listener, at []any) {
	const missing = "in file mode Usher has no mesh CA to issue a certificate; take one from an SDS server (tls.sds), or remove tls.enabled (clients then connect without TLS)"
	tls := c.spec.TLS.Override(l.TLS)
	sds := cmp.Or(tls.SDS, &gateway.SDS{})
	switch {
	case sds.ClusterName != "" && sds.CertResource != "":
	case sds.ClusterName != "":
		c.add(join(at, "TLS", "SDS", "CertResource"), "an SDS cluster is given and no certificate; add the certificate's name")
	case sds.CertResource != "":
		c.add(join(at, "TLS", "SDS", "ClusterName"), noCluster)
	case l.TLS != nil && l.TLS.Enabled:
		c.add(join(at, "TLS", "Enabled"), missing)
	case c.spec.TLS.Enabled:
		c.add(steps("TLS", "Enabled"), missing)
	}
}

const noCluster = "a certificate is given and no SDS cluster; add the cluster's name"

// serviceCertificate checks the certificate of one service of a listener, which is chosen by its hosts.
func (c ingressCheck) serviceCertificate(l *gateway.Listener, s *gateway.ListenerService, at []any) {
	sds := c.spec.TLS.Override(l.TLS).SDS.Override(s.TLS.SDS)
	switch {
	case l.Protocol == gateway.ProtocolTCP:
		c.add(at, "a tcp listener takes no certificate per service; give it to the listener")
	case len(s.Hosts) == 0:
		c.add(at, "a certificate per service is chosen by its hosts; add hosts to the service")
	case sds.ClusterName == "":
		c.add(join(at, "ClusterName"), noCluster)
	}
}
