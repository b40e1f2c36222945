package consul

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// signedLeaf is a leaf, and since when it is valid.
type issuedLeaf struct {
	*gateway.Leaf
	validFrom time.Time
}

// request makes a key and has a certificate signed that says what the wish
// says. Like Consul's agents it makes keys on P-256, whatever the authority's own
// is.
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
		return nil, permanentError{fmt.Errorf("the certificate that consul signed cannot be used: %w", err)}
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
		return "", fmt.Errorf("a certificate for the hosts of the ingress-gateway entry cannot be asked for: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// check gives the first certificate of a chain if it is what was wished for.
func verifySigned(chain string, w certRequest, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(chain))
	if block == nil {
		return nil, errors.New("it is not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("it is for another key")
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != w.uri {
		return nil, fmt.Errorf("it is for %v, not %s", cert.URIs, w.uri)
	}
	if !cert.NotBefore.Before(cert.NotAfter) {
		return nil, errors.New("it is never valid")
	}
	missing := slices.DeleteFunc(slices.Clone(w.names), func(name string) bool { return slices.Contains(cert.DNSNames, name) })
	if len(missing) > 0 {
		return nil, fmt.Errorf("the mesh's certificate authority left out %s; make its role or policy allow these names", strings.Join(missing, ", "))
	}
	return cert, nil
}
