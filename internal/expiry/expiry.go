// Package expiry says how close certificates are to their end, and which certificates of a chain matter.
package expiry

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"
)

// How long before its end a certificate that is not renewed should be noticed, and when it is urgent: a share of its
// lifetime, or less. Consul renews its certificates when 60 % to 90 % of the lifetime are over, and the certificate
// manager of Kubernetes when two thirds are. So when a tenth is left, the renewal has failed. The longest times are for
// certificates that people renew.
const (
	soonShare     = 10 // a tenth, at most longestSoon
	urgentShare   = 30 // a thirtieth, at most longestUrgent
	longestSoon   = 30 * 24 * time.Hour
	longestUrgent = 3 * 24 * time.Hour
)

// Stage is how close a certificate is to its end. Later ones are greater.
type Stage int8

// The stages.
const (
	Good        Stage = iota
	NotYetValid       // the clock is wrong, or that of the machine that signed the certificate
	Soon              // it expires soon, so its renewal has failed
	Urgent            // it expires very soon
	Expired
)

// Validity is the time in which one certificate is valid.
type Validity struct {
	From, Until time.Time
	Name        string // which certificate it is: "the certificate", or its subject in the chain
	// Needed is false above the certificate that signs the leaf: a peer that trusts another certificate with the same
	// name and key, as of a root that is signed by an older one, does not need it.
	Needed bool
}

// Stage returns the stage of a certificate at a time, and when the next one begins; zero: never.
func (v Validity) Stage(now time.Time) (stage Stage, changes time.Time) {
	lifetime := v.Until.Sub(v.From)
	soon := v.Until.Add(-min(lifetime/soonShare, longestSoon))
	urgent := v.Until.Add(-min(lifetime/urgentShare, longestUrgent))
	switch {
	case now.Before(v.From):
		return NotYetValid, v.From
	case now.Before(soon):
		return Good, soon
	case now.Before(urgent):
		return Soon, urgent
	case now.Before(v.Until):
		return Urgent, v.Until
	}
	return Expired, time.Time{}
}

// Chain is the validity of the certificates that a peer uses: the leaf, and after each the one that signs it. A root is
// not among them, because peers use their own.
type Chain []Validity

// ChainOf returns the chain of a leaf with the other certificates that come with it.
func ChainOf(leaf *x509.Certificate, others []*x509.Certificate) Chain {
	found, last := Chain{{leaf.NotBefore, leaf.NotAfter, "the certificate", true}}, leaf
	for _, c := range others {
		if bytes.Equal(c.RawIssuer, c.RawSubject) || last.CheckSignatureFrom(c) != nil {
			continue
		}
		found = append(found, Validity{c.NotBefore, c.NotAfter, fmt.Sprintf("the certificate %q in its chain", c.Subject.String()), len(found) == 1})
		last = c
	}
	return found
}

// First returns the needed certificate that expires first.
func (c Chain) First() Validity {
	first := c[0]
	for _, v := range c[1:] {
		if v.Needed && v.Until.Before(first.Until) {
			first = v
		}
	}
	return first
}

// Certificates returns the certificates of a text in PEM, as far as they can be read.
func Certificates(text string) (found []*x509.Certificate) {
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			found = append(found, c)
		}
	}
	return found
}

// Earlier returns the earlier of two times, of which zero is never.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
