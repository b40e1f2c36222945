package consul

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

var (
	// rootsKind reads the mesh's root certificates
	// (https://developer.hashicorp.com/consul/api-docs/connect/ca#list-ca-root-certificates).
	rootsType = &queryType{name: "roots", path: "/v1/connect/ca/roots", decode: decodeAs(decodeRoots)}
	// leafKind reads a gateway's certificate towards the mesh, which Consul's
	// agent makes and renews. It has no DNS names: see certificate
	// (https://developer.hashicorp.com/consul/api-docs/agent/connect#service-leaf-certificate).
	leafType = &queryType{name: "leaf", path: "/v1/agent/connect/ca/leaf/", local: true, decode: decodeAs(decodeLeaf)}
)

// meshRoots are the mesh's root certificates, and which of them signs now.
type caRoots struct {
	all    *gateway.Roots
	active string // the ID of the root that signs
}

func decodeRoots(prev *caRoots, a answer) (*caRoots, error) {
	var out struct {
		ActiveRootID string
		TrustDomain  string
		Roots        []struct{ RootCert string }
	}
	if err := json.Unmarshal(a.body, &out); err != nil {
		return nil, fmt.Errorf("root certificates: %w", err)
	}
	if out.TrustDomain == "" || len(out.Roots) == 0 {
		return nil, errors.New("root certificates: the mesh has none yet")
	}
	all := &gateway.Roots{TrustDomain: out.TrustDomain}
	for _, root := range out.Roots {
		if root.RootCert == "" {
			return nil, errors.New("root certificates: one is empty")
		}
		all.PEMs = append(all.PEMs, root.RootCert)
	}
	if prev != nil {
		all = reuse(prev.all, all)
	}
	return &caRoots{all: all, active: out.ActiveRootID}, nil
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
