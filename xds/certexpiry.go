package xds

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/usherproxy/usher/internal/expiry"
	"github.com/usherproxy/usher/internal/problem"
)

// chainOf returns the chain in a file.
func chainOf(pair *tls.Certificate) expiry.Chain {
	var others []*x509.Certificate
	for _, der := range pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			others = append(others, c)
		}
	}
	return expiry.ChainOf(pair.Leaf, others)
}

// chainProblems returns the problems of a chain in a file at a time, the worst first, and when they change; zero: never.
func chainProblems(c expiry.Chain, file string, now time.Time) (found []problem.Problem, changes time.Time) {
	for _, v := range c {
		p, at := expiryProblem(v, file, now)
		if p != nil {
			found = append(found, *p)
		}
		changes = expiry.Earlier(changes, at)
	}
	slices.SortFunc(found, problem.Compare)
	return found, changes
}

// expiryProblem returns the problem of a certificate in a file at a time, and when that changes; zero: never.
func expiryProblem(v expiry.Validity, file string, now time.Time) (found *problem.Problem, changes time.Time) {
	p := problem.Problem{
		Where: file, At: problem.Position{File: file},
		What: fmt.Sprintf("%s expires at %s; renew it: Usher picks up the new file without a restart", v.Name, v.Until.UTC().Format(time.RFC3339)),
	}
	severity, consequence := problem.Outage, "so no Envoy can connect"
	if !v.Needed {
		severity, consequence = problem.Degraded, "so an Envoy that trusts only its issuer cannot connect"
	}
	stage, changes := v.Stage(now)
	switch stage {
	case expiry.Good:
		return nil, changes
	case expiry.NotYetValid:
		p.What = fmt.Sprintf("%s is not valid before %s, %s; replace it, or correct this machine's clock", v.Name, v.From.UTC().Format(time.RFC3339), consequence)
		p.Severity = severity
	case expiry.Soon:
		p.Severity = problem.Notice
	case expiry.Urgent:
		p.Severity = problem.Degraded
	case expiry.Expired:
		p.What = fmt.Sprintf("%s expired at %s, %s; renew it: Usher picks up the new file without a restart", v.Name, v.Until.UTC().Format(time.RFC3339), consequence)
		p.Severity = severity
	}
	return &p, changes
}
