//go:build e2e

package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
)

// keyID formats the ID of a certificate's key as Consul does: aa:bb:cc.
func keyID(id []byte) string { return strings.ReplaceAll(fmt.Sprintf("% x", id), " ", ":") }

// rotatedLeaf finds a certificate of the gateway that none of the old keys has
// signed.
func rotatedLeaf(old map[string]bool) func([]byte) bool {
	return func(body []byte) bool {
		leaf, _ := certificatesIn(body)
		return leaf != nil && !old[keyID(leaf.AuthorityKeyId)]
	}
}

// rotatedRoots finds roots of which one has none of the old keys.
func rotatedRoots(old map[string]bool) func([]byte) bool {
	return func(body []byte) bool {
		leaf, roots := certificatesIn(body)
		return leaf == nil && hasNew(roots, old)
	}
}

// rotatedBoth finds a resource that has both.
func rotatedBoth(old map[string]bool) func([]byte) bool {
	leafIsNew := rotatedLeaf(old)
	return func(body []byte) bool {
		_, roots := certificatesIn(body)
		return hasNew(roots, old) && leafIsNew(body)
	}
}

func hasNew(roots []*x509.Certificate, old map[string]bool) bool {
	return slices.ContainsFunc(roots, func(r *x509.Certificate) bool { return !old[keyID(r.SubjectKeyId)] })
}

// certificatesIn returns the certificates that are written as PEM anywhere in the
// bytes of a resource: the gateway's own, and those of authorities.
func certificatesIn(body []byte) (leaf *x509.Certificate, authorities []*x509.Certificate) {
	for {
		begin := bytes.Index(body, []byte("-----BEGIN CERTIFICATE"))
		if begin < 0 {
			return leaf, authorities
		}
		block, rest := pem.Decode(body[begin:])
		if block == nil {
			return leaf, authorities
		}
		c, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
		case c.IsCA:
			authorities = append(authorities, c)
		default:
			leaf = c
		}
		body = rest
	}
}
