package doctor

import (
	"cmp"
	"slices"

	"github.com/usherproxy/usher/internal/problem"
)

// Report is the result of a diagnosis. Lists are never nil.
type Report struct {
	Gateway  string    `json:"gateway,omitempty"`
	Listener string    `json:"listener,omitempty"` // HOST:PORT that was probed
	Findings []Finding `json:"findings"`           // the worst first
	Fine     []Fine    `json:"fine"`
	Unseen   []Unseen  `json:"not_looked_at"`
}

// Finding is something that is wrong, or that an operator may want to know.
type Finding struct {
	Check    string           `json:"check"` // what was looked at, such as "token"
	Severity problem.Severity `json:"severity"`
	What     string           `json:"what"`
	Evidence []string         `json:"evidence"`
	Remedy   Remedy           `json:"remedy"`
}

// Remedy is how to correct a finding. Command and HCL have an effect as they are.
type Remedy struct {
	Text    string `json:"text"`
	Command string `json:"command,omitempty"` // for a shell
	HCL     string `json:"hcl,omitempty"`     // for Usher's config file
}

// Fine is a check that has found nothing wrong.
type Fine struct {
	Check string `json:"check"`
	What  string `json:"what"`
}

// Unseen is a source that was not looked at.
type Unseen struct {
	Source string `json:"source"`
	Why    string `json:"why,omitempty"`
	Flag   string `json:"flag"`            // that names the source
	Failed bool   `json:"error,omitempty"` // it was named and does not answer
}

// The exit statuses of a diagnosis.
const (
	StatusFine   = 0 // nothing is worse than a notice
	StatusWrong  = 1 // something is degraded, or worse
	StatusUnseen = 2 // nothing wrong was found, and a source that was named, or every source, does not answer
)

// Status returns the exit status.
func (r *Report) Status() int {
	switch {
	case slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity >= problem.Degraded }):
		return StatusWrong
	case slices.ContainsFunc(r.Unseen, func(u Unseen) bool { return u.Failed }), len(r.Findings) == 0 && len(r.Fine) == 0:
		return StatusUnseen
	}
	return StatusFine
}

// checks are all of them, in the order of the report.
var checks = []func(*Facts, *Report){
	checkListener, checkAgreement, checkTrust, checkStrict,
	checkToken, checkCertificate, checkGateway, checkInstances, checkReadiness, checkProblems, checkStream, checkEnvoys, checkVersions,
}

// Diagnose runs all checks.
func Diagnose(f *Facts) *Report {
	r := &Report{Gateway: f.Gateway.String(), Findings: []Finding{}, Fine: []Fine{}, Unseen: unseen(f)}
	if f.Listener.Facts != nil {
		r.Listener = f.Listener.Facts.Target
	}
	for _, check := range checks {
		check(f, r)
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int { return cmp.Compare(b.Severity, a.Severity) })
	return r
}

// add adds a finding.
func (r *Report) add(f Finding) {
	if f.Evidence == nil {
		f.Evidence = []string{}
	}
	r.Findings = append(r.Findings, f)
}

// fine adds a check that has found nothing wrong.
func (r *Report) fine(check, what string) { r.Fine = append(r.Fine, Fine{check, what}) }

// unseen returns the sources without facts.
func unseen(f *Facts) []Unseen {
	all := []Unseen{}
	for _, of := range []*Unseen{
		missing(f.Listener), missing(f.Balancer), missing(f.Usher), missing(f.Envoy), missing(f.Consul), missing(f.Plan),
		missing(f.Certificate), missing(f.Chart),
	} {
		if of != nil {
			all = append(all, *of)
		}
	}
	return all
}

// missing returns nil if the source has facts, or was neither asked nor can be.
func missing[T any](s Source[T]) *Unseen {
	if s.Facts != nil || s.Name == "" {
		return nil
	}
	u := &Unseen{Source: s.Name, Flag: s.Flag, Failed: s.Asked && s.Err != nil}
	if s.Err != nil {
		u.Why = s.Err.Error()
	}
	return u
}
