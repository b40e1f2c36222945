//go:build e2e

package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"testing"
	"time"
)

// CertificateAuthority signs the certificates of a lab.
type CertificateAuthority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewCertificateAuthority returns an authority with a new key.
func NewCertificateAuthority(t *testing.T, name string) *CertificateAuthority {
	t.Helper()
	key := newKey(t)
	template := certificateTemplate(t, name)
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	return &CertificateAuthority{certificate: sign(t, template, template, key, key), key: key}
}

// Issue writes a certificate for the name, localhost and the addresses below
// the directory, with its key, and returns the paths of both.
func (a *CertificateAuthority) Issue(t *testing.T, dir, name string, ips ...netip.Addr) (cert, key string) {
	t.Helper()
	return a.issue(t, dir, name, []string{name, "localhost"}, ips)
}

// IssueNamed is Issue for a common name that may be no host name, such as that of a client.
func (a *CertificateAuthority) IssueNamed(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	return a.issue(t, dir, name, nil, nil)
}

func (a *CertificateAuthority) issue(t *testing.T, dir, name string, hosts []string, ips []netip.Addr) (cert, key string) {
	t.Helper()
	template := certificateTemplate(t, name)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.DNSNames = hosts
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, ip := range ips {
		template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
	}
	private := newKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate := sign(t, template, a.certificate, private, a.key)
	return WriteFile(t, dir, "cert.pem", EncodePEM("CERTIFICATE", certificate.Raw)),
		WriteFile(t, dir, "key.pem", EncodePEM("PRIVATE KEY", der))
}

// PEM returns the certificate of the authority.
func (a *CertificateAuthority) PEM() string { return EncodePEM("CERTIFICATE", a.certificate.Raw) }

// Pool trusts the authority alone.
func (a *CertificateAuthority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

func certificateTemplate(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
}

func sign(t *testing.T, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// EncodePEM returns a PEM block of the type.
func EncodePEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
