package configdir

import (
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/gateway"
)

// tlsVersions are Consul's words, from the oldest version to the newest.
var tlsVersions = []string{"TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"}

// tlsAuto leaves the version to Envoy.
const tlsAuto = "TLS_AUTO"

// tls checks the parameters of a TLS block.
func (i *ingressCheck) tls(t *gateway.TLS, at ...any) {
	for _, v := range []struct{ name, value string }{{"TLSMinVersion", t.TLSMinVersion}, {"TLSMaxVersion", t.TLSMaxVersion}} {
		if v.value != "" && v.value != tlsAuto && !slices.Contains(tlsVersions, v.value) {
			i.problem(append(slices.Clone(at), v.name), "%q is not allowed; use one of %s, %s", v.value, tlsAuto, strings.Join(tlsVersions, ", "))
			return
		}
	}
	lowest, highest := slices.Index(tlsVersions, t.TLSMinVersion), slices.Index(tlsVersions, t.TLSMaxVersion)
	if highest >= 0 && highest < lowest {
		i.problem(append(slices.Clone(at), "TLSMaxVersion"), "%s is below the minimum %s; raise it", t.TLSMaxVersion, t.TLSMinVersion)
	}
	if len(t.CipherSuites) > 0 && t.TLSMinVersion == "TLSv1_3" {
		i.problem(append(slices.Clone(at), "CipherSuites"), "the suites of TLS 1.3 cannot be chosen; remove them, or lower the minimum version")
	}
}

// certificates refuses a listener that would need a certificate of the mesh,
// which file mode has not, and an incomplete reference to an SDS server.
func (i *ingressCheck) certificates(l *gateway.Listener, at []any) {
	sds := i.sds(l)
	switch {
	case sds.ClusterName != "" && sds.CertResource != "":
	case sds.ClusterName != "":
		i.problem(append(at, "TLS", "SDS", "CertResource"), "an SDS cluster is given and no certificate; add the certificate's name")
	case sds.CertResource != "":
		i.problem(append(at, "TLS", "SDS", "ClusterName"), "a certificate is given and no SDS cluster; add the cluster's name")
	case l.TLS != nil && l.TLS.Enabled:
		i.problem(append(at, "TLS", "Enabled"), noCertificate)
	case i.entry.spec.TLS.Enabled:
		i.problem(steps("TLS", "Enabled"), noCertificate)
	}
}

const noCertificate = "file mode has no certificate of the mesh; name one of an SDS server (sds), or remove it"

// sds gives the SDS reference that applies to a listener: its own, field by
// field over the gateway's.
func (i *ingressCheck) sds(l *gateway.Listener) gateway.SDS {
	var sds gateway.SDS
	if own := i.entry.spec.TLS.SDS; own != nil {
		sds = *own
	}
	if l.TLS != nil && l.TLS.SDS != nil {
		if l.TLS.SDS.ClusterName != "" {
			sds.ClusterName = l.TLS.SDS.ClusterName
		}
		if l.TLS.SDS.CertResource != "" {
			sds.CertResource = l.TLS.SDS.CertResource
		}
	}
	return sds
}

// serviceCertificate checks the certificate of one service of a listener,
// which is chosen by its hosts.
func (i *ingressCheck) serviceCertificate(l *gateway.Listener, s *gateway.ListenerService, at []any) {
	if s.TLS == nil || s.TLS.SDS == nil || s.TLS.SDS.CertResource == "" {
		return
	}
	at = append(at, "TLS", "SDS")
	switch {
	case l.Protocol == "tcp":
		i.problem(at, "a tcp listener takes no certificate per service; give it to the listener")
	case len(s.Hosts) == 0:
		i.problem(at, "a certificate per service is chosen by its hosts; add hosts to the service")
	case s.TLS.SDS.ClusterName == "" && i.sds(l).ClusterName == "":
		i.problem(append(at, "ClusterName"), "a certificate is given and no SDS cluster; add the cluster's name")
	}
}
