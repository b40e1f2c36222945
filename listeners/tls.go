package listeners

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
)

// listenerSocket returns the TLS of a listener, or nil for plain text. A certificate from an SDS server wins over
// the gateway's own. Both can be set at the gateway or at the listener, and a listener cannot switch off the
// gateway's (https://developer.hashicorp.com/consul/docs/reference/config-entry/ingress-gateway#tls).
func listenerSocket(input compileInput, p port) (*corev3.TransportSocket, error) {
	tls := input.snapshot.Entry.TLS.Override(p.listener.TLS)
	sds := tls.SDS
	switch {
	case sds != nil && (sds.ClusterName == "") != (sds.CertResource == ""):
		return nil, errors.New("TLS.SDS needs both ClusterName and CertResource; set the missing one at the gateway or at the listener")
	case sds != nil && sds.ClusterName != "":
	case !tls.Enabled:
		return nil, nil
	case input.snapshot.Plain:
		return nil, errors.New("TLS.Enabled takes the gateway's certificate from the service mesh, and there is no mesh; " +
			"use TLS.SDS, or remove TLS.Enabled (clients then connect without TLS)")
	default:
		if err := p.checkNames(input.snapshot.DownstreamLeaf); err != nil {
			return nil, err
		}
		sds = nil
	}
	params, err := tlsParameters(gateway.TLSParameters{
		TLSMinVersion: tls.TLSMinVersion, TLSMaxVersion: tls.TLSMaxVersion, CipherSuites: tls.CipherSuites,
	})
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	common := &tlsv3.CommonTlsContext{TlsParams: params, AlpnProtocols: alpn(p.protocol)}
	if sds != nil {
		common.TlsCertificateSdsSecretConfigs = externalSecret(*sds)
	} else {
		common.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{secretOverADS(ServingSecret)}
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
			ValidationContextSdsSecretConfig: secretOverADS(RootsSecret),
		}
	}
	return downstreamSocket(common)
}

// checkNames returns an error for a name of the port's services that the certificate for clients lacks: clients
// would reject it.
func (p *port) checkNames(serving *gateway.Leaf) error {
	if serving == nil {
		return errors.New("there is no certificate for clients yet; " +
			"check Consul's gRPC port and the warnings in Usher's log")
	}
	for _, r := range p.services {
		if hasOwnCertificate(*r.settings) {
			continue
		}
		if name := missingName(r.service, serving.Names); name != "" {
			return fmt.Errorf("there is no certificate with the name %s of service %s yet; Usher has asked Consul for one; "+
				"if this lasts, check Consul's gRPC port and the warnings in Usher's log", name, r.service.Service)
		}
	}
	return nil
}

// missingName returns a name of a service that is not in a certificate; "" if there is none. A service without hosts
// has names in Consul's DNS domains.
func missingName(s gateway.Service, names []string) string {
	if len(s.Hosts) == 0 {
		ingress := "*.ingress."
		if namespace := gateway.OmitDefault(s.Service.Namespace); namespace != "" {
			ingress += namespace + "."
		}
		if !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, ingress) }) {
			return ingress + "<domain>"
		}
	}
	for _, host := range s.Hosts {
		if host, _, _ := strings.Cut(host, ":"); !slices.Contains(names, host) {
			return host
		}
	}
	return ""
}

// hasOwnCertificate reports whether a service has its own certificate.
func hasOwnCertificate(svc gateway.ListenerService) bool {
	return svc.TLS != nil && svc.TLS.SDS != nil && svc.TLS.SDS.CertResource != ""
}

// serviceSocket returns the TLS of a service with its own certificate. As with Consul, the versions and ciphers of
// the gateway and the listener do not apply to it. Consul accepts such a service without a ClusterName and sends
// Envoy an empty one, which it rejects; here the listener's or the gateway's counts.
func serviceSocket(input compileInput, p port, svc *gateway.ListenerService) (*corev3.TransportSocket, error) {
	sds := input.snapshot.Entry.TLS.Override(p.listener.TLS).SDS.Override(svc.TLS.SDS)
	if sds == nil || sds.ClusterName == "" {
		return nil, errors.New("TLS.SDS needs a ClusterName; set it at the service, the listener or the gateway")
	}
	return downstreamSocket(&tlsv3.CommonTlsContext{
		TlsParams:                      &tlsv3.TlsParameters{},
		AlpnProtocols:                  alpn(p.protocol),
		TlsCertificateSdsSecretConfigs: externalSecret(*sds),
	})
}

func downstreamSocket(common *tlsv3.CommonTlsContext) (*corev3.TransportSocket, error) {
	return envoy.TransportSocket("tls", &tlsv3.DownstreamTlsContext{
		CommonTlsContext:         common,
		RequireClientCertificate: wrapperspb.Bool(false),
	})
}

// externalSecret refers to a certificate on an SDS server whose cluster is in Envoy's bootstrap.
func externalSecret(sds gateway.SDS) []*tlsv3.SdsSecretConfig {
	server := envoy.GRPCService(sds.ClusterName)
	server.Timeout = durationpb.New(5 * time.Second)
	return []*tlsv3.SdsSecretConfig{{
		Name: sds.CertResource,
		SdsConfig: &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
				ApiType:             corev3.ApiConfigSource_GRPC,
				TransportApiVersion: corev3.ApiVersion_V3,
				GrpcServices:        []*corev3.GrpcService{server},
			}},
			ResourceApiVersion: corev3.ApiVersion_V3,
		},
	}}
}

func alpn(protocol string) []string {
	switch protocol {
	case gateway.ProtocolHTTP2, gateway.ProtocolGRPC:
		return []string{"h2", "http/1.1"}
	case gateway.ProtocolHTTP:
		return []string{"http/1.1"}
	}
	return nil
}

// cipherSuites are Envoy's names of the cipher suites, by their IANA names, which Consul takes.
var cipherSuites = map[string]string{
	"TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA":          "ECDHE-ECDSA-AES128-SHA",
	"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256":       "ECDHE-ECDSA-AES128-GCM-SHA256",
	"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA":          "ECDHE-ECDSA-AES256-SHA",
	"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384":       "ECDHE-ECDSA-AES256-GCM-SHA384",
	"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
	"TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA":            "ECDHE-RSA-AES128-SHA",
	"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256":         "ECDHE-RSA-AES128-GCM-SHA256",
	"TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA":            "ECDHE-RSA-AES256-SHA",
	"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384":         "ECDHE-RSA-AES256-GCM-SHA384",
	"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256":   "ECDHE-RSA-CHACHA20-POLY1305",
	"TLS_RSA_WITH_AES_128_CBC_SHA":                  "AES128-SHA",
	"TLS_RSA_WITH_AES_128_GCM_SHA256":               "AES128-GCM-SHA256",
	"TLS_RSA_WITH_AES_256_CBC_SHA":                  "AES256-SHA",
	"TLS_RSA_WITH_AES_256_GCM_SHA384":               "AES256-GCM-SHA384",
}

// ecdhCurves are the names that Envoy's library of TLS takes. Envoy 1.36 and 1.40 take all of them.
var ecdhCurves = []string{"X25519MLKEM768", "X25519", "P-256", "P-384", "P-521"}

// tlsParameters translates versions and ciphers. An unknown word is an error: without it the listener would accept
// what it must not.
func tlsParameters(p gateway.TLSParameters) (*tlsv3.TlsParameters, error) {
	minimum, err := tlsVersion("TLSMinVersion", p.TLSMinVersion)
	if err != nil {
		return nil, err
	}
	maximum, err := tlsVersion("TLSMaxVersion", p.TLSMaxVersion)
	if err != nil {
		return nil, err
	}
	if len(p.CipherSuites) > 0 && minimum == tlsv3.TlsParameters_TLSv1_3 {
		return nil, errors.New("CipherSuites cannot be chosen with TLSMinVersion TLSv1_3; remove one of them")
	}
	out := &tlsv3.TlsParameters{TlsMinimumProtocolVersion: minimum, TlsMaximumProtocolVersion: maximum}
	for _, name := range p.CipherSuites {
		suite, ok := cipherSuites[name]
		if !ok {
			return nil, fmt.Errorf("cipher suite %q is not known to Envoy; use names such as TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", name)
		}
		out.CipherSuites = append(out.CipherSuites, suite)
	}
	for _, name := range p.ECDHCurves {
		if !slices.Contains(ecdhCurves, name) {
			return nil, fmt.Errorf("ECDHCurves: %q is not known; use %s", name, strings.Join(ecdhCurves, ", "))
		}
	}
	out.EcdhCurves = p.ECDHCurves
	return out, nil
}

// tlsVersion translates a version. Envoy's names are those that Consul takes.
func tlsVersion(setting, name string) (tlsv3.TlsParameters_TlsProtocol, error) {
	version, known := tlsv3.TlsParameters_TlsProtocol_value[cmp.Or(name, "TLS_AUTO")]
	if !known {
		return 0, fmt.Errorf("%s %q is not known; use TLS_AUTO, TLSv1_0, TLSv1_1, TLSv1_2 or TLSv1_3", setting, name)
	}
	return tlsv3.TlsParameters_TlsProtocol(version), nil
}

// The names of the secrets, the same for every gateway: an Envoy gets only those of its gateway. Clusters and listeners
// refer to them, so a rotated certificate is one small resource.
const (
	LeafSecret    = "usher/leaf"    // the gateway's certificate and key towards the mesh
	ServingSecret = "usher/serving" // those for clients
	RootsSecret   = "usher/roots"   // the mesh's root certificates
)

// PeerSecret names the root certificates of a cluster peer.
func PeerSecret(peer string) string { return "usher/peer/" + peer }

// secretsOf returns the secrets of a gateway, in no order.
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

// secretOverADS refers to a secret on the stream of the resource with the reference.
func secretOverADS(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: envoy.OverADS(envoy.FetchTimeout{})}
}
