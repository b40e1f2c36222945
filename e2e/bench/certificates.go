//go:build e2e

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// identity is a CA and a certificate of an address by it, in files.
type identity struct {
	ca, cert, key string // paths
	pool          *x509.CertPool
}

// newIdentity makes an identity for an address. The CA's key is forgotten.
func newIdentity(dir, ip string) (identity, error) {
	id := identity{
		ca: filepath.Join(dir, "ca.pem"), cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"),
		pool: x509.NewCertPool(),
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return id, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return id, err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Bench CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server.dc1.consul"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.ParseIP(ip)}, DNSNames: []string{"server.dc1.consul"},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return id, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return id, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return id, err
	}
	id.pool.AppendCertsFromPEM(encode("CERTIFICATE", caDER))
	for path, content := range map[string][]byte{
		id.ca: encode("CERTIFICATE", caDER), id.cert: encode("CERTIFICATE", leafDER), id.key: encode("PRIVATE KEY", keyDER),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return id, err
		}
	}
	return id, nil
}

func (id identity) client() *tls.Config {
	return &tls.Config{RootCAs: id.pool, MinVersion: tls.VersionTLS12}
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// certificatesIn gives the certificates that are written as PEM anywhere in the
// bytes of a resource.
func certificatesIn(body []byte) []*x509.Certificate {
	var out []*x509.Certificate
	for {
		begin := bytes.Index(body, []byte("-----BEGIN CERTIFICATE"))
		if begin < 0 {
			return out
		}
		block, rest := pem.Decode(body[begin:])
		if block == nil {
			return out
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, c)
		}
		body = rest
	}
}
