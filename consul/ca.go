package consul

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

var (
	// rootsType reads the mesh's root certificates
	// (https://developer.hashicorp.com/consul/api-docs/connect/ca#list-ca-root-certificates).
	rootsType = &queryType{name: "roots", path: "/v1/connect/ca/roots", decode: decodeJSON("root certificates", decodeRoots)}
	// leafType reads a gateway's certificate for the mesh, which Consul's agent makes and renews. It has no DNS names;
	// see certificate (https://developer.hashicorp.com/consul/api-docs/agent/connect#service-leaf-certificate).
	leafType = &queryType{name: "leaf", path: "/v1/agent/connect/ca/leaf/", local: true, decode: decodeLeaf}
)

// caRoots are the mesh's root certificates, and which of them signs now.
type caRoots struct {
	all    *gateway.Roots
	active string // the ID of the root that signs
}

type rootsBody struct {
	ActiveRootID string
	TrustDomain  string
	Roots        []struct{ RootCert string }
}

func decodeRoots(prev *caRoots, body rootsBody, _ response) (*caRoots, error) {
	if body.TrustDomain == "" || len(body.Roots) == 0 {
		return nil, errors.New("the mesh has none yet")
	}
	all := &gateway.Roots{TrustDomain: body.TrustDomain}
	for _, root := range body.Roots {
		if root.RootCert == "" {
			return nil, errors.New("one is empty")
		}
		all.PEMs = append(all.PEMs, root.RootCert)
	}
	if prev != nil {
		all = reuse(prev.all, all)
	}
	return &caRoots{all: all, active: body.ActiveRootID}, nil
}

func decodeLeaf(_ any, r response) (any, error) {
	var out struct {
		CertPEM       string
		PrivateKeyPEM gateway.Secret
		ValidBefore   time.Time
	}
	if err := json.Unmarshal(r.body, &out); err != nil {
		// An error of json may quote a part of the body, which contains a key.
		return nil, errors.New("leaf certificate: the answer is not valid JSON")
	}
	if out.CertPEM == "" || out.PrivateKeyPEM == "" {
		return nil, errors.New("leaf certificate: the answer lacks the certificate or its key")
	}
	return &gateway.Leaf{CertPEM: out.CertPEM, KeyPEM: out.PrivateKeyPEM, ValidBefore: out.ValidBefore}, nil
}

// issuedLeaf is a leaf, and since when it is valid.
type issuedLeaf struct {
	*gateway.Leaf
	validFrom time.Time
}

// requestCertificate makes a key and has the requested certificate signed. As Consul's agents do, it makes keys on
// P-256 whatever key the certificate authority has.
func requestCertificate(ctx context.Context, w certRequest, sign func(context.Context, string) (string, error)) (*issuedLeaf, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := newCSR(w, key)
	if err != nil {
		return nil, permanentError{err}
	}
	chain, err := sign(ctx, csr)
	if err != nil {
		return nil, err
	}
	cert, err := verifySigned(chain, w, key)
	if err != nil {
		return nil, permanentError{fmt.Errorf("cannot use the certificate that consul signed: %w", err)}
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	names := slices.Clone(cert.DNSNames)
	slices.Sort(names)
	return &issuedLeaf{validFrom: cert.NotBefore, Leaf: &gateway.Leaf{
		CertPEM:     chain,
		KeyPEM:      gateway.Secret(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})),
		ValidBefore: cert.NotAfter,
		Names:       names,
	}}, nil
}

func newCSR(w certRequest, key *ecdsa.PrivateKey) (string, error) {
	uri, err := url.Parse(w.uri)
	if err != nil {
		return "", err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}, DNSNames: w.names}, key)
	if err != nil {
		return "", fmt.Errorf("the hosts of the ingress-gateway entry are not valid in a certificate: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// verifySigned returns the first certificate of a chain if it is the requested one.
func verifySigned(chain string, w certRequest, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(chain))
	if block == nil {
		return nil, errors.New("not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("its key is another one")
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != w.uri {
		return nil, fmt.Errorf("its URIs are %v, want %s", cert.URIs, w.uri)
	}
	if !cert.NotBefore.Before(cert.NotAfter) {
		return nil, errors.New("it is valid at no time")
	}
	missing := slices.DeleteFunc(slices.Clone(w.names), func(name string) bool { return slices.Contains(cert.DNSNames, name) })
	if len(missing) > 0 {
		return nil, fmt.Errorf("the mesh's certificate authority left out %s; allow these names in its role or policy", strings.Join(missing, ", "))
	}
	return cert, nil
}
