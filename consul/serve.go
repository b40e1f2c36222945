package consul

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// serve sees to the certificate that the clients of listeners with TLS are
// shown. It follows from all other parts, so it waits for them to be complete.
func (b *snapshotBuilder) addCertificate() {
	if len(b.missing) > 0 {
		return
	}
	if !servesTLS(b.snapshot.Entry) || len(b.snapshot.Services) == 0 {
		b.stopCertificate()
		return
	}
	if b.certificate == nil {
		b.startCertificate()
	}
	w := b.certRequest()
	b.certificate.setRequest(w)
	b.certState = b.certificate.current()
	if !b.certState.request.sameCertificate(w) {
		b.pending = append(b.pending, "the certificate for clients")
	}
	b.setCertificate(b.certState, time.Now())
}

// shown puts the certificate into the snapshot. Consul's own xDS shows the same
// one to clients and to the mesh.
func (b *snapshotBuilder) setCertificate(s *certState, now time.Time) {
	where := fmt.Sprintf("certificate of gateway %q for clients", b.id.String())
	if s.err != nil && s.lasts() {
		b.addProblem(where, s.err.Error())
	}
	if s.leaf == nil {
		return
	}
	b.snapshot.DownstreamLeaf = s.leaf
	if now.After(s.leaf.ValidBefore) {
		b.addProblem(where, "it expired at "+s.leaf.ValidBefore.UTC().Format(time.RFC3339)+", and clients refuse it")
		return
	}
	b.snapshot.Leaf = s.leaf
}

func (s *source) startCertificate() {
	s.signer.acquire()
	s.certificate = (&certificate{id: s.id, sign: s.signer.sign, client: s.client, notify: s.subscription.notify}).start()
}

// endServing ends what startServing has started.
func (s *source) stopCertificate() {
	if s.certificate == nil {
		return
	}
	s.certificate.close()
	s.signer.release()
	s.certificate, s.certState = nil, nil
}

// servesTLS says whether some listener shows clients a certificate of the mesh.
// As with Consul, one that shows another one (SDS) asks for it as well.
func servesTLS(e *gateway.Entry) bool {
	return e != nil && (e.TLS.Enabled || slices.ContainsFunc(e.Listeners, func(l gateway.Listener) bool {
		return l.TLS != nil && l.TLS.Enabled
	}))
}

func (b *snapshotBuilder) certRequest() certRequest {
	// An agent that does not tell its domain has the default one.
	domains := []string{cmp.Or(b.agent.domain, "consul.")}
	if b.agent.altDomain != "" {
		domains = append(domains, b.agent.altDomain)
	}
	return certRequest{
		uri:         gateway.ServiceName(b.id).SPIFFEID(b.snapshot.Roots.TrustDomain, b.snapshot.Datacenter),
		names:       dnsNames(b.snapshot.Services, b.snapshot.Datacenter, domains),
		root:        b.activeRoot,
		grpcAddress: b.client.grpcAddress(b.agent),
	}
}

// dnsNames are the names that Consul puts into the certificate: wildcards in the
// domains that Consul answers DNS for, and the hosts of all services, without
// ports. Consul writes its domains with the dot at the end, which only some
// clients understand, so each name is there without it as well.
func dnsNames(services []gateway.Service, datacenter string, domains []string) []string {
	var names []string
	for _, s := range services {
		ingress := "*.ingress."
		if s.Service.Namespace != "" {
			ingress += s.Service.Namespace + "."
		}
		for _, domain := range domains {
			names = append(names, ingress+domain, ingress+datacenter+"."+domain)
		}
		for _, host := range s.Hosts {
			host, _, _ = strings.Cut(host, ":")
			names = append(names, host)
		}
	}
	for _, name := range names {
		names = append(names, strings.TrimSuffix(name, "."))
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool { return name == "" })
}
