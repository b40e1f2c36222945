package consul

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/usherproxy/usher/gateway"
)

var (
	// rootsKind reads the mesh's root certificates
	// (https://developer.hashicorp.com/consul/api-docs/connect/ca#list-ca-root-certificates).
	rootsKind = &kind{name: "roots", path: "/v1/connect/ca/roots", decode: decoding(decodeRoots)}
	// leafKind reads a gateway's certificate, which Consul's agent makes and
	// renews
	// (https://developer.hashicorp.com/consul/api-docs/agent/connect#service-leaf-certificate).
	leafKind = &kind{name: "leaf", path: "/v1/agent/connect/ca/leaf/", local: true, decode: decoding(decodeLeaf)}
)

func decodeRoots(_ *gateway.Roots, a answer) (*gateway.Roots, error) {
	var out struct {
		TrustDomain string
		Roots       []struct{ RootCert string }
	}
	if err := json.Unmarshal(a.body, &out); err != nil {
		return nil, fmt.Errorf("root certificates: %w", err)
	}
	if out.TrustDomain == "" || len(out.Roots) == 0 {
		return nil, errors.New("root certificates: the mesh has none yet")
	}
	r := &gateway.Roots{TrustDomain: out.TrustDomain}
	for _, root := range out.Roots {
		r.PEMs = append(r.PEMs, root.RootCert)
	}
	return r, nil
}

func decodeLeaf(_ *gateway.Leaf, a answer) (*gateway.Leaf, error) {
	var out struct {
		CertPEM       string
		PrivateKeyPEM gateway.Secret
		ValidBefore   time.Time
	}
	if err := json.Unmarshal(a.body, &out); err != nil {
		// The error of json may quote what it read, and that holds a key.
		return nil, errors.New("leaf certificate: the answer is not what Consul writes")
	}
	if out.CertPEM == "" || out.PrivateKeyPEM == "" {
		return nil, errors.New("leaf certificate: the answer lacks the certificate or its key")
	}
	return &gateway.Leaf{CertPEM: out.CertPEM, KeyPEM: out.PrivateKeyPEM, ValidBefore: out.ValidBefore}, nil
}
