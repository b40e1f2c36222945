//go:build e2e

package main

import (
	"crypto/x509"
	"strings"
)

// A certificate's keys are compared as Consul writes them: aa:bb:cc.
func keyID(id []byte) string {
	const digits = "0123456789abcdef"
	out := make([]string, len(id))
	for i, b := range id {
		out[i] = string([]byte{digits[b>>4], digits[b&15]})
	}
	return strings.Join(out, ":")
}

// rotatedLeaf is shown by a certificate of the gateway that none of the old keys
// has signed.
func rotatedLeaf(old map[string]bool) func([]byte) bool {
	return func(body []byte) bool {
		leaf, _ := sorted(certificatesIn(body))
		return leaf != nil && !old[keyID(leaf.AuthorityKeyId)]
	}
}

// rotatedRoots is shown by roots of which one has none of the old keys.
func rotatedRoots(old map[string]bool) func([]byte) bool {
	return func(body []byte) bool {
		leaf, roots := sorted(certificatesIn(body))
		return leaf == nil && hasNew(roots, old)
	}
}

// rotatedBoth is shown by a resource that has both.
func rotatedBoth(old map[string]bool) func([]byte) bool {
	leafIsNew := rotatedLeaf(old)
	return func(body []byte) bool {
		_, roots := sorted(certificatesIn(body))
		return hasNew(roots, old) && leafIsNew(body)
	}
}

func hasNew(roots []*x509.Certificate, old map[string]bool) bool {
	for _, r := range roots {
		if !old[keyID(r.SubjectKeyId)] {
			return true
		}
	}
	return false
}

// sorted tells the gateway's own certificate from those of authorities.
func sorted(all []*x509.Certificate) (leaf *x509.Certificate, authorities []*x509.Certificate) {
	for _, c := range all {
		if c.IsCA {
			authorities = append(authorities, c)
		} else {
			leaf = c
		}
	}
	return leaf, authorities
}
