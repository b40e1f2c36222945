package listeners

import (
	"strings"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
)

// The names of the secrets, the same for every gateway: an Envoy sees those of
// its own gateway only. Clusters and listeners refer to them, so that a rotated
// certificate is one small resource and nothing is built anew.
const (
	LeafSecret    = "usher/leaf"    // the gateway's certificate and key towards the mesh
	ServingSecret = "usher/serving" // those that clients are shown
	RootsSecret   = "usher/roots"   // the mesh's root certificates
)

// PeerSecret names the root certificates of a cluster peer.
func PeerSecret(peer string) string { return "usher/peer/" + peer }

// secretsOf gives the secrets that there are, in no order.
func secretsOf(s *gateway.Snapshot) []*tlsv3.Secret {
	var secrets []*tlsv3.Secret
	for name := range s.Peers {
		if roots := peerRoots(s, name); roots != nil {
			secrets = append(secrets, rootsSecret(PeerSecret(name), roots))
		}
	}
	if s.Leaf != nil {
		secrets = append(secrets, leafSecret(LeafSecret, s.Leaf))
	}
	if s.Roots != nil {
		secrets = append(secrets, rootsSecret(RootsSecret, s.Roots))
	}
	if s.DownstreamLeaf != nil {
		secrets = append(secrets, leafSecret(ServingSecret, s.DownstreamLeaf))
	}
	return secrets
}

func leafSecret(name string, leaf *gateway.Leaf) *tlsv3.Secret {
	return &tlsv3.Secret{
		Name: name,
		Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: envoy.Inline(withNewline(leaf.CertPEM)),
			PrivateKey:       envoy.Inline(withNewline(string(leaf.KeyPEM))),
		}},
	}
}

func rootsSecret(name string, roots *gateway.Roots) *tlsv3.Secret {
	var all strings.Builder
	for _, pem := range roots.PEMs {
		all.WriteString(withNewline(pem))
	}
	return &tlsv3.Secret{
		Name: name,
		Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: envoy.Inline(all.String()),
		}},
	}
}

// withNewline ends a PEM block by a newline, so that another can follow it.
func withNewline(pem string) string {
	if pem == "" || strings.HasSuffix(pem, "\n") {
		return pem
	}
	return pem + "\n"
}

// secretOverADS refers to a secret by name on the stream of the resource that
// has the reference.
func secretOverADS(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: envoy.OverADS(envoy.FetchTimeout{})}
}
