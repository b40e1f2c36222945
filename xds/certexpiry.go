package xds

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/usherproxy/usher/internal/problem"
)

// How long before its end a certificate that is not renewed is a problem: a share of its lifetime, or less.
const (
	noticeShare   = 10 // a tenth, at most maxNotice
	degradedShare = 30 // a thirtieth, at most maxDegraded
	maxNotice     = 30 * 24 * time.Hour
	maxDegraded   = 3 * 24 * time.Hour
)

// validity is the time in which one certificate of a chain is valid.
type validity struct {
	from, until time.Time
	name        string // which certificate it is
	// needed is false above the certificate that signs the leaf: a client that trusts another certificate with the same
	// name and key, as of a root that is signed by an older one, does not need it.
	needed bool
}

// chain is the validity of the certificates that clients use: the leaf, and after each the one that signs it. A root is
// not among them, because clients use their own.
type chain []validity

// chainOf returns the chain in a file.
func chainOf(pair *tls.Certificate) chain {
	last := pair.Leaf
	found := chain{{last.NotBefore, last.NotAfter, "the certificate", true}}
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil || bytes.Equal(c.RawIssuer, c.RawSubject) || last.CheckSignatureFrom(c) != nil {
			continue
		}
		found = append(found, validity{c.NotBefore, c.NotAfter, fmt.Sprintf("the certificate %q in its chain", c.Subject.String()), len(found) == 1})
		last = c
	}
	return found
}

// first returns the needed certificate that expires first.
func (c chain) first() validity {
	first := c[0]
	for _, v := range c[1:] {
		if v.needed && v.until.Before(first.until) {
			first = v
		}
	}
	return first
}

// problems returns the problems of a chain in a file at a time, the worst first, and when they change; zero: never.
func (c chain) problems(file string, now time.Time) (found []problem.Problem, changes time.Time) {
	for _, v := range c {
		p, at := v.problem(file, now)
		if p != nil {
			found = append(found, *p)
		}
		if !at.IsZero() && (changes.IsZero() || at.Before(changes)) {
			changes = at
		}
	}
	slices.SortFunc(found, problem.Compare)
	return found, changes
}

// problem returns the problem of a certificate in a file at a time, and when that changes; zero: never.
func (v validity) problem(file string, now time.Time) (found *problem.Problem, changes time.Time) {
	lifetime := v.until.Sub(v.from)
	notice := v.until.Add(-min(lifetime/noticeShare, maxNotice))
	degraded := v.until.Add(-min(lifetime/degradedShare, maxDegraded))
	p := problem.Problem{
		Where: file, At: problem.Position{File: file},
		What: fmt.Sprintf("%s expires at %s; renew it: Usher picks up the new file without a restart", v.name, v.until.UTC().Format(time.RFC3339)),
	}
	severity, consequence := problem.Outage, "so no Envoy can connect"
	if !v.needed {
		severity, consequence = problem.Degraded, "so an Envoy that trusts only its issuer cannot connect"
	}
	switch {
	case now.Before(v.from):
		p.What = fmt.Sprintf("%s is not valid before %s, %s; replace it, or correct this machine's clock", v.name, v.from.UTC().Format(time.RFC3339), consequence)
		p.Severity, changes = severity, v.from
	case now.Before(notice):
		return nil, notice
	case now.Before(degraded):
		p.Severity, changes = problem.Notice, degraded
	case now.Before(v.until):
		p.Severity, changes = problem.Degraded, v.until
	default:
		p.What = fmt.Sprintf("%s expired at %s, %s; renew it: Usher picks up the new file without a restart", v.name, v.until.UTC().Format(time.RFC3339), consequence)
		p.Severity = severity
	}
	return &p, changes
}
