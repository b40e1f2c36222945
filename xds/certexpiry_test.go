package xds

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/problem"
)

// authority issues certificates.
type authority struct {
	name string
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return authority{name, key}
}

// sign returns the certificate of another authority, or a self-signed one.
func (a authority) sign(t *testing.T, of authority, until time.Time) *x509.Certificate {
	t.Helper()
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(0, 0), NotAfter: until,
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template(of.name), template(a.name), of.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestOnlyCertificatesThatClientsUseExpire has bundles with certificates that have expired.
func TestOnlyCertificatesThatClientsUseExpire(t *testing.T) {
	now := time.Now()
	good, past := now.Add(1000*time.Hour), now.Add(-time.Hour)
	leaf, issuer, root, old := newAuthority(t, "leaf"), newAuthority(t, "issuer"), newAuthority(t, "root"), newAuthority(t, "old")
	ofLeaf := issuer.sign(t, leaf, good)
	for _, tc := range []struct {
		name    string
		bundle  []*x509.Certificate
		want    string // how the only problem begins; "": there is none
		expires time.Time
	}{
		{"a root", []*x509.Certificate{ofLeaf, root.sign(t, issuer, good), root.sign(t, root, past)}, "", good},
		{"one that signs nothing here", []*x509.Certificate{ofLeaf, old.sign(t, old, past), root.sign(t, old, past), root.sign(t, issuer, good)}, "", good},
		{
			"a root that an older one signed",
			[]*x509.Certificate{ofLeaf, root.sign(t, issuer, good), root.sign(t, root, good), old.sign(t, root, past)},
			`degraded the certificate "CN=root" in its chain expired at`, good,
		},
		{"the issuer", []*x509.Certificate{ofLeaf, root.sign(t, issuer, past)}, `outage the certificate "CN=issuer" in its chain expired at`, past},
		{"the leaf", []*x509.Certificate{issuer.sign(t, leaf, past), root.sign(t, issuer, good)}, `outage the certificate expired at`, past},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pair := &tls.Certificate{Leaf: tc.bundle[0]}
			for _, c := range tc.bundle {
				pair.Certificate = append(pair.Certificate, c.Raw)
			}
			found, _ := chainProblems(chainOf(pair), "tls.crt", now)
			got := ""
			for _, p := range found {
				got += p.Severity.String() + " " + p.What
			}
			if len(found) > 1 || (got == "") != (tc.want == "") || !strings.HasPrefix(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if until := chainOf(pair).First().Until; until.Unix() != tc.expires.Unix() {
				t.Errorf("the metric has %v, want %v", until, tc.expires)
			}
			if len(found) == 1 && (found[0].Severity == problem.Outage) != strings.Contains(found[0].What, "no Envoy can connect") {
				t.Errorf("got %s", found[0])
			}
		})
	}
}
